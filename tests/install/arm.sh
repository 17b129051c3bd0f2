#!/bin/sh
# The wheel on emulated ARM: arm.sh [HOST_PYTHON]. An aarch64 pip installs it with what it asks for, as on a Raspberry Pi;
# each core's instruction set is found, and NumPy answers (compiling the kernels under emulation is `make test-arm`).
# Debian only; needs the demo model that plain.sh fetches.
. "$(dirname "$0")/common.sh"
host=${1:-python3}
build "$host"
tests/arm/setup.sh "$work/../arm/machine" "$host"
arm=$(realpath "$work/../arm/machine")/python
[ -e "$EDGECAL_CACHE/demo" ] || { echo "arm.sh: run plain.sh first, it fetches the demo model" >&2; exit 1; }
rm -rf "$work/pip" "$work/arm"
"$host" -m pip -q download --no-deps --only-binary :all: -d "$work/pip" pip
PYTHONPATH=$(echo "$work"/pip/pip-*.whl) "$arm" -m pip -q install --only-binary :all: --target "$work/arm" "$wheel"
export PYTHONPATH="$work/arm" EDGECAL_CACHE
for core in cortex-a72:neon cortex-a76:neon_dotprod; do
    ARM_CPU=${core%:*} "$arm" -m edgecal env | grep -q "instructions: ${core#*:}$"
    echo "== ${core%:*}: installed, finds ${core#*:}"
done
EDGECAL_BACKEND=numpy answers "$arm" -m edgecal
echo "== $("$arm" --version): answers"
