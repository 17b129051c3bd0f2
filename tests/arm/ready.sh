#!/bin/sh
# Ready-made kernels on emulated ARM cores: ready.sh HOST_PYTHON. Every operation has to give the bits that the host's own
# library gives, and a tiny model its answers, with a Python that imports no Numba; then the tests of products and of whole
# models pass. HOST_PYTHON needs what `make test` installs. The same libraries beside another C library, musl: kernels
# called by a program (tests/foreign).
set -eu
cd "$(dirname "$0")/../.."
host=$1
cache=${EDGECAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgecal}/arm
tests/arm/setup.sh "$cache/machine" "$host"
guest() { PYTHONPATH="$PYTHONPATH:$cache/machine/packages" "$cache/machine/python" "$@"; }

export PYTHONPATH="$PWD:$PWD/kernels:$PWD/weights" PYTHONDONTWRITEBYTECODE=1 EDGECAL_READY="$cache/ready"
"$host" -m edgecal_kernels.build --own --folder "$EDGECAL_READY"
"$host" -m edgecal_kernels.build --isa neon --isa neon_dotprod --isa neon_i8mm --folder "$EDGECAL_READY"
expected=$("$host" -m tests.kernels.operations_probe ready 1)
tiny=$cache/tiny
rm -rf "$tiny"
"$host" -c "from pathlib import Path; from tests.tiny import write_tiny_adapter, write_tiny_hf
write_tiny_adapter(Path('$tiny/lora'), write_tiny_hf(Path('$tiny/model')))"
texts=$("$host" -m tests.kernels.answers_probe ready "$tiny/model" "$tiny/lora")
"$host" -m ziglang cc -target aarch64-linux-musl -dynamic -O1 -o "$cache/caller" tests/foreign/caller.c
for ARM_CPU in ${ARM_CPUS:-cortex-a72 cortex-a76 max}; do
    export ARM_CPU
    found=$(guest -m tests.kernels.operations_probe ready 2)
    [ "$found" = "$expected" ] || { echo "ready.sh: other bits on $ARM_CPU: $found, expected $expected" >&2; exit 1; }
    found=$(guest -m tests.kernels.answers_probe ready "$tiny/model" "$tiny/lora")
    [ "$found" = "$texts" ] || { echo "ready.sh: other answers on $ARM_CPU: $found, expected $texts" >&2; exit 1; }
    case $ARM_CPU in cortex-a72) isa=neon ;; max) isa=neon_i8mm ;; *) isa=neon_dotprod ;; esac
    "$host" -m tests.foreign.job "$EDGECAL_READY/$isa.so" "$cache/machine/host/usr/bin/qemu-aarch64-static" -cpu "$ARM_CPU" \
        "$cache/machine/root/lib/ld-musl-aarch64.so.1" "$cache/caller"
    echo "== $ARM_CPU: the bits and the answers of this machine, without Numba"
    guest -m pytest -p no:cacheprovider -p tests.on_ready tests/kernels/test_numba_ops.py \
        tests/kernels/test_linear_product.py tests/edgecal/test_back_ends.py
done
