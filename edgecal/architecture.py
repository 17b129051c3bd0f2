"""What a model of a given configuration consists of: its tensors, the modules that adapters address, the base's facts.

Everything that compares files with a model asks here, whether the weights are loaded or not. Commands that only look at
adapters open the checkpoint, read its configuration and leave the weights where they are (`Architecture.of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.families import LINEARS, OUTSIDE
from edgecal_weights.families.family import QK_NORMS
from edgecal_weights.lora_file import EMBEDDING, HEAD

from .config import ModelConfig
from .errors import FileFormatError


@dataclass(frozen=True)
class Architecture:
    """A model without its weights. `shapes`: see `adaptable_shapes`; `facts`: see `base_facts`."""

    config: ModelConfig
    shapes: dict[str, tuple[int, int]]
    facts: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Architecture:
        """Raises UnsupportedModelError, or FileFormatError when the checkpoint lacks a tensor."""
        config = ModelConfig.of(checkpoint)
        check_tensors(checkpoint, config)
        return cls(config, adaptable_shapes(config), base_facts(config))


def base_facts(config: ModelConfig) -> dict[str, Any]:
    """What files of adapters and calibrations say of their base, or need to know of it, by the names of config.json."""
    return {
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "vocab_size": config.vocab_size,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


_ATTENTION = ("attention_in", "q", "k", "v", "q_norm", "k_norm", "o", "attention_out")
_ROLES = (*_ATTENTION, "mlp_in", "gate", "up", "down", "mlp_out")


class Part(NamedTuple):
    """A linear module (shape (d, k)) or a norm (shape (n,)) by its Hugging Face name, without `.weight`."""

    name: str
    shape: tuple[int, ...]
    bias: bool


def layer_parts(config: ModelConfig, layer: int) -> dict[str, Part]:
    """By role, in the order in which a token meets them: the linear modules of `families.LINEARS`, and those norms
    that the family has (see `Family`)."""
    c, prefix = config, f"model.layers.{layer}"
    d, q, kv, f = c.hidden_size, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.intermediate_size
    shapes = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q), "gate": (f, d), "up": (f, d), "down": (d, f)}
    biases = dict.fromkeys("qkv", c.qkv_bias) | {"o": c.o_bias} | dict.fromkeys(("gate", "up", "down"), c.mlp_bias)
    parts = {role: Part(f"{prefix}.{name}", shapes[role], biases[role]) for role, (name, _) in LINEARS.items()}
    for role, (name, _) in c.spec.norms.items():
        parts[role] = Part(f"{prefix}.{name}", (c.head_dim if role in QK_NORMS else d,), c.layer_norm)
    return {role: parts[role] for role in _ROLES if role in parts}


def outer_parts(config: ModelConfig) -> dict[str, Part]:
    """Embedding, final norm, and the head unless it is the embedding."""
    table = (config.vocab_size, config.hidden_size)
    parts = {
        "embedding": Part(OUTSIDE["embedding"][0], table, False),
        "norm": Part(OUTSIDE["norm"][0], (config.hidden_size,), config.layer_norm),
    }
    return parts if config.tie_word_embeddings else {**parts, "head": Part(OUTSIDE["head"][0], table, False)}


def adaptable_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(d, k) of every module that an adapter may address, by path: the linear ones, layer by layer, between the
    embedding and the head. The embedding turns a token into a vector, so that its d is hidden_size and its k the
    vocabulary, the head the other way round; a tied head is a module of its own here, as in PEFT."""
    table = config.hidden_size, config.vocab_size
    return {EMBEDDING: table, **linear_shapes(config), HEAD: table[::-1]}


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(d, k) of the linear modules of all layers, by path, layer by layer."""
    shapes = {}
    for layer in range(config.n_layers):
        parts = layer_parts(config, layer)
        for role in LINEARS:
            d, k = parts[role].shape
            shapes[parts[role].name] = d, k
    return shapes


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this configuration has, with their shapes."""
    outer = outer_parts(config)
    layers = [part for layer in range(config.n_layers) for part in layer_parts(config, layer).values()]
    shapes: dict[str, tuple[int, ...]] = {}
    for part in (outer["embedding"], *layers, outer["norm"], *([outer["head"]] if "head" in outer else [])):
        shapes[f"{part.name}.weight"] = part.shape
        if part.bias:
            shapes[f"{part.name}.bias"] = part.shape[:1]
    return shapes


def check_tensors(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """FileFormatError unless the checkpoint has exactly the tensors of `config`, in their shapes.

    A tensor too many is an error as well: a bias that nothing adds would change every answer.
    """
    expected, present = expected_shapes(config), set(checkpoint.names())
    missing = [name for name in expected if name not in present]
    if missing:
        raise FileFormatError(
            f"{checkpoint.path}: {missing[0]} is missing{_and_more(missing)}; its config asks for it. "
            "The checkpoint is incomplete, or its config.json is another model's"
        )
    for name, shape in expected.items():
        if checkpoint.shape(name) != shape:
            raise FileFormatError(
                f"{checkpoint.path}: {name} has shape {checkpoint.shape(name)}, its config asks for {shape}"
            )
    # A tied checkpoint may carry its head, and old ones their rope table: neither says anything new
    harmless = ("lm_head.weight",) if config.tie_word_embeddings else ()
    extra = [n for n in present - set(expected) if n not in harmless and not n.endswith("rotary_emb.inv_freq")]
    if extra:
        raise FileFormatError(
            f"{checkpoint.path}: {min(extra)} has no place in a {config.family} model{_and_more(extra)}"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
