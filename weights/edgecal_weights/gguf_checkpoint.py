"""A GGUF model, seen as if it were a Hugging Face checkpoint.

Three things differ beyond names. Shapes are stored fastest dimension first. A head that shares the
embedding is not stored at all. And for Llama (`Family.gguf_pairs_rows`), the converter reorders the rows of
q_proj and k_proj within each head, because llama.cpp rotates neighbouring pairs (0, 1), (2, 3) ... where
Hugging Face rotates (0, h/2), (1, h/2 + 1) ...: row 2i + j of a head of h rows is Hugging Face's row
i + j * h/2. Rows are whole runs of blocks, so the order is restored on the stored bytes, before decoding, and
costs no rounding.

Large files come in parts "name-00001-of-00003.gguf"; opening any part opens all of them, and the first has
the metadata.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.errors import QuantizationError
from edgecal_kernels.quant import STEP, TILE_ROWS, QuantizedTensor, packed_shapes

from . import gguf_blocks
from .binary_file import check_rows
from .checkpoint import Checkpoint, Fidelity
from .errors import FileFormatError, ModelNotFoundError, UnsupportedModelError
from .file_kind import PART_NAME
from .gguf_config import ROPE_FACTORS, family_of, hf_name, model_config
from .gguf_file import GGUFFile, GGUFTensor
from .gguf_special_tokens import SpecialTokens

if TYPE_CHECKING:
    from .tokenizer_backend import Tokenizer

_MAX_PARTS = 256
_BLOCK_WEIGHTS = 1 << 18  # decoded at once
# How to sample, in llama.cpp's words and in those of generation_config.json
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
# Buffers of old converters that follow from the configuration.
_COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd|blk\.\d+\.attn\.rot_embd|rope\.freqs")


class GGUFCheckpoint(Checkpoint):
    """Raises ModelNotFoundError, FileFormatError or UnsupportedModelError."""

    kind = "gguf"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files: list[GGUFFile] = []
        try:
            self._open_parts()
            self.metadata = self._files[0].metadata
            self.family = family_of(self.metadata, self.path)  # before the tensors, whose names depend on it
            self._place = self._names()
            self.config = model_config(
                self.metadata,
                self.path,
                {name: tensor.shape for name, (_, tensor) in self._place.items()},
                self._rope_factors(),
            )
            self._heads = self._permuted_heads()
        except BaseException:
            self.close()
            raise

    def _open_parts(self) -> None:
        first = GGUFFile(self.path)
        self._files.append(first)
        n_parts = first.metadata.get("split.count", 1)
        if type(n_parts) is not int or not 0 <= n_parts <= _MAX_PARTS:
            raise FileFormatError(f"{self.path}: split.count is {n_parts!r}")
        if n_parts <= 1:
            return
        match = PART_NAME.fullmatch(self.path.name)
        if match is None or int(match[3]) != n_parts:
            raise FileFormatError(
                f"{self.path} is one of {n_parts} parts of a model; they are found by their names, which "
                f"must end in -00001-of-{n_parts:05}.gguf and so on"
            )
        paths = [
            self.path.with_name(f"{match[1]}-{i:05}-of-{n_parts:05}{match[4]}") for i in range(1, n_parts + 1)
        ]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise ModelNotFoundError(
                f"{self.path} is one of {n_parts} parts of a model; missing beside it: {', '.join(missing)}"
            )
        self.close()
        self._files.clear()
        for number, path in enumerate(paths):
            part = GGUFFile(path)
            self._files.append(part)
            if part.metadata.get("split.no") != number or part.metadata.get("split.count") != n_parts:
                raise FileFormatError(f"{path} is not part {number + 1} of {n_parts}, as its name says")
        total = sum(len(part.tensors) for part in self._files)
        expected = self._files[0].metadata.get("split.tensors.count", total)
        if total != expected:
            raise FileFormatError(f"the parts of {self.path} hold {total} tensors, expected {expected}")

    def _names(self) -> dict[str, tuple[GGUFFile, GGUFTensor]]:
        place: dict[str, tuple[GGUFFile, GGUFTensor]] = {}
        for file in self._files:
            for tensor in file.tensors.values():
                if tensor.name == ROPE_FACTORS or _COMPUTED.match(tensor.name):
                    continue
                name = hf_name(tensor.name, self.family)
                if name is None:
                    raise UnsupportedModelError(
                        f"{file.path}: tensor {tensor.name!r} has no place in a "
                        f"{self.metadata['general.architecture']} model as edgecal knows it"
                    )
                if name in place:
                    raise FileFormatError(f"two parts of {self.path} hold the tensor {tensor.name!r}")
                if tensor.type not in gguf_blocks.DECODED_TYPES:
                    raise UnsupportedModelError(
                        f"{file.path}: {tensor.name} is stored as {tensor.type}; edgecal reads "
                        f"{', '.join(gguf_blocks.DECODED_TYPES)}. Take another quantization of the model"
                    )
                place[name] = file, tensor
        return place

    def _rope_factors(self) -> list[float] | None:
        for file in self._files:
            tensor = file.tensors.get(ROPE_FACTORS)
            if tensor is not None:
                if tensor.type != "F32" or len(tensor.shape) != 1:
                    raise FileFormatError(
                        f"{file.path}: {ROPE_FACTORS} is {tensor.type} {tensor.shape}, expected F32"
                    )
                if tensor.nbytes > 1 << 16:
                    raise FileFormatError(f"{file.path}: {ROPE_FACTORS} has {tensor.shape[0]} factors")
                return file.raw_rows(ROPE_FACTORS, 0, 1).view("<f4")[0].tolist()
        return None

    def _permuted_heads(self) -> dict[str, int]:
        """{tensor whose rows are reordered: its number of heads}."""
        if not self.family.gguf_pairs_rows:
            return {}
        head_dim = self.config["head_dim"]
        if head_dim % 2:
            raise FileFormatError(f"{self.path}: a head of {head_dim} dimensions cannot be rotated in pairs")
        heads = {}
        for name, (file, tensor) in self._place.items():
            module = name.rpartition(".")[0]
            if not module.endswith((".q_proj", ".k_proj")):
                continue
            n = self.config["num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"]
            if tensor.shape[0] != n * head_dim:
                raise FileFormatError(
                    f"{file.path}: {tensor.name} has {tensor.shape[0]} rows, expected {n} heads of {head_dim}"
                )
            heads[name] = n
        return heads

    @cached_property
    def generation_config(self) -> dict[str, Any]:  # type: ignore[override]
        """Looked up when asked for: a vocabulary that is broken does not stand in the way of the tensors."""
        config = {f"{name}_token_id": self.config.get(f"{name}_token_id") for name in ("bos", "pad")}
        if "tokenizer.ggml.tokens" in self.metadata:
            config["eos_token_id"] = self._special.ends() or None
        sampling = {name: self.metadata.get(f"general.sampling.{key}") for key, name in _SAMPLING.items()}
        if any(value is not None for value in sampling.values()):
            sampling["do_sample"] = True  # llama.cpp always samples, greedily at temperature 0
        return {key: value for key, value in {**config, **sampling}.items() if value is not None}

    def _find(self, name: str) -> tuple[GGUFFile, GGUFTensor]:
        try:
            return self._place[name]
        except KeyError:
            raise FileFormatError(f"{self.path} has no tensor for {name}") from None

    def weight_files(self) -> list[Path]:
        return [file.path for file in self._files]

    def names(self) -> list[str]:
        return list(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name)[1].shape

    def stored_type(self, name: str) -> str:
        return self._find(name)[1].type

    def tensor_bytes(self) -> int:
        return sum(tensor.nbytes for _, tensor in self._place.values())

    def _raw_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Stored bytes (rows, bytes per row) of a matrix's rows in Hugging Face's order."""
        file, tensor = self._find(name)
        n_heads = self._heads.get(name)
        if n_heads is None or start == stop:
            return file.raw_rows(tensor.name, start, stop)
        # The rows asked for are spread over their heads, so whole heads are read.
        head_dim = tensor.shape[0] // n_heads
        first = start // head_dim * head_dim
        last = -(-stop // head_dim) * head_dim
        pairs = file.raw_rows(tensor.name, first, last).reshape(-1, head_dim // 2, 2, tensor.row_bytes)
        restored = pairs.swapaxes(1, 2).reshape(-1, tensor.row_bytes)
        return restored[start - first : stop - first]

    def _vector(self, name: str) -> NDArray[np.float32]:
        file, tensor = self._find(name)
        values = gguf_blocks.dequantize(file.raw_rows(tensor.name, 0, 1), tensor.type)[0]
        n_heads = self._heads.get(name)
        if n_heads is None:
            return values
        return np.ascontiguousarray(values.reshape(n_heads, -1, 2).swapaxes(1, 2)).reshape(-1)

    def read(self, name: str) -> NDArray[np.float32]:
        shape = self.shape(name)
        return self.read_rows(name, 0, shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        _, tensor = self._find(name)
        check_rows(self.path, name, tensor.shape, start, stop)
        if len(tensor.shape) == 1:
            return self._vector(name)[start:stop].copy()
        if len(tensor.shape) != 2:
            raise FileFormatError(
                f"{self.path}: {tensor.name} has the shape {tensor.shape}, expected a matrix"
            )
        out = np.empty((stop - start, tensor.shape[1]), np.float32)
        step = max(1, _BLOCK_WEIGHTS // tensor.shape[1])
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            out[begin - start : end - start] = gguf_blocks.dequantize(
                self._raw_rows(name, begin, end), tensor.type
            )
        return out

    def counterpart(self, name: str) -> tuple[str, Fidelity] | None:
        _, tensor = self._find(name)
        return gguf_blocks.COUNTERPARTS.get(tensor.type) if len(tensor.shape) == 2 else None

    def packed(self, name: str) -> QuantizedTensor:
        """Converted a block of rows at a time: memory stays near the size of the result."""
        counterpart = self.counterpart(name)
        if counterpart is None:
            return super().packed(name)
        file, tensor = self._find(name)
        d, k = tensor.shape
        layout = packed_shapes(counterpart[0], (d, k), STEP)
        arrays = {key: np.empty(shape, dtype) for key, (dtype, shape) in layout.items()}
        step = max(TILE_ROWS, _BLOCK_WEIGHTS // k // TILE_ROWS * TILE_ROWS)
        packed = None
        for begin in range(0, d, step):
            try:
                packed = gguf_blocks.pack(self._raw_rows(name, begin, min(begin + step, d)), tensor.type)
            except QuantizationError as error:
                raise FileFormatError(f"{file.path}: {tensor.name}: {error}") from error
            tiles = slice(begin // TILE_ROWS, begin // TILE_ROWS + packed.n_tiles)
            for key, array in arrays.items():
                array[tiles] = getattr(packed, key)
        assert packed is not None  # d >= 1: the parser refuses empty dimensions
        return QuantizedTensor(packed.format, (d, k), STEP, **arrays)

    def tokenizer(self) -> Tokenizer:
        from .gguf_tokenizer import build_tokenizer

        return build_tokenizer(self.metadata, self.path, lambda: self._special)

    def tokenizer_config(self) -> dict[str, Any]:
        return self._special.config()

    @cached_property
    def _special(self) -> SpecialTokens:
        """Read once: a vocabulary is a hundred thousand texts."""
        return SpecialTokens(self.metadata, self.path)

    def close(self) -> None:
        for file in self._files:
            file.close()
