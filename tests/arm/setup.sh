#!/bin/sh
# Puts an aarch64 Python with NumPy and Numba, and an emulator for it, into one folder: setup.sh FOLDER [HOST_PYTHON].
# Needs a Debian (apt-get, dpkg-deb, the package lists' signing keys) and pip, no root: apt runs with a state of its
# own inside the folder, and nothing on the machine is installed or changed. About 130 MB are downloaded, once.
set -eu
folder=$1 python=${2:-python3}
here=$(dirname "$(realpath "$0")")
stamp=$folder/complete-$(cat "$here/setup.sh" "$here/requirements.txt" | sha256sum | cut -c1-12)
test -e "$stamp" && exit 0

for tool in apt-get apt-cache dpkg-deb; do
    command -v $tool >/dev/null || { echo "setup.sh: $tool is missing; this needs Debian or a relative" >&2; exit 1; }
done
rm -rf "$folder"
mkdir -p "$folder"
folder=$(realpath "$folder")

# apt_for ARCHITECTURE COMMAND...: apt with its lists and archives under $folder/apt/ARCHITECTURE
apt_for() {
    own=$folder/apt/$1
    if [ ! -e "$own/apt.conf" ]; then
        mkdir -p "$own/lists/partial" "$own/cache/archives/partial"
        : >"$own/status"
        cat >"$own/apt.conf" <<END
Dir::State "$own"; Dir::State::lists "$own/lists"; Dir::State::status "$own/status"; Dir::Cache "$own/cache";
APT::Architecture "$1"; APT::Architectures {"$1";}; APT::Sandbox::User ""; Acquire::Languages "none";
END
        APT_CONFIG=$own/apt.conf apt-get -qq update
    fi
    shift
    APT_CONFIG=$own/apt.conf "$@"
}

# unpack ARCHITECTURE FOLDER PACKAGE...: the packages and what they depend on
unpack() {
    own=$folder/apt/$1 into=$2
    apt_for "$1" true
    architecture=$1
    shift 2
    apt_for "$architecture" apt-get -qq install --download-only --no-install-recommends -y "$@" >/dev/null
    mkdir -p "$into"
    for package in "$own"/cache/archives/*.deb; do dpkg-deb -x "$package" "$into"; done
}

host=$(dpkg --print-architecture)
apt_for arm64 true
version=$(apt_for arm64 apt-cache depends python3-minimal | sed -n 's/.*Depends: python\(3\.[0-9]*\)-minimal.*/\1/p')
echo "setup.sh: aarch64 Python $version and its emulator into $folder" >&2
unpack arm64 "$folder/root" "python$version" libgomp1 libstdc++6 musl
apt_for "$host" true
(cd "$folder/apt/$host" && apt_for "$host" apt-get -qq download qemu-user-static)
dpkg-deb -x "$folder/apt/$host"/qemu-user-static_*.deb "$folder/host"
"$python" -m pip -qq --disable-pip-version-check install --target "$folder/packages" --only-binary=:all: \
    --implementation cp --python-version "$version" \
    --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    -r "$here/requirements.txt"
rm -rf "$folder/apt"
find "$folder/host/usr/bin" -type f ! -name qemu-aarch64-static -delete
ln -s "python$version" "$folder/root/usr/bin/python"

# -0 makes this file sys.executable, so that child processes are emulated as well.
cat >"$folder/python" <<'END'
#!/bin/sh
here=$(dirname "$(realpath "$0")")
export PYTHONHOME="$here/root/usr"
exec "$here/host/usr/bin/qemu-aarch64-static" -cpu "${ARM_CPU:-cortex-a76}" -L "$here/root" -0 "$here/python" \
    "$here/root/usr/bin/python" "$@"
END
chmod +x "$folder/python"
touch "$stamp"
