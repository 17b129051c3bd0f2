#!/bin/sh
# The wheel with all that it asks for, in a fresh environment of each Python: full.sh PYTHON... Both back ends answer, and
# a server; no compiler is used.
. "$(dirname "$0")/common.sh"
build "$1"
for host in "$@"; do
    fresh "$host" full
    CC=/bin/false CXX=/bin/false "$python" -m pip -q install "$wheel[app,demo]"
    edgecal=$work/full/bin/edgecal
    "$edgecal" --version >/dev/null
    "$edgecal" pull demo --keep-gguf >/dev/null
    "$edgecal" warmup >/dev/null 2>&1
    for backend in numba numpy; do
        EDGECAL_BACKEND=$backend answers "$edgecal"
    done
    "$python" tests/install/serve_once.py "$edgecal"
    echo "== $("$python" --version): installed, answers with both back ends, serves"
done
