#!/bin/sh
# The wheel on emulated ARM: arm.sh [HOST_PYTHON]. An aarch64 pip installs it with what it asks for, as on a Raspberry Pi 4
# and 5; on both cores (ARM_CPUS names others) the ready-made kernels are found, the model, an adapter and a server answer.
# NumPy writes one token. With BACKEND=numba the wheel has no ready-made kernels, so that Numba serves: it compiles its
# kernels under emulation, for a quarter of an hour or more on each core. Debian only, as tests/arm/setup.sh.
. "$(dirname "$0")/common.sh"
host=${1:-python3} backend=${BACKEND:-ready}
case $backend in
    ready) warm="are ready" ;;
    numba) warm="compiled" KERNELS=none ;;
    *) fail "BACKEND=$backend: expected ready or numba" ;;
esac
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
for ARM_CPU in ${ARM_CPUS:-cortex-a72 cortex-a76}; do
    export ARM_CPU
    case $ARM_CPU in cortex-a72) isa=neon ;; max) isa=neon_i8mm ;; *) isa=neon_dotprod ;; esac
    "$edgecal" env | grep -q "instructions: $isa$" || fail "$ARM_CPU: $isa was expected"
    "$edgecal" warmup | grep -q "$warm" || fail "$ARM_CPU: kernels of $backend do not serve"
    answers "$edgecal"
    "$edgecal" generate demo "It rains." --adapter demo:summarize -n 3 --quiet >/dev/null
    "$edgecal" demo -n 3 | grep -q "new tokens at" || fail "$ARM_CPU: the demo"
    said=$(EDGECAL_BACKEND=numpy "$edgecal" generate demo "The capital of France is" --raw -n 1 --quiet)
    case $said in *Paris*) ;; *) fail "numpy: Paris was expected, found: $said" ;; esac
    "$tools/bin/python" tests/install/serve_once.py "$edgecal"
    echo "== $ARM_CPU: installed, answers, serves ($backend)"
done
echo "== $("$arm" --version), aarch64: answers"
