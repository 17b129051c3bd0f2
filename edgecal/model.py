"""The transformer: attention, MLP, layer, model. One file that reads top to bottom like the paper.

Llama, Qwen2 and StableLM-2 are the same decoder with a few options: biases on Q, K and V, LayerNorm in the place of
RMSNorm, rope on a part of the head only, a scaled rope, a tied head. The options are fields of ModelConfig.

Everything here is float32 between the layers; what a weight is made of is Linear's business. An adapter is passed down
to every Linear and belongs to the request, not to the model: one model serves any number of recipes.

Shape letters: T new tokens, S cached length, D hidden_size, H n_heads, K n_kv_heads, F intermediate_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.clock import ATTENTION, DOWN, EMBED, GATE_UP, HEAD, NORM, OUTPUT, QKV, ROPE, Clock
from edgecal_kernels.decoder_weights import DecoderWeights, Place
from edgecal_kernels.quant import Array, QuantizedTensor

from .adapters.compiled import CompiledAdapter, Pack, RunningAdapter, RunningPair, run_form
from .cache import BLOCK, KVCache
from .config import ModelConfig
from .errors import PromptError
from .linear import Linear

Adapter = CompiledAdapter | RunningAdapter
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
        self.layer, self.config, self.ops, self.clock = layer, config, build.ops, build.clock
        self.q_proj = build.linear(f"{prefix}.q_proj", QKV, bias=config.qkv_bias)
        self.k_proj = build.linear(f"{prefix}.k_proj", QKV, bias=config.qkv_bias)
        self.v_proj = build.linear(f"{prefix}.v_proj", QKV, bias=config.qkv_bias)
        self.o_proj = build.linear(f"{prefix}.o_proj", OUTPUT, bias=config.o_bias)

    def __call__(self, x: Array, rope: tuple[Array, Array], cache: KVCache, adapter: RunningAdapter | None) -> Array:
        c, inputs = self.config, self.ops.Activations(x)
        n_tokens = len(x)
        q = self.q_proj(inputs, adapter).reshape(n_tokens, c.n_heads, c.head_dim)
        k = self.k_proj(inputs, adapter).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        v = self.v_proj(inputs, adapter).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        self.ops.rope(q, *rope)
        self.ops.rope(k, *rope)
        self.ops.remember(cache.cached, self.layer, cache.length, k, v)
        self.clock.mark(ROPE)
        mixed = self.ops.attention(q, cache.cached, self.layer, cache.length)  # (T, H * head_dim)
        self.clock.mark(ATTENTION)
        return self.o_proj(self.ops.Activations(mixed), adapter)


class MLP:
    def __init__(self, build: Builder, layer: int) -> None:
        prefix, bias = f"model.layers.{layer}.mlp", build.config.mlp_bias
        self.ops, self.clock = build.ops, build.clock
        self.gate_proj = build.linear(f"{prefix}.gate_proj", GATE_UP, bias=bias)
        self.up_proj = build.linear(f"{prefix}.up_proj", GATE_UP, bias=bias)
        self.down_proj = build.linear(f"{prefix}.down_proj", DOWN, bias=bias)

    def __call__(self, x: Array, adapter: RunningAdapter | None) -> Array:
        inputs = self.ops.Activations(x)
        hidden = self.ops.swiglu(self.gate_proj(inputs, adapter), self.up_proj(inputs, adapter))  # (T, F)
        self.clock.mark(GATE_UP)
        return self.down_proj(self.ops.Activations(hidden), adapter)


class Layer:
    def __init__(self, build: Builder, layer: int) -> None:
        prefix = f"model.layers.{layer}"
        self.clock = build.clock
        self.input_layernorm = build.norm(f"{prefix}.input_layernorm")
        self.attention = Attention(build, layer)
        self.post_attention_layernorm = build.norm(f"{prefix}.post_attention_layernorm")
        self.mlp = MLP(build, layer)

    def __call__(self, x: Array, rope: tuple[Array, Array], cache: KVCache, adapter: RunningAdapter | None) -> Array:
        normed = self.input_layernorm(x)
        self.clock.mark(NORM)
        x = x + self.attention(normed, rope, cache, adapter)
        self.clock.mark(OUTPUT)
        normed = self.post_attention_layernorm(x)
        self.clock.mark(NORM)
        x = x + self.mlp(normed, adapter)
        self.clock.mark(DOWN)
        return x


class Builder:
    """Makes the parts of a model from named weights."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: ModuleType) -> None:
        self.config, self.weights, self.ops, self.clock = config, weights, ops, Clock()
        self.linears: dict[str, Linear] = {}

    def dense(self, name: str) -> Array:
        weight = self.weights(name)
        assert isinstance(weight, np.ndarray), f"{name} is a vector and is never quantized"
        return weight

    def linear(self, name: str, part: int, *, bias: bool) -> Linear:
        weight = self.weights(f"{name}.weight")
        bias_vector = self.dense(f"{name}.bias") if bias else None
        linear = Linear(name, weight, bias_vector, ops=self.ops, clock=self.clock, part=part)
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
        self.clock = build.clock  # where forward passes spend their time, while it runs
        self.embed_tokens = weights("model.embed_tokens.weight")
        self.layers = [Layer(build, i) for i in range(config.n_layers)]
        self.norm = build.norm("model.norm")
        head = self.embed_tokens if config.tie_word_embeddings else weights("lm_head.weight")
        self.lm_head = Linear("lm_head", head, ops=ops, clock=self.clock, part=HEAD)
        self.linears = build.linears
        self._decoder = ops.build_decoder(self._decoder_weights())
        self._inverse_frequencies = config.inverse_frequencies()
        self._rope = (np.zeros((0, 0), np.float32),) * 2
        self._running: WeakKeyDictionary[CompiledAdapter, RunningAdapter] = WeakKeyDictionary()

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

    def run_form(self, adapter: Adapter | None) -> RunningAdapter | None:
        """The adapter as this model runs it: int8 pairs for modules with packed weights, float32 ones for others."""
        if adapter is None or isinstance(adapter, RunningAdapter):
            return adapter
        if adapter not in self._running:
            self._running[adapter] = run_form(adapter, self._packer)
        return self._running[adapter]

    def _packer(self, module: str) -> Pack | None:
        linear = self.linears.get(module)
        return self.ops.pack_int8 if linear is not None and isinstance(linear.weight, QuantizedTensor) else None

    def rope_table(self, n_positions: int) -> tuple[Array, Array]:
        """cos and sin, float32 (P, rotary_dim / 2), of positions 0 .. P - 1, P >= n_positions."""
        if len(self._rope[0]) < n_positions:
            positions = np.arange(-(-n_positions // BLOCK) * BLOCK, dtype=np.float32)
            angles = positions[:, None] * self._inverse_frequencies
            self._rope = np.cos(angles), np.sin(angles)
        return self._rope

    def forward(
        self,
        ids: NDArray[np.integer],
        cache: KVCache,
        adapter: Adapter | None = None,
        *,
        all_logits: bool = False,
    ) -> Array:
        """Run T new tokens (T,) after what the cache holds; float32 logits (V,) of the last, or (T, V) of all.

        The cache is longer by T afterwards. If the step is interrupted the cache keeps its length.
        """
        n_tokens = len(ids)
        self._check(ids)
        running = self.run_form(adapter)
        cache.reserve(cache.length + n_tokens)
        first_logit = 0 if all_logits else n_tokens - 1
        if self._steps(n_tokens, [cache]):
            positions = range(cache.length, cache.length + n_tokens)
            logits = self._step(ids.tolist(), [self._place(cache, pos, running) for pos in positions], first_logit)
        else:
            logits = self._forward(ids, cache, running, first_logit)
        cache.advance(n_tokens)
        return logits if all_logits else logits[0]

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], adapters: Sequence[Adapter | None] | None = None
    ) -> Array:
        """One new token for each of N sequences, each with its own cache and adapter; float32 logits (N, V).

        The same bits as N calls of `forward`; on the compiled back end the weights are read once for all of them. A
        cache may occur once. Interrupted, the caches keep their lengths.
        """
        self._check(ids)
        running = [self.run_form(adapter) for adapter in adapters or [None] * len(ids)]
        for cache in caches:
            cache.reserve(cache.length + 1)
        if self._decoder is not None and self._steps(1, caches):
            places = [self._place(cache, cache.length, a) for cache, a in zip(caches, running, strict=True)]
            most, tokens = self._decoder.MAX_ROWS, [int(token) for token in ids]
            starts = range(0, len(tokens), most)
            logits = [self._step(tokens[i : i + most], places[i : i + most], 0) for i in starts]
        else:
            alone = zip(np.asarray(ids, np.int64).reshape(-1, 1), caches, running, strict=True)
            logits = [self._forward(token, cache, adapter, 0) for token, cache, adapter in alone]
        for cache in caches:
            cache.advance(1)
        return np.concatenate(logits)

    def _check(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        low, high = (int(ids[0]),) * 2 if len(ids) == 1 else (int(np.min(ids)), int(np.max(ids)))
        if low < 0 or high >= self.config.vocab_size:
            token = low if low < 0 else high
            raise PromptError(f"token {token} is not in the model's vocabulary of {self.config.vocab_size}")

    def _forward(
        self, ids: NDArray[np.integer], cache: KVCache, adapter: RunningAdapter | None, first_logit: int
    ) -> Array:
        """Operation by operation; logits (T - first_logit, V)."""
        self.clock.start()
        span = slice(cache.length, cache.length + len(ids))
        cos, sin = self.rope_table(span.stop)
        rope = cos[span], sin[span]
        x = self.ops.embed(self.embed_tokens, ids)  # (T, D)
        self.clock.mark(EMBED)
        for layer in self.layers:
            x = layer(x, rope, cache, adapter)
        normed = self.norm(x[first_logit:])
        self.clock.mark(NORM)
        return self.lm_head(self.ops.Activations(normed), None)

    # ------------------------------------------------------------ a few tokens at once: the same arithmetic, compiled

    def _steps(self, n_tokens: int, caches: Sequence[KVCache]) -> bool:
        """Whether the decoder takes so many tokens with these caches."""
        fits = self._decoder is not None and n_tokens <= self._decoder.MAX_ROWS
        return fits and all(cache.dtype != "fp32" for cache in caches)

    def _step(self, ids: Sequence[int], places: Sequence[Place], first_logit: int) -> Array:
        assert self._decoder is not None
        rotation = self.rope_table(1 + max(place.pos for place in places))
        return self._decoder.step(ids, places, rotation, self.clock, first_logit)

    def _place(self, cache: KVCache, pos: int, adapter: RunningAdapter | None) -> Place:
        return Place(cache.cached, pos, adapter, partial(self._pairs, adapter))

    def _pairs(self, adapter: RunningAdapter | None) -> list[RunningPair | None]:
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
            embedding=self.embed_tokens,
            norms=np.stack([n.weight for n in norms]),
            norm_biases=np.stack(biases) if biases else None,
            eps=c.norm_eps,
            n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
        )
