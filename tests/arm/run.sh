#!/bin/sh
# The kernel tests and a whole tiny model on emulated ARM cores: run.sh [HOST_PYTHON]; ARM_CPUS names other cores.
# Emulation is 20 to 50 times slower and says nothing about speed. Compiled kernels are kept between runs.
set -eu
cd "$(dirname "$0")/../.."
cache=${EDGECAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgecal}/arm
tests/arm/setup.sh "$cache/machine" "${1:-python3}"

export EDGECAL_CACHE="$cache" PYTHONPATH="$PWD:$PWD/kernels:$PWD/weights:$cache/machine/packages"
export EDGECAL_BACKEND=numba PYTHONDONTWRITEBYTECODE=1
# cortex-a72: Raspberry Pi 4, plain NEON; cortex-a76: Raspberry Pi 5, dot product; max: i8mm, as phones since 2021
for ARM_CPU in ${ARM_CPUS:-cortex-a72 cortex-a76 max}; do
    export ARM_CPU
    case $ARM_CPU in cortex-a72) expected=neon ;; max) expected=neon_i8mm ;; *) expected=neon_dotprod ;; esac
    found=$("$cache/machine/python" -c 'from edgecal_kernels import cpu; print(cpu.detect_isa())')
    echo "== $ARM_CPU: $found"
    [ "$found" = "$expected" ] || { echo "run.sh: expected $expected on $ARM_CPU" >&2; exit 1; }
    # test_each_instruction_set compiles all kernels afresh for each: the loop over the cores does that here
    "$cache/machine/python" -m pytest -p no:cacheprovider \
        "tests/kernels/test_instructions.py::test_the_promised_instruction_is_there[$expected]" \
        tests/kernels/test_numba_ops.py tests/edgecal/test_back_ends.py \
        --deselect tests/kernels/test_numba_ops.py::test_each_instruction_set
done
