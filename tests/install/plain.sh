#!/bin/sh
# The wheel where nothing can be compiled and nothing that was compiled is there but NumPy: plain.sh [PYTHON]. What a
# phone has (docs/termux.md): the ready-made kernels answer, and NumPy, which takes a second or two for a token.
. "$(dirname "$0")/common.sh"
host=${1:-python3}
build "$host"
fresh "$host" plain
"$python" -m pip -q install --only-binary :all: numpy
"$python" -m pip -q install --no-deps jinja2 markupsafe click rich markdown-it-py mdurl pygments
CC=/bin/false "$python" -m pip -q install --no-deps --no-binary pyyaml pyyaml
"$python" -m pip -q install --no-deps "$wheel"
for package in numba llvmlite tokenizers safetensors hf_xet huggingface_hub; do
    ! "$python" -c "import $package" 2>/dev/null || fail "$package is there"
done
edgecal=$work/plain/bin/edgecal
"$edgecal" env | grep -q "tokenizer: plain Python"
"$edgecal" pull demo --keep-gguf >/dev/null
for backend in ready numpy; do
    EDGECAL_BACKEND=$backend answers "$edgecal"
done
echo "== $("$python" --version), NumPy $("$python" -c 'import numpy; print(numpy.__version__)') and pure Python: answers"
