"""LoRA pairs as they were trained: one adapter, its pairs by module, read from its files when asked for.

A pair changes one linear module `h = W x`, W of (d, k), by dW = scaling * B @ A with A (r, k) and B (d, r)
(LoRA, arXiv 2106.09685). Methods take several `LoraPair`s of one module and give one `CompiledPair`, whose
scaling is folded into B. Everything is float32 once it is read, whatever the file holds: the merged factors
are compared with PyTorch's to seven digits.

`LoraAdapter.pairs` is a mapping that reads a module's factors when it is asked for them and keeps none. Hold
on to a pair while you use it, and do not loop over `pairs.values()` into a list unless you want the whole
adapter in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecal_weights.lora_file import LoraFile
from edgecal_weights.lora_formats import open_lora

from ..errors import AdapterError, RecipeError
from ..text.counted import counted
from .merge_kernels import Kernels, decoder

Array = NDArray[np.float32]
_LISTED = 3  # module names in one message
_BUFFER = 1 << 18  # bytes of a file that are converted at once


class LoraShape(NamedTuple):
    """dW is (d, k) of at most this rank."""

    d: int
    k: int
    rank: int


@dataclass(frozen=True, eq=False)
class LoraPair:
    """a float32 (r, k), b float32 (d, r); dW = scaling * b @ a."""

    a: Array
    b: Array
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.ndim != 2 or self.a.shape[0] != self.b.shape[1]:
            raise AdapterError(f"lora_a {self.a.shape} and lora_b {self.b.shape}: expected (r, k) and (d, r)")

    @property
    def shape(self) -> LoraShape:
        return LoraShape(self.b.shape[0], self.a.shape[1], self.a.shape[0])

    def delta(self) -> Array:
        """dW, float32 (d, k). For looking and testing; the engine never forms it."""
        return np.float32(self.scaling) * (self.b @ self.a)


class LoraAdapter:
    """One adapter: `pairs` by module path, e.g. "model.layers.0.self_attn.q_proj".

    `LoraAdapter.load` reads files of PEFT, llama.cpp and mlx-lm (`format` "PEFT", "GGUF", "MLX"); the constructor takes
    any mapping of pairs (arrays made in Python, `format` ""). `sha256` is that of the weights file, "" for an adapter
    that was not loaded from one. `identity` is equal for equal content, scalings included; an adapter made in Python is
    equal to itself only.
    """

    def __init__(
        self,
        name: str,
        pairs: Mapping[str, LoraPair],
        *,
        shapes: Mapping[str, LoraShape] | None = None,
        path: Path | None = None,
        sha256: str = "",
        base_model_name: str | None = None,
        nbytes: int | None = None,
        targets: Callable[[str], bool] | None = None,
        identity: Hashable = None,
        format: str = "",
    ) -> None:
        self.name = name
        self.pairs = pairs
        self.shapes = dict(shapes) if shapes is not None else {m: pair.shape for m, pair in pairs.items()}
        self.path = path
        self.sha256 = sha256
        self.format = format
        self.identity: Hashable = object() if identity is None else identity
        self.base_model_name = base_model_name
        self.n_parameters = sum(s.rank * (s.d + s.k) for s in self.shapes.values())
        self.nbytes = 4 * self.n_parameters if nbytes is None else nbytes
        self._targets = targets

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> LoraAdapter:
        """From a directory of PEFT or mlx-lm (or the .safetensors file in it), or a GGUF file of llama.cpp.

        The name defaults to the directory's or the GGUF's. The file stays open and must not be changed. Raises
        AdapterError or FileFormatError.
        """
        return cls._of(open_lora(path), name)

    @classmethod
    def _of(cls, file: LoraFile, name: str | None) -> LoraAdapter:
        return cls(
            name or file.name,
            _FilePairs(file),
            shapes={m: LoraShape(x.out_features, x.in_features, x.rank) for m, x in file.modules.items()},
            path=file.home,
            format=file.format,
            sha256=file.sha256,
            base_model_name=file.base_model_name,
            nbytes=sum(x.nbytes for x in file.modules.values()),
            targets=file.targets,
            identity=(file.sha256, tuple(sorted((m, x.scaling) for m, x in file.modules.items()))),
        )

    def on_base(self, base: Mapping[str, Any] | None) -> LoraAdapter:
        """This adapter as it is on a base of these facts (see `architecture.base_facts`; None: not known).

        Most formats have nothing to ask of it. A GGUF keeps rows of q and k in an order that depends on the base, and
        its pairs cannot be read before. AdapterError when it is for another base.
        """
        if not isinstance(self.pairs, _FilePairs) or base is None:
            return self
        file = self.pairs.file.on_base(base)
        return self if file is self.pairs.file else LoraAdapter._of(file, self.name)

    def pair(
        self, module: str, empty: Callable[[str, tuple[int, ...]], Array] | None = None, kernels: Kernels = None
    ) -> LoraPair:
        """`pairs[module]`; factors that have to be read go into `empty("a", shape)` and `empty("b", shape)`, so that a
        caller who needs them for a moment can give the same memory again and again. `kernels` convert them then."""
        if empty is None or not isinstance(self.pairs, _FilePairs):
            return self.pairs[module]
        d, k, rank = self.shapes[module]
        buffer = empty("raw", (_BUFFER // 4,)).view(np.uint8)
        return self.pairs.read(module, empty("a", (rank, k)), empty("b", (d, rank)), buffer, decoder(kernels))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The different ranks of its modules, ascending."""
        return tuple(sorted({shape.rank for shape in self.shapes.values()}))

    def check_against(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """AdapterError unless every pair has a module of its shape in the model's `shapes` ({path: (d, k)}).

        Also when the adapter's configuration asks for modules of the model that its file has nothing for.
        """
        unknown = [module for module in self.shapes if module not in shapes]
        if len(unknown) == len(self.shapes):
            raise AdapterError(
                f"adapter {self.name}{self._origin()} matches no module of this model: it changes "
                f"{_some(unknown)}; the model has {_some(list(shapes))}"
            )
        if unknown:
            raise AdapterError(
                f"adapter {self.name}{self._origin()}: {len(unknown)} of its {counted(len(self.shapes), 'module')} are "
                f"not in this model and would have no effect: {_some(unknown)}"
            )
        for module, (d, k, _rank) in self.shapes.items():
            if (d, k) != tuple(shapes[module]):
                raise AdapterError(
                    f"adapter {self.name}{self._origin()} is for another base: {module} is "
                    f"{tuple(shapes[module])} in this model and {(d, k)} in the adapter"
                )
        if self._targets is not None:
            absent = [module for module in shapes if module not in self.shapes and self._targets(module)]
            if absent:
                raise AdapterError(
                    f"adapter {self.name}{self._origin()}: its target_modules ask for {counted(len(absent), 'module')} "
                    f"that its file has no tensors for: {_some(absent)}; the file is incomplete"
                )

    def _origin(self) -> str:
        base = f", trained on {self.base_model_name}" if self.base_model_name else ""
        return f" ({self.path}{base})" if self.path else ""

    def __repr__(self) -> str:
        return f"LoraAdapter({self.name!r}, {counted(len(self.shapes), 'module')}, ranks {self.ranks})"


def find_adapter(name: str, adapters: Mapping[str, LoraAdapter]) -> LoraAdapter:
    """RecipeError for a name that is not loaded."""
    if name not in adapters:
        raise RecipeError(f"no adapter {name!r} is loaded; loaded: {', '.join(adapters) or 'none'}")
    return adapters[name]


class _FilePairs(Mapping[str, LoraPair]):
    def __init__(self, file: LoraFile) -> None:
        self.file = file

    def __getitem__(self, module: str) -> LoraPair:
        return self.read(module)

    def read(self, module: str, *into: Any) -> LoraPair:
        """`into` as LoraFile.read takes it."""
        return LoraPair(*self.file.read(module, *into), self.file.modules[module].scaling)

    def __contains__(self, module: object) -> bool:
        return module in self.file.modules

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.modules)

    def __len__(self) -> int:
        return len(self.file.modules)


def _some(modules: list[str]) -> str:
    rest = len(modules) - _LISTED
    return ", ".join(modules[:_LISTED]) + (f" and {rest} more" if rest > 0 else "") if modules else "none"
