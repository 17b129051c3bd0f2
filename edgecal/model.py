"""The transformer: attention, MLP, layer, model. One file that reads top to bottom like the paper.

Llama, Qwen2 and StableLM-2 are the same decoder with a few options: biases on Q, K and V, LayerNorm in the place of
RMSNorm, rope on a part of the head only, a scaled rope, a tied head. The options are fields of ModelConfig.

Everything here is float32 between the layers; what a weight is made of is Linear's business. An adapter is passed down
to every Linear and belongs to the request, not to the model: one model serves any number of recipes.

Shape letters: T new tokens, S cached length, D hidden_size, H n_heads, K n_kv_heads, F intermediate_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.decoder_weights import DecoderWeights
from edgecal_kernels.quant import Array, QuantizedTensor

from .adapters.lora import CompiledAdapter, CompiledPair
from .cache import KVCache
from .config import ModelConfig
from .linear import Linear

Weights = Callable[[str], "QuantizedTensor | Array"]  # tensor name -> weight, quantized or float32


class Norm:
    """RMSNorm, or LayerNorm when there is a bias."""

    def __init__(self, weight: Array, bias: Array | None, eps: float, ops: ModuleType) -> None:
        self.weight, self.bias, self.eps, self.ops = weight, bias, eps, ops

    def __call__(self, x: Array) -> Array:
        if self.bias is None:
            return self.ops.rms_norm(x, self.weight, self.eps)
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention:
    def __init__(self, build: Builder, layer: int) -> None:
        config, prefix = build.config, f"model.layers.{layer}.self_attn"
        self.layer, self.config, self.ops = layer, config, build.ops
        self.q_proj = build.linear(f"{prefix}.q_proj", bias=config.qkv_bias)
        self.k_proj = build.linear(f"{prefix}.k_proj", bias=config.qkv_bias)
        self.v_proj = build.linear(f"{prefix}.v_proj", bias=config.qkv_bias)
        self.o_proj = build.linear(f"{prefix}.o_proj", bias=config.o_bias)

    def __call__(self, x: Array, rope: tuple[Array, Array], cache: KVCache, adapter: CompiledAdapter | None) -> Array:
        c, inputs = self.config, self.ops.Activations(x)
        n_tokens = len(x)
        q = self.q_proj(inputs, adapter).reshape(n_tokens, c.n_heads, c.head_dim)
        k = self.k_proj(inputs, adapter).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        v = self.v_proj(inputs, adapter).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        self.ops.rope(q, *rope)
        self.ops.rope(k, *rope)
        keys, values = cache.write(self.layer, k, v)
        mixed = self.ops.attention(q, keys, values, cache.length)  # (T, H * head_dim)
        return self.o_proj(self.ops.Activations(mixed), adapter)


class MLP:
    def __init__(self, build: Builder, layer: int) -> None:
        prefix, bias = f"model.layers.{layer}.mlp", build.config.mlp_bias
        self.ops = build.ops
        self.gate_proj = build.linear(f"{prefix}.gate_proj", bias=bias)
        self.up_proj = build.linear(f"{prefix}.up_proj", bias=bias)
        self.down_proj = build.linear(f"{prefix}.down_proj", bias=bias)

    def __call__(self, x: Array, adapter: CompiledAdapter | None) -> Array:
        inputs = self.ops.Activations(x)
        hidden = self.ops.swiglu(self.gate_proj(inputs, adapter), self.up_proj(inputs, adapter))  # (T, F)
        return self.down_proj(self.ops.Activations(hidden), adapter)


class Layer:
    def __init__(self, build: Builder, layer: int) -> None:
        prefix = f"model.layers.{layer}"
        self.input_layernorm = build.norm(f"{prefix}.input_layernorm")
        self.attention = Attention(build, layer)
        self.post_attention_layernorm = build.norm(f"{prefix}.post_attention_layernorm")
        self.mlp = MLP(build, layer)

    def __call__(self, x: Array, rope: tuple[Array, Array], cache: KVCache, adapter: CompiledAdapter | None) -> Array:
        x = x + self.attention(self.input_layernorm(x), rope, cache, adapter)
        return x + self.mlp(self.post_attention_layernorm(x), adapter)


class Builder:
    """Makes the parts of a model from named weights."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: ModuleType) -> None:
        self.config, self.weights, self.ops = config, weights, ops
        self.linears: dict[str, Linear] = {}

    def dense(self, name: str) -> Array:
        weight = self.weights(name)
        assert isinstance(weight, np.ndarray), f"{name} is a vector and is never quantized"
        return weight

    def linear(self, name: str, *, bias: bool) -> Linear:
        linear = Linear(
            name, self.weights(f"{name}.weight"), self.dense(f"{name}.bias") if bias else None, ops=self.ops
        )
        self.linears[name] = linear
        return linear

    def norm(self, name: str) -> Norm:
        bias = self.dense(f"{name}.bias") if self.config.layer_norm else None
        return Norm(self.dense(f"{name}.weight"), bias, self.config.norm_eps, self.ops)


class Model:
    """A decoder: token ids in, logits out, keys and values kept in a KVCache that the caller owns."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: ModuleType) -> None:
        build = Builder(config, weights, ops)
        self.config, self.ops = config, ops
        self.embed_tokens = weights("model.embed_tokens.weight")
        self.layers = [Layer(build, i) for i in range(config.n_layers)]
        self.norm = build.norm("model.norm")
        head = self.embed_tokens if config.tie_word_embeddings else weights("lm_head.weight")
        self.lm_head = Linear("lm_head", head, ops=ops)
        self.linears = build.linears
        self._decoder = ops.build_decoder(self._decoder_weights())
        self._inverse_frequencies = config.inverse_frequencies()

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(d, k) of every module that an adapter may address."""
        return {name: linear.shape for name, linear in self.linears.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory; a tied head counts once."""
        heads = [self.embed_tokens] if self.config.tie_word_embeddings else [self.embed_tokens, self.lm_head.weight]
        biases = [linear.bias for linear in self.linears.values() if linear.bias is not None]
        norms = [self.norm, *(n for a in self.layers for n in (a.input_layernorm, a.post_attention_layernorm))]
        vectors = [v for n in norms for v in (n.weight, n.bias) if v is not None]
        return sum(w.nbytes for w in (*heads, *biases, *vectors, *(m.weight for m in self.linears.values())))

    def rope_table(self, start: int, n_tokens: int) -> tuple[Array, Array]:
        """cos and sin, float32 (T, rotary_dim / 2), of positions start .. start + T - 1."""
        positions = np.arange(start, start + n_tokens, dtype=np.float32)
        angles = positions[:, None] * self._inverse_frequencies
        return np.cos(angles), np.sin(angles)

    def forward(
        self,
        ids: NDArray[np.integer],
        cache: KVCache,
        adapter: CompiledAdapter | None = None,
        *,
        all_logits: bool = False,
    ) -> Array:
        """Run T new tokens (T,) after what the cache holds; float32 logits (V,) of the last, or (T, V) of all.

        The cache is longer by T afterwards. If the step is interrupted the cache keeps its length.
        """
        n_tokens = len(ids)
        cache.reserve(cache.length + n_tokens)
        rope = self.rope_table(cache.length, n_tokens)
        x = self.ops.embed(self.embed_tokens, ids)  # (T, D)
        if n_tokens == 1 and self._decoder is not None and cache.dtype == "fp16":
            return self._decode(x[0], rope, cache, adapter, all_logits)
        for layer in self.layers:
            x = layer(x, rope, cache, adapter)
        cache.advance(n_tokens)
        if not all_logits:
            x = x[-1:]
        logits = self.lm_head(self.ops.Activations(self.norm(x)), None)
        return logits if all_logits else logits[0]

    # ------------------------------------------------------------- one token at once: the same arithmetic, compiled

    def _decode(
        self, x: Array, rope: tuple[Array, Array], cache: KVCache, adapter: CompiledAdapter | None, all_logits: bool
    ) -> Array:
        assert self._decoder is not None
        cos, sin = rope
        logits: Array = self._decoder(
            x, cache.keys, cache.values, cache.length, cos[0], sin[0], adapter, lambda: self._decoder_pairs(adapter)
        )
        cache.advance(1)
        return logits[None] if all_logits else logits

    def _decoder_pairs(self, adapter: CompiledAdapter | None) -> list[CompiledPair | None]:
        return [None if adapter is None else adapter.pairs.get(name) for name in self.linears]

    def _decoder_weights(self) -> DecoderWeights:
        c = self.config
        parts = list(self.linears.values())  # seven per layer, in the order in which Attention and MLP make them
        norms = [n for layer in self.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
        norms.append(self.norm)
        biases = [n.bias for n in norms if n.bias is not None]
        return DecoderWeights(
            layers=[[(m.weight, m.bias) for m in parts[i : i + 7]] for i in range(0, len(parts), 7)],
            head=self.lm_head.weight,
            norms=np.stack([n.weight for n in norms]),
            norm_biases=np.stack(biases) if biases else None,
            eps=c.norm_eps,
            n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
        )
