# Sourced by the scripts beside it. `work` is kept between runs: the demo model (98 MB) is fetched once.
set -eu
cd "$(dirname "$0")/../.."
cache=${EDGECAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgecal}
work=$cache/install
mkdir -p "$work"
unset PYTHONPATH EDGECAL_BACKEND EDGECAL_ISA EDGECAL_READY || true
export EDGECAL_CACHE="$work/home" PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 EDGECAL_CONVERTED=0

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

# build HOST_PYTHON: the source distribution of what git knows, out of it the wheel with the kernels of all instruction
# sets (KERNELS=none: without any), and the demo's adapters; twine checks them. Kept until a file changes. Sets $wheel,
# $adapters and $tools, an environment with the tools for this.
build() {
    tools=$work/tools dist=$work/dist kernels=${KERNELS:-all}
    state=$(git ls-files -z edgecal kernels weights demo_data pyproject.toml README.md LICENSE MANIFEST.in | xargs -0 sha256sum | sha256sum | cut -c1-16)
    if [ ! -e "$dist/$kernels-$state" ]; then
        rm -rf "$work/source" "$dist" "$tools"
        "$1" -m venv "$tools"
        "$tools/bin/python" -m pip -q install -U pip build twine
        mkdir -p "$work/source"
        git ls-files -z | xargs -0 cp --parents -t "$work/source"
        # Kernels that were made before, from the same sources, are in the usual cache
        EDGECAL_CACHE=$cache "$tools/bin/python" -m build -C "kernels=$kernels" --outdir "$dist" "$work/source" \
            >"$work/log" 2>&1 &&
            "$tools/bin/python" -m build --wheel --outdir "$dist" "$work/source/demo_data" >>"$work/log" 2>&1 ||
            { tail -n 30 "$work/log" >&2; fail "building failed"; }
        "$tools/bin/twine" check --strict "$dist"/*
        [ "$(stat -c %s "$dist"/edgecal-*.whl)" -lt 12000000 ] || fail "the wheel has 12 MB or more"
        touch "$dist/$kernels-$state"
    fi
    wheel=$(echo "$dist"/edgecal-*.whl) adapters=$(echo "$dist"/edgecal_demo_data-*.whl)
}

# fresh PYTHON NAME: an environment with pip and nothing else, also of a Python that has no ensurepip; sets $python
fresh() {
    rm -rf "${work:?}/$2"
    "$1" -m venv --without-pip "$work/$2"
    python=$work/$2/bin/python
    "$tools/bin/python" -m pip -q --python "$python" install pip
}

# answers COMMAND...: the command answers a prompt as it should, from the demo's packed form and from its GGUF
answers() {
    for model in demo "$EDGECAL_CACHE/demo/SmolLM2-135M-Instruct.Q4_1.gguf"; do
        said=$("$@" generate "$model" "The capital of France is" --raw -n 6 --quiet)
        case $said in
            *Paris*) ;;
            *) fail "$model: an answer with Paris was expected, found: $said" ;;
        esac
    done
}
