#!/bin/sh
# edgecal as its users get it: wheel.sh [PYTHON]. Wheels are built from the sdist, checked, installed where no Numba is,
# and used. Needs the package index; the kernels of all instruction sets take some minutes when they are not kept yet.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "wheel.sh: $*" >&2; exit 1; }

"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install -q build twine
"$work/tools/bin/python" -m build -C kernels=all --outdir "$work/dist" . >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/tools/bin/python" -m build --wheel --outdir "$work/dist" demo_data >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/tools/bin/twine" check --strict "$work"/dist/*
ls -l "$work/dist"
[ "$(stat -c %s "$work"/dist/edgecal-*.whl)" -lt 12000000 ] || fail "the wheel has 12 MB or more"

"$python" -m venv "$work/user"
"$work/user/bin/pip" install -q "$work"/dist/*.whl
PATH=$work/user/bin:$PATH
unset PYTHONPATH EDGECAL_READY EDGECAL_BACKEND EDGECAL_ISA || true
sources=$PWD
cd "$work"
python -c "import numba" 2>/dev/null && fail "Numba was installed"

edgecal pull demo
edgecal warmup | tee said
grep -q "are ready" said || fail "the ready-made kernels do not serve"
edgecal env | grep -q "back end: ready" || fail "edgecal env does not say so"
edgecal demo -n 20
edgecal merge --adapter demo:summarize --adapter demo:professional --method ties --out merged
edgecal generate demo "Once upon a time" --adapter merged -n 10
edgecal profile demo demo -r 1 --json >profile.json
edgecal verify demo "$sources/tests/golden/reference/linear.safetensors" --adapter demo:summarize \
    --adapter demo:professional || [ $? = 1 ]  # the base is rounded here: figures, and no traceback

EDGECAL_BACKEND=numba edgecal generate demo x -n 1 2>said && fail "Numba is said to be there"
grep -q 'needs the package numba' said
EDGECAL_READY=$work/none edgecal generate demo x -n 1 2>said
grep -q 'slow kernels serve: numpy: no ready-made kernels are here.*jit' said
echo "wheel.sh: all as it should be"
