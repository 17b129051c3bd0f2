#!/bin/sh
# Every ready-made library twice, by processes of their own and with nothing kept from before, the second time from a copy
# of the sources in another folder: reproducible.sh PYTHON [--isa NAME]... They must be the same, and 3 MB at most.
set -eu
cd "$(dirname "$0")/.."
python=$1
shift
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cp -r kernels "$place/elsewhere"
for sources in "$PWD/kernels" "$place/elsewhere"; do
    kept=$(mktemp -d -p "$place")
    PYTHONPATH=$sources EDGECAL_CACHE=$kept "$python" -m edgecal_kernels.build "$@" --folder "$place/made"
    (cd "$place/made" && sha256sum ./*.so) >"$place/digests.$(basename "$sources")"
    large=$(find "$place/made" -size +3M)
    [ -z "$large" ] || { echo "reproducible.sh: more than 3 MB: $large" >&2; exit 1; }
    rm -rf "$place/made"
done
diff "$place/digests.kernels" "$place/digests.elsewhere" || { echo "reproducible.sh: other bytes" >&2; exit 1; }
cat "$place/digests.kernels"
echo "== the same bytes twice"
