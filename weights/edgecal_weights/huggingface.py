"""A Hugging Face model directory: config.json, safetensors in one file or many, tokenizer.json.

Shards are found through model.safetensors.index.json; the headers of all of them are read at the start, so
that a missing shard or a tensor that is not in the shard which the index names is an error before any work
is done. File names in the index come from strangers: only plain names inside the directory are followed.

Some irregularities of real checkpoints are smoothed out. Old ones store a buffer `rotary_emb.inv_freq` per
layer, which is computed, not learned: it is hidden. Ones that were saved from the bare model (without its
head) lack the prefix "model.": it is added. A head that the configuration ties to the embedding may be stored
all the same: one that differs is a head of its own, as in transformers 5. A checkpoint that was itself
quantized (GPTQ, AWQ, bitsandbytes ...) is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .errors import FileFormatError, ModelNotFoundError, UnsupportedModelError
from .file_kind import INDEX, MODEL_CONFIG, is_model_weights
from .hf_config import normalize_config, read_json
from .safetensors_file import SafetensorsFile

if TYPE_CHECKING:
    from .tokenizer_backend import Tokenizer

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPARED = 1 << 18  # numbers at a time
_SINGLE = "model.safetensors"


class HFCheckpoint(Checkpoint):
    """Opens every shard's header. Raises ModelNotFoundError, FileFormatError or UnsupportedModelError."""

    kind = "huggingface"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        config_path = self.path / MODEL_CONFIG
        self.config = normalize_config(read_json(config_path), config_path)
        self._refuse_quantized()
        self.generation_config = read_json(self.path / "generation_config.json", optional=True)
        self._shards: dict[str, SafetensorsFile] = {}
        try:
            located = self._locate()
        except BaseException:
            self.close()
            raise
        prefix = "" if "embed_tokens.weight" not in located else "model."
        self._place = {
            name if name == "lm_head.weight" else prefix + name: (shard, name)
            for name, shard in located.items()
            if not name.endswith("rotary_emb.inv_freq")
        }
        self._settle_head()

    def _settle_head(self) -> None:
        """Whether head and embedding are one. As in transformers 5 (`tie_weights`), the configuration decides unless
        the files hold both and they differ; where they hold one of the two, it serves as both. A configuration that
        does not say, whatever its family means by that, is of a head that equals the embedding, or of one of its own.
        """
        tied = self.config.setdefault("tie_word_embeddings", True)
        if not tied or _HEAD not in self._place:
            return
        if _EMBEDDING not in self._place:
            self._place[_EMBEDDING] = self._place.pop(_HEAD)
        elif not self._are_equal(_HEAD, _EMBEDDING):
            self.config["tie_word_embeddings"] = False

    def _are_equal(self, one: str, other: str) -> bool:
        shape = self.shape(one)
        if shape != self.shape(other) or not shape:
            return False
        step = max(1, _COMPARED // max(1, math.prod(shape[1:])))
        rows = [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
        return all(np.array_equal(self.read_rows(one, *block), self.read_rows(other, *block)) for block in rows)

    def _refuse_quantized(self) -> None:
        recipe = self.config.get("quantization_config")
        if recipe:
            method = recipe.get("quant_method", "unknown") if isinstance(recipe, dict) else recipe
            raise UnsupportedModelError(
                f"{self.path} was quantized with {method!r} (quantization_config in config.json), which "
                "edgecal does not read; use the original checkpoint, or a GGUF file"
            )

    def _locate(self) -> dict[str, SafetensorsFile]:
        """{name in the file: its shard}, every shard open and checked."""
        if (self.path / _SINGLE).exists() or not (self.path / INDEX).exists():
            shard = self._open(self._only_file())
            return dict.fromkeys(shard.names(), shard)
        index_path = self.path / INDEX
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FileFormatError(f"{index_path} has no weight_map")
        files = set()
        for name, file in weight_map.items():
            if not isinstance(file, str) or not _is_plain_name(file):
                raise FileFormatError(
                    f"{index_path}: {name} is said to lie in {file!r}, expected the plain name of a "
                    ".safetensors file"
                )
            files.add(file)
        missing = sorted(file for file in files if not (self.path / file).exists())
        if missing:
            raise ModelNotFoundError(
                f"{self.path} lacks {len(missing)} of {len(files)} shards: {', '.join(missing[:5])}"
                f"{' ...' if len(missing) > 5 else ''}; fetch them again"
            )
        for file in sorted(files):
            self._open(file)
        for name, file in weight_map.items():
            if name not in self._shards[file]:
                raise FileFormatError(f"{self.path / file} has no tensor {name}, which {INDEX} places there")
        return {name: self._shards[file] for name, file in weight_map.items()}

    def _only_file(self) -> str:
        if (self.path / _SINGLE).exists():
            return _SINGLE
        files = sorted(p.name for p in self.path.glob("*.safetensors") if is_model_weights(p.name))
        if not files:
            raise ModelNotFoundError(f"{self.path} has no {_SINGLE} and no {INDEX}")
        if len(files) > 1:
            raise ModelNotFoundError(
                f"{self.path} has {len(files)} safetensors files ({', '.join(files[:5])}) but no {INDEX} "
                "that says what is where"
            )
        return files[0]

    def _open(self, file: str) -> SafetensorsFile:
        self._shards[file] = SafetensorsFile(self.path / file)
        return self._shards[file]

    def _find(self, name: str) -> tuple[SafetensorsFile, str]:
        try:
            return self._place[name]
        except KeyError:
            raise FileFormatError(f"{self.path} has no tensor {name}") from None

    def weight_files(self) -> list[Path]:
        return [shard.path for shard in self._shards.values()]

    def names(self) -> list[str]:
        return list(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        shard, stored = self._find(name)
        return shard.shape(stored)

    def stored_type(self, name: str) -> str:
        shard, stored = self._find(name)
        return shard.dtype(stored)

    def read(self, name: str) -> NDArray[np.float32]:
        shard, stored = self._find(name)
        return shard.read(stored)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        shard, stored = self._find(name)
        return shard.read_rows(stored, start, stop)

    def tensor_bytes(self) -> int:
        return sum(shard.entry(stored).nbytes for shard, stored in self._place.values())

    def tokenizer(self) -> Tokenizer:
        from .hf_tokenizer import read_tokenizer

        advice = (
            "older models have only tokenizer.model; write a tokenizer.json once with transformers: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
        return read_tokenizer(self.path, self.config.get("vocab_size"), advice)

    def tokenizer_config(self) -> dict[str, Any]:
        from .hf_tokenizer import tokenizer_config

        return tokenizer_config(self.path)

    def close(self) -> None:
        for shard in self._shards.values():
            shard.close()


def _is_plain_name(file: str) -> bool:
    return file.endswith(".safetensors") and not file.startswith(".") and not set(file) & set("/\\:\0")
