# Sourced by the scripts beside it. `work` is kept between runs: the demo model (98 MB) is fetched once.
set -eu
cd "$(dirname "$0")/../.."
work=${EDGECAL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/edgecal}/install
mkdir -p "$work"
unset PYTHONPATH EDGECAL_BACKEND EDGECAL_ISA EDGECAL_READY
export EDGECAL_CACHE="$work/home" PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 EDGECAL_CONVERTED=0

# build HOST_PYTHON: the wheel and the source distribution, out of a copy of what git knows; sets $wheel
build() {
    rm -rf "$work/source" "$work/dist"
    mkdir -p "$work/source"
    git ls-files -z | xargs -0 cp --parents -t "$work/source"
    "$1" -m pip -q wheel --no-deps -w "$work/dist" "$work/source"
    wheel=$(echo "$work"/dist/edgecal-*.whl)
}

# fresh HOST_PYTHON NAME: an empty environment; sets $python
fresh() {
    rm -rf "${work:?}/$2"
    "$1" -m venv "$work/$2"
    python=$work/$2/bin/python
}

# answers COMMAND...: the command answers a prompt as it should, from the demo's packed form and from its GGUF
answers() {
    for model in demo "$EDGECAL_CACHE/demo/SmolLM2-135M-Instruct.Q4_1.gguf"; do
        said=$("$@" generate "$model" "The capital of France is" --raw -n 6 --quiet)
        case $said in
            *Paris*) ;;
            *) echo "$0: $model: an answer with Paris was expected, found: $said" >&2; exit 1 ;;
        esac
    done
}
