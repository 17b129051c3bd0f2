#!/bin/sh
# The lines of docs/install.md that give edgecal an environment of its own: tools.sh [PYTHON]. pipx and uv come from the
# package index and keep everything under the folder of these tests.
. "$(dirname "$0")/common.sh"
host=${1:-python3}
build "$host"
fresh "$host" tools-of-users
"$python" -m pip -q install pipx uv
export PATH="$work/tools-of-users/bin:$PATH" UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never UV_PYTHON="$host"
for tool in pipx uv; do
    rm -rf "$work/$tool"
    export PIPX_HOME="$work/$tool" PIPX_BIN_DIR="$work/$tool/bin"
    export UV_TOOL_DIR="$work/$tool/tools" UV_TOOL_BIN_DIR="$work/$tool/bin"
    case $tool in
        pipx)
            pipx install "$wheel[app,demo]" >/dev/null
            pipx inject edgecal "$adapters" >/dev/null
            ;;
        uv) uv -q tool install "$wheel[app,demo]" --with "$adapters" ;;
    esac
    edgecal=$work/$tool/bin/edgecal
    "$edgecal" pull demo --keep-gguf >/dev/null
    answers "$edgecal"
    "$edgecal" demo -n 3
    echo "== $tool: installed, answers"
done
