#!/bin/sh
# The wheel where no Numba is: ready.sh [PYTHON]. Its ready-made kernels serve, and the commands of the tutorial run.
. "$(dirname "$0")/common.sh"
build "${1:-python3}"
fresh "${1:-python3}" ready
CC=/bin/false CXX=/bin/false "$python" -m pip -q install "$wheel" "$adapters"
PATH=$work/ready/bin:$PATH
sources=$PWD
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
python -c "import numba" 2>/dev/null && fail "Numba was installed"

edgecal pull demo
edgecal warmup | tee said
grep -q "are ready" said || fail "the ready-made kernels do not serve"
edgecal env | grep -q "back end: ready" || fail "edgecal env does not say so"
edgecal demo -n 20
took=$(python "$sources/tests/install/first_token.py" edgecal)
edgecal merge --adapter demo:summarize --adapter demo:professional --method ties --out merged
edgecal generate demo "Once upon a time" --adapter merged -n 10
edgecal profile demo demo -r 1 --json >profile.json
edgecal verify demo "$sources/tests/golden/reference/linear.safetensors" --adapter demo:summarize \
    --adapter demo:professional || [ $? = 1 ]  # the base is rounded here: figures, and no traceback

EDGECAL_BACKEND=numba edgecal generate demo x -n 1 2>said && fail "Numba is said to be there"
grep -q 'needs the package numba' said
EDGECAL_READY=$place/none edgecal generate demo x -n 1 2>said
grep -q 'slow kernels serve: numpy: no ready-made kernels are here.*jit' said
echo "== $(python --version): ready-made kernels serve, without Numba; the demo's first token after $took s"
