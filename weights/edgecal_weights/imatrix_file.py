"""llama.cpp's importance matrix: how large the inputs of each matrix were on some text, by the tool `llama-imatrix`.

A GGUF file (`general.type` "imatrix") with two float32 tensors for each matrix of the model, whose GGUF names it has:
`blk.0.attn_q.weight.in_sum2`, the sums of squared inputs by column, and `.counts`, over how many tokens. The older
form of the tool, a file of its own kind (.dat), is refused by name; `llama-imatrix --output-format gguf` converts it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .binary_file import BinaryFile
from .errors import FileFormatError
from .families import Family
from .gguf_config import hf_name
from .gguf_file import GGUFFile

_SUMS, _COUNTS = ".in_sum2", ".counts"


def read_imatrix(path: str | Path, family: Family) -> dict[str, NDArray[np.float32]]:
    """Mean squares of inputs, float32 (k,), by Hugging Face tensor name, of a model of `family`.

    Matrices that no token reached are left out. Raises ModelNotFoundError, or FileFormatError for another kind of file,
    tensors that do not belong together, and names that the family does not have.
    """
    path = Path(path)
    with BinaryFile(path) as file:
        begins = file.size >= 4 and file.read(0, 4, "the magic").tobytes() == b"GGUF"
    if not begins:
        raise FileFormatError(
            f"{path} is no GGUF file; an older importance matrix (.dat) becomes one with "
            "llama-imatrix --in-file OLD.dat --output-format gguf -o NEW.gguf"
        )
    with GGUFFile(path) as gguf:
        if gguf.metadata.get("general.type") != "imatrix":
            raise FileFormatError(f"{path} is no importance matrix: its general.type is not imatrix")
        names = [name.removesuffix(_SUMS) for name in gguf.tensors if name.endswith(_SUMS)]
        found = {}
        for name in names:
            sums, counts = _values(gguf, name + _SUMS), _values(gguf, name + _COUNTS)
            if counts.size != 1:
                raise FileFormatError(f"{path}: {name} has counts for {counts.size} experts; expected one")
            if counts[0] > 0:
                found[_known(path, name, family)] = _means(path, name, sums / counts[0])
    if not found:
        raise FileFormatError(f"{path} has importances for no matrix")
    return found


def _values(gguf: GGUFFile, name: str) -> NDArray[np.float64]:
    tensor = gguf.tensor(name)
    if tensor.type != "F32":
        raise FileFormatError(f"{gguf.path}: {name} is {tensor.type}, expected F32")
    rows = tensor.nbytes // tensor.row_bytes
    values = gguf.raw_rows(name, 0, rows).reshape(-1).view("<f4")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise FileFormatError(f"{gguf.path}: {name} has values that are negative or not finite")
    return values.astype(np.float64)


def _means(path: Path, name: str, means: NDArray[np.float64]) -> NDArray[np.float32]:
    if means.size and means.max() > np.finfo(np.float32).max:
        raise FileFormatError(f"{path}: {name} has means beyond float32; its sums do not belong to its counts")
    return means.astype(np.float32)


def _known(path: Path, name: str, family: Family) -> str:
    known = hf_name(name, family)
    if known is None:
        raise FileFormatError(f"{path}: {name} has no place in a {family.model_type} model; it is another model's")
    return known
