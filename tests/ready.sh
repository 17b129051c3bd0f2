#!/bin/sh
# The tests on ready-made kernels: ready.sh PYTHON [PYTEST ARGUMENTS]. All of them on the best instruction set of this
# processor, and what computes on each of the others that it has; ISAS names some ("avx2 portable"). What a library gives
# has to be what Numba's kernels give, bit for bit, before anything else is tried on it; an emulated Nehalem, which has no
# AVX, has to say the same where qemu-x86_64 is (Debian's qemu-user).
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
case "$(uname -m) $isas " in x86_64*" portable "*)
    if command -v qemu-x86_64 >/dev/null; then
        mkdir -p "$EDGECAL_READY/root/proc"  # the emulator shows this machine's file unless it finds another one here
        echo "flags : sse sse2 pni ssse3 sse4_1 sse4_2 popcnt" >"$EDGECAL_READY/root/proc/cpuinfo"
        # OpenBLAS asks the processor in ways that are not emulated, and would take AVX
        found=$(OPENBLAS_CORETYPE=Nehalem OPENBLAS_NUM_THREADS=1 qemu-x86_64 -L "$EDGECAL_READY/root" -cpu Nehalem \
            "$python" -m tests.kernels.operations_probe ready 2)
        [ "$found" = "$expected" ] || { echo "ready.sh: other bits on a Nehalem: $found, expected $expected" >&2; exit 1; }
        echo "== an emulated Nehalem: the bits of this processor"
    else
        echo "== no qemu-x86_64 (Debian's qemu-user): not tried on a processor without AVX"
    fi ;;
esac
parts=
for isa in $isas; do
    echo "== ready-made kernels for $isa: ${parts:-all tests}"
    EDGECAL_ISA=$isa "$python" -m pytest -p tests.on_ready "$@" $parts
    parts="tests/kernels tests/edgecal tests/decoding tests/adapters tests/parity"
done
