"""The model families that edgecal serves: one short file each, and everything that differs between families reads it.

`edgecal.config`, the model, the compiled decoder, the readers of Hugging Face directories and GGUF files and the tests
take a family's spelling and structure from its `Family`; none of them asks for a name. docs/extending.md says how to
add one.
"""

from __future__ import annotations

from .family import LINEARS, OUTSIDE, Family
from .gemma3_text import GEMMA3_TEXT
from .llama import LLAMA
from .mistral import MISTRAL
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .stablelm import STABLELM

__all__ = ["BY_ARCHITECTURE", "FAMILIES", "LINEARS", "OUTSIDE", "Family"]

FAMILIES: dict[str, Family] = {f.model_type: f for f in (LLAMA, QWEN2, QWEN3, MISTRAL, STABLELM, GEMMA3_TEXT)}
"""By `model_type` of config.json."""
BY_ARCHITECTURE: dict[str, Family] = {f.gguf_architecture: f for f in FAMILIES.values() if f.gguf_architecture}
"""By `general.architecture` of a GGUF file."""
