#!/bin/sh
# The tests on ready-made kernels: ready.sh PYTHON [PYTEST ARGUMENTS]. All of them on the best instruction set of this
# processor, and what computes on each of the others that it has; ISAS names some ("avx2 portable"). What a library gives
# has to be what Numba's kernels give, bit for bit, before anything else is tried on it.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
export PYTHONPATH="$PWD:$PWD/kernels:$PWD/weights"
EDGECAL_READY=$(mktemp -d)
export EDGECAL_READY
trap 'rm -rf "$EDGECAL_READY"' EXIT
isas=${ISAS:-$("$python" -c "from edgecal_kernels import cpu; print(*cpu.processor_isas())")}

expected=$("$python" -m tests.kernels.operations_probe numba 1 | sed 's/true]$/false]/')
for isa in $isas; do
    "$python" -m edgecal_kernels.build --isa "$isa" --folder "$EDGECAL_READY"
    found=$(EDGECAL_ISA=$isa "$python" -m tests.kernels.operations_probe ready 2)
    [ "$found" = "$expected" ] || { echo "ready.sh: $isa has other bits: $found, expected $expected" >&2; exit 1; }
done
parts=
for isa in $isas; do
    echo "== ready-made kernels for $isa: ${parts:-all tests}"
    EDGECAL_ISA=$isa "$python" -m pytest -p tests.on_ready "$@" $parts
    parts="tests/kernels tests/edgecal tests/decoding tests/adapters tests/parity"
done
