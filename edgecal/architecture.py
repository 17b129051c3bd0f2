"""What a model of a given configuration consists of: its tensors, the modules that adapters address, the base's facts.

Everything that compares files with a model asks here, whether the weights are loaded or not. Commands that only look at
adapters open the checkpoint, read its configuration and leave the weights where they are (`Architecture.of`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecal_weights.checkpoint import Checkpoint

from .config import ModelConfig
from .errors import FileFormatError


@dataclass(frozen=True)
class Architecture:
    """A model without its weights. `shapes`: (d, k) by module path, layer by layer; `facts`: see `base_facts`."""

    config: ModelConfig
    shapes: dict[str, tuple[int, int]]
    facts: dict[str, Any]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Architecture:
        """Raises UnsupportedModelError, or FileFormatError when the checkpoint lacks a tensor."""
        config = ModelConfig.from_dict(checkpoint.config)
        check_tensors(checkpoint, config)
        return cls(config, linear_shapes(config), base_facts(config))


def base_facts(config: ModelConfig) -> dict[str, Any]:
    """What a calibration says of the base that it was trained on, by the names of config.json."""
    return {
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "vocab_size": config.vocab_size,
    }


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(d, k) of every module that an adapter may address, as `Model.linear_shapes` has them, without a model."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in expected_shapes(config).items()
        if name.startswith("model.layers.") and len(shape) == 2
    }


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a model of this configuration has, with their shapes."""
    c = config
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}

    def linear(name: str, d: int, k: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (d, k)
        if bias:
            shapes[f"{name}.bias"] = (d,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (c.hidden_size,)
        if c.layer_norm:
            shapes[f"{name}.bias"] = (c.hidden_size,)

    for i in range(c.n_layers):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm")
        linear(f"{layer}.self_attn.q_proj", q, c.hidden_size, c.qkv_bias)
        linear(f"{layer}.self_attn.k_proj", kv, c.hidden_size, c.qkv_bias)
        linear(f"{layer}.self_attn.v_proj", kv, c.hidden_size, c.qkv_bias)
        linear(f"{layer}.self_attn.o_proj", c.hidden_size, q, c.o_bias)
        norm(f"{layer}.post_attention_layernorm")
        linear(f"{layer}.mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias)
        linear(f"{layer}.mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias)
        linear(f"{layer}.mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias)
    norm("model.norm")
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
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
