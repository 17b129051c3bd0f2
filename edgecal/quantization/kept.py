"""What a calibrated quantization has done so far, on disk: after a kill, the same command goes on behind it.

A folder beside the target, `.NAME.calibrating`:

    state.json         what it was begun with: digests of source and text, and all options
    NNN.npz            the packed tensors of layer NNN (the head counts as the layer behind the last), and their errors
    NNN.hidden.npy     the text's hidden states in front of that layer, float32 (tokens, D): only the last is kept

Files grow under another name and are renamed, a layer's tensors before the hidden states behind it. So the number of
the hidden file says where to go on. A folder that was begun with anything else is emptied.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgecal_kernels.quant import Array, QuantizedTensor
from edgecal_weights.files import atomic_write, read_json, write_json
from edgecal_weights.packed import TensorSpec

from ..errors import EdgecalError, StorageError

_STATE = "state.json"
_LARGEST_STATE = 1 << 20
_ERRORS = "errors"


class KeptLayers:
    """The folder of a quantization that is under way for the packed directory `target`; `begun` describes it."""

    def __init__(self, target: Path, begun: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
        self.folder = target.with_name(f".{target.name[:40]}.calibrating")
        self._specs = specs
        self._files: dict[str, Path] = {}
        state = json.loads(json.dumps(begun))
        if self._state() != state:
            self.remove()
            try:
                self.folder.mkdir(parents=True)
            except OSError as error:
                raise StorageError(f"{self.folder} could not be made: {error.strerror}") from error
            write_json(self.folder / _STATE, state)
        found = sorted(self.folder.glob("*.hidden.npy"))
        self._hidden = found[-1] if found else None
        self.next_layer = int(found[-1].name.partition(".")[0]) if found else 0

    def _state(self) -> Any:
        try:
            return read_json(self.folder / _STATE, _LARGEST_STATE)
        except EdgecalError:  # none, or no JSON
            return None

    def hidden(self) -> Array | None:
        """The hidden states in front of `next_layer`; None at the beginning."""
        return None if self._hidden is None else np.load(self._hidden)

    def finish(
        self,
        tensors: Mapping[str, QuantizedTensor],
        errors: Mapping[str, tuple[float, float]],
        hidden: Array,
    ) -> None:
        """Keep what became of `next_layer`, and the hidden states behind it."""
        arrays: dict[str, Any] = {f"{name}:{part}": a for name, t in tensors.items() for part, a in t.arrays.items()}
        arrays |= {f"{name}:{_ERRORS}": np.array(error) for name, error in errors.items()}
        with atomic_write(self.folder / f"{self.next_layer:03}.npz") as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
        self.next_layer += 1
        behind = self.folder / f"{self.next_layer:03}.hidden.npy"
        with atomic_write(behind) as partial, partial.open("wb") as file:
            np.save(file, hidden)
        if self._hidden is not None:
            self._hidden.unlink(missing_ok=True)
        self._hidden = behind

    def errors(self) -> dict[str, tuple[float, float]]:
        """Of outputs, before and after, by the names of the tensors that are finished."""
        found = {}
        for file in sorted(self.folder.glob("*.npz")):
            with np.load(file) as arrays:
                for key in arrays.files:
                    name, _, part = key.rpartition(":")
                    if part == _ERRORS:
                        before, after = map(float, arrays[key])
                        found[name], self._files[name] = (before, after), file
        return found

    def tensor(self, name: str) -> QuantizedTensor | None:
        """One that `errors` has named, read now: all together would take the memory of the model. None for another."""
        if name not in self._files:
            return None
        spec = self._specs[name]
        with np.load(self._files[name]) as arrays:
            keys = [key.rpartition(":") for key in arrays.files]
            parts = {part: arrays[f"{name}:{part}"] for of, _, part in keys if of == name and part != _ERRORS}
        return QuantizedTensor(spec.format, (spec.shape[0], spec.shape[1]), spec.group_size, **parts)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
