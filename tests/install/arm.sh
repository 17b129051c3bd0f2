#!/bin/sh
# The wheel on emulated ARM: arm.sh [HOST_PYTHON]; ARM_CPUS names other cores. An aarch64 pip installs the wheel and what
# it asks for, as on a Raspberry Pi; both back ends answer, and a server. Debian only; emulation takes its time.
. "$(dirname "$0")/common.sh"
host=${1:-python3}
build "$host"
tests/arm/setup.sh "$work/../arm/machine" "$host"
arm=$(realpath "$work/../arm/machine")/python
"$host" -m pip -q download --no-deps --only-binary :all: -d "$work/pip" pip
[ -e "$EDGECAL_CACHE/demo" ] || { echo "arm.sh: run plain.sh first, it fetches the demo model" >&2; exit 1; }
rm -rf "$work/arm"
PYTHONPATH=$(echo "$work"/pip/pip-*.whl) "$arm" -m pip -q install --only-binary :all: --target "$work/arm" \
    "$wheel" starlette uvicorn segno prometheus-client
export PYTHONPATH="$work/arm"
for ARM_CPU in ${ARM_CPUS:-cortex-a72 cortex-a76}; do
    export ARM_CPU
    for backend in numba numpy; do
        EDGECAL_BACKEND=$backend answers "$arm" -m edgecal
    done
    "$host" tests/install/serve_once.py "$arm" -m edgecal
    echo "== $ARM_CPU: $("$arm" --version): installed, answers with both back ends, serves"
done
