"""From a checkpoint to a Model: which weight takes which form in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np

from edgecal_kernels.quant import FORMATS, Array, QuantizedTensor
from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.quantizer import pack_tensor, plan

from .config import ModelConfig
from .errors import FileFormatError, OptionError
from .model import Model

WEIGHTS = ("auto", "fp32", *FORMATS)


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


def load_model(
    checkpoint: Checkpoint,
    config: ModelConfig,
    ops: ModuleType,
    *,
    weights: str = "auto",
    group_size: int = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> Model:
    """Read every weight in the asked form; see `Engine.load` for `weights`. `progress` counts weights.

    Raises OptionError for an unknown form, FileFormatError for missing, misshapen or non-finite tensors.
    """
    if weights not in WEIGHTS:
        raise OptionError(f"weights {weights!r} is not known; choose one of {', '.join(WEIGHTS)}")
    check_tensors(checkpoint, config)
    shapes = expected_shapes(config)
    total, done = sum(math.prod(shape) for shape in shapes.values()), 0
    decisions = {} if weights == "fp32" else {d.name: d for d in plan(checkpoint, weights, group_size)}

    def load(name: str) -> QuantizedTensor | Array:
        nonlocal done
        if progress is not None:
            progress(done, total, name)
            done += math.prod(shapes[name])
        if name in decisions:
            return pack_tensor(checkpoint, decisions[name])
        value = checkpoint.read(name)
        if not np.isfinite(value).all():
            place = np.argwhere(~np.isfinite(value))[0].tolist()
            raise FileFormatError(f"{checkpoint.path}: {name} is not finite at {place}; fetch the checkpoint again")
        return value

    model = Model(config, load, ops)
    if progress is not None:
        progress(total, total, "")
    return model
