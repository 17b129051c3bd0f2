"""A chat template, rendered in its sandbox."""

from __future__ import annotations

from pathlib import Path

from edgecal.text.chat_template import ChatTemplate
from tests.tiny import CHAT_TEMPLATE

from ..mutate import words
from ..target import Target

_SEEDS = (
    CHAT_TEMPLATE,
    "{%- if tools %}{{- tools | tojson(indent=2) }}{%- endif %}{% set ns = namespace(n=0, text='') %}"
    "{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ loop.index ~ m['content'].strip() }}"
    "{% else %}{{ raise_exception('none') }}{% endfor %}{{ '%s-%d' % (ns.text, ns.n) }}",
    "{% macro turn(m, last=false) %}{{ m.role | upper }}: {{ m.content[:50] | trim }}{{ caller() if caller }}"
    "{% endmacro %}"
    "{% for m in messages %}{% generation %}{{ turn(m, loop.last) }}{% endgeneration %}{% break %}{% endfor %}",
    "{{ messages | map(attribute='content') | join('-') | replace('a', 'b') | length }}{{ strftime_now('%d %b %Y') }}"
    "{{ {'a': [1, 2.5, none]} | items | list | sort | string }}{{ dict(a=1, **{'b': 2}) }}{{ range(5) | sum }}",
)
_WORDS = (
    "{{ ", " }}", "{% ", " %}", "{# ", " #}", "for x in ", "range(99999)", "endfor", "if ", "else", "endif",
    "set x = ", "macro f(x)", "endmacro", "call f(1)", "endcall", "namespace(x=1)", "messages", "m.content",
    "loop.index", "loop", "| length", "| list", "| tojson", "| join('x')", "| replace('', 'xxxx')",
    "| batch(9999999)", "| map('upper')", "| sum", "| groupby('role')", "| sort", "| unique", "| format(1, 2)",
    "| center(9999999)", "| indent(99999999)", "| wordwrap", "| selectattr('x')", "| first", "| pprint", "| string",
    "| xmlattr", "| urlize", "| attr('__class__')", "| dictsort", ".__class__", ".__init__.__globals__",
    "['__mro__']", ".format(x)", ".format_map", "'{0.__class__}'.format(1)", "%s", "'a' * 999999999", "x ~ x",
    "x + x", "x ** 9999", "9 ** 9 ** 9", "'%9999999d' % 1", "[x] * 9999999", "| round(400)", "cycler", "joiner",
    "lipsum(99)", "self", "include 'x'", "import 'x' as y", "extends 'x'", "block a", "endblock", "filter upper",
    "endfilter", "raw", "endraw", "strftime_now('%' * 99999)", "raise_exception('x' * 700)", "caller()", "recursive",
    "loop(x)", "dict(x=1)", "tools", "none", "true", "is defined", "is mapping", "not in", "1e308", "~", "-", "(",
    ")", "[", "]", "{", "}", ",", "'", '"', "\\x1b[2J", "\x1b[2J", "\0", "(" * 300, "é", "[" * 200, "do x.append(x)",
)  # fmt: skip
_MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a LoRA?\n" * 3},
    {"role": "assistant", "content": "A low-rank change.", "extra": [1, {"a": None}]},
]


def prepare(folder: Path) -> list[bytes]:
    return [seed.encode() for seed in _SEEDS]


def run(data: bytes, folder: Path) -> None:
    template = ChatTemplate(data.decode("utf-8", "replace"), "the model")
    template.render(_MESSAGES, add_generation_prompt=True, tools=[{"name": "f"}], bos_token="<s>")


TARGET = Target(run, prepare, words(_WORDS), seconds=6.0, megabytes=256)
