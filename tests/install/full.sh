#!/bin/sh
# The wheel with all that it asks for, in a fresh environment of each Python: full.sh PYTHON... All back ends answer, and
# a server; no compiler is used. A number with a point, such as 3.15, stands for Debian's Python of that version.
. "$(dirname "$0")/common.sh"
for builder in "$@" python3; do case $builder in 3.*) ;; *) break ;; esac; done
build "$builder"
for host in "$@"; do
    case $host in 3.*) host=$(tests/install/debian_python.sh "$work/debian-$host" "$host") ;; esac
    fresh "$host" full
    CC=/bin/false CXX=/bin/false "$python" -m pip -q install "$wheel[app,demo]" "$adapters"
    edgecal=$work/full/bin/edgecal
    "$edgecal" --version >/dev/null
    "$edgecal" pull demo --keep-gguf >/dev/null
    for backend in ready numba numpy; do
        EDGECAL_BACKEND=$backend answers "$edgecal"
    done
    "$python" tests/install/serve_once.py "$edgecal"
    echo "== $("$python" --version), Numba $("$python" -c 'import numba; print(numba.__version__)'), NumPy \
$("$python" -c 'import numpy; print(numpy.__version__)'): installed, answers with all back ends, serves"
done
