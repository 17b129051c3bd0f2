"""Completion in bash. click's own takes the words as bash splits them, which is at every ":" and "=" too, so that
neither demo:NAME nor --task=NAME could be completed. This one takes the line, and gives bash what is behind the last of
these."""

from __future__ import annotations

import os

from click.shell_completion import BashComplete, add_completion_class, split_arg_string

_SOURCE = """\
%(complete_func)s() {
    local IFS=$'\\n' line="${COMP_LINE:0:COMP_POINT}" word prefix response completion kind value
    word="${line##*[[:space:]]}"
    prefix="${word%%"${word##*[:=]}"}"
    response=$(env COMP_WORDS="$line" COMP_CWORD=-1 %(complete_var)s=bash_complete $1)
    for completion in $response; do
        IFS=',' read kind value <<< "$completion"
        if [[ $kind == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $kind == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $kind == 'plain' ]]; then
            COMPREPLY+=("${value#"$prefix"}")
        fi
    done
    return 0
}

%(complete_func)s_setup() {
    complete -o nosort -F %(complete_func)s %(prog_name)s
}

%(complete_func)s_setup;
"""


class WholeLineBash(BashComplete):
    """Words are parted by white space and quotes alone."""

    source_template = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        incomplete = "" if not words or line[-1:].isspace() else words.pop()
        return words[1:], incomplete


def use() -> None:
    """Called when a shell asks."""
    add_completion_class(WholeLineBash, "bash")
