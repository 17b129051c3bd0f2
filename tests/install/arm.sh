#!/bin/sh
# The wheel on emulated ARM: arm.sh [HOST_PYTHON]. An aarch64 pip installs it with what it asks for, as on a Raspberry Pi 4
# and 5; on both cores the ready-made kernels are found, the model, an adapter and a server answer. NumPy writes one
# token. BACKENDS=numba adds Numba, which compiles its kernels under emulation, for an hour or more. Debian only, as
# tests/arm/setup.sh.
. "$(dirname "$0")/common.sh"
host=${1:-python3}
build "$host"
tests/arm/setup.sh "$work/../arm/machine" "$host"
arm=$(realpath "$work/../arm/machine")/python
rm -rf "$work/pip" "$work/arm"
"$tools/bin/python" -m pip -q download --no-deps --only-binary :all: -d "$work/pip" pip
# rouge-score, pure Python, has no wheel
CC=/bin/false PYTHONPATH=$(echo "$work"/pip/pip-*.whl) "$arm" -m pip -q install --only-binary :all: \
    --no-binary rouge-score --target "$work/arm" "$wheel[app,demo]" "$adapters"
export PYTHONPATH="$work/arm"
edgecal=$work/arm/bin/edgecal
"$edgecal" pull demo --keep-gguf >/dev/null
for core in cortex-a72:neon cortex-a76:neon_dotprod; do
    export ARM_CPU="${core%:*}"
    "$edgecal" env | grep -q "instructions: ${core#*:}$" || fail "$ARM_CPU: ${core#*:} was expected"
    "$edgecal" warmup | grep -q "are ready" || fail "$ARM_CPU: the ready-made kernels do not serve"
    for backend in ready ${BACKENDS:-}; do
        EDGECAL_BACKEND=$backend answers "$edgecal"
        EDGECAL_BACKEND=$backend "$edgecal" generate demo "It rains." --adapter demo:summarize -n 3 --quiet >/dev/null
        EDGECAL_BACKEND=$backend "$edgecal" demo -n 3 | grep -q "new tokens at" || fail "$ARM_CPU: the demo"
    done
    said=$(EDGECAL_BACKEND=numpy "$edgecal" generate demo "The capital of France is" --raw -n 1 --quiet)
    case $said in *Paris*) ;; *) fail "numpy: Paris was expected, found: $said" ;; esac
    "$tools/bin/python" tests/install/serve_once.py "$edgecal"
    echo "== $ARM_CPU: installed, answers, serves"
done
echo "== $("$arm" --version), aarch64: answers"
