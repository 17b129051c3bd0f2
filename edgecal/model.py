"""The transformer: attention, MLP, layer, model. One file that reads top to bottom like the paper.

The families are the same decoder with a few options: biases, LayerNorm in the place of RMSNorm, norms of queries and
keys or behind the halves of a layer, rope on a part of the head only, a scaled rope, sliding windows, another
activation, a scaled embedding, a tied head. The options are fields of ModelConfig, the parts of a layer are those that
`architecture.layer_parts` names; families have no code here.

Everything here is float32 between the layers; what a weight is made of is Linear's business. An adapter is passed down
to every Linear and belongs to the request, not to the model: one model serves any number of recipes.

Shape letters: T new tokens, S cached length, D hidden_size, H n_heads, K n_kv_heads, F intermediate_size, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgecal_kernels.clock import ATTENTION, DOWN, EMBED, GATE_UP, HEAD, NORM, OUTPUT, QKV, ROPE
from edgecal_kernels.decoder_weights import COMPONENTS, DecoderWeights, Place
from edgecal_kernels.dispatch import Backend
from edgecal_kernels.quant import Array, QuantizedTensor
from edgecal_weights.lora_file import EMBEDDING
from edgecal_weights.mapped_file import Watch, nothing_to_watch

from .adapters.compiled import CompiledAdapter, Pack, RunningAdapter, RunningPair, run_form
from .architecture import adaptable_shapes, layer_parts, outer_parts
from .builder import Builder, Norm, Weights
from .cache import BLOCK, KVCache
from .config import ModelConfig
from .errors import AdapterError, OptionError, PromptError
from .linear import Linear
from .observer import Forward, ForwardObserver
from .threads import choose_threads

Ropes = tuple[Array, Array]  # cos and sin, float32 (n_ropes, positions, rotary_dim / 2)


class Attention:
    def __init__(self, build: Builder, layer: int) -> None:
        self.layer, self.config, self.ops, self.clock = layer, build.config, build.ops, build.clock
        self.window, self.rope = build.config.windows[layer], build.config.ropes[layer]
        parts = layer_parts(build.config, layer)
        self.q_proj = build.linear(parts["q"], QKV)
        self.k_proj = build.linear(parts["k"], QKV)
        self.v_proj = build.linear(parts["v"], QKV)
        self.o_proj = build.linear(parts["o"], OUTPUT)
        self.q_norm = build.norm(parts["q_norm"]) if "q_norm" in parts else None
        self.k_norm = build.norm(parts["k_norm"]) if "k_norm" in parts else None

    def __call__(self, x: Array, rope: Ropes, cache: KVCache, adapter: RunningAdapter | None) -> Array:
        return self.o_proj(self.ops.Activations(self.mix(x, rope, cache, adapter)), adapter)

    def mix(self, x: Array, rope: Ropes, cache: KVCache, adapter: RunningAdapter | None) -> Array:
        """What attention gathers, float32 (T, H * head_dim): the inputs of o_proj."""
        c, inputs = self.config, self.ops.Activations(x)
        n_tokens = len(x)
        q = self.q_proj(inputs, adapter).reshape(n_tokens, c.n_heads, c.head_dim)
        k = self.k_proj(inputs, adapter).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        v = self.v_proj(inputs, adapter).reshape(n_tokens, c.n_kv_heads, c.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.reshape(-1, c.head_dim)).reshape(q.shape)
            k = self.k_norm(k.reshape(-1, c.head_dim)).reshape(k.shape)
        cos, sin = rope[0][self.rope], rope[1][self.rope]
        self.ops.rope(q, cos, sin)
        self.ops.rope(k, cos, sin)
        self.ops.remember(cache.cached, self.layer, cache.length, k, v)
        self.clock.mark(ROPE)
        mixed: Array = self.ops.attention(q, cache.cached, self.layer, cache.length, c.attention_scale, self.window)
        self.clock.mark(ATTENTION)
        return mixed


class MLP:
    def __init__(self, build: Builder, layer: int) -> None:
        self.ops, self.clock, self.activation = build.ops, build.clock, build.config.activation
        parts = layer_parts(build.config, layer)
        self.gate_proj = build.linear(parts["gate"], GATE_UP)
        self.up_proj = build.linear(parts["up"], GATE_UP)
        self.down_proj = build.linear(parts["down"], DOWN)

    def __call__(self, x: Array, adapter: RunningAdapter | None) -> Array:
        return self.down_proj(self.ops.Activations(self.widen(x, adapter)), adapter)

    def widen(self, x: Array, adapter: RunningAdapter | None) -> Array:
        """The gated values, float32 (T, F): the inputs of down_proj."""
        inputs = self.ops.Activations(x)
        gate, up = self.gate_proj(inputs, adapter), self.up_proj(inputs, adapter)
        hidden: Array = self.ops.gated(gate, up, self.activation)
        self.clock.mark(GATE_UP)
        return hidden


class Layer:
    """Attention, then MLP, each between norms: of what goes in, and in some families of what comes out."""

    def __init__(self, build: Builder, layer: int) -> None:
        parts = layer_parts(build.config, layer)
        self.clock = build.clock
        self.attention_in = build.norm(parts["attention_in"])
        self.attention = Attention(build, layer)
        self.attention_out = build.norm(parts["attention_out"]) if "attention_out" in parts else None
        self.mlp_in = build.norm(parts["mlp_in"])
        self.mlp = MLP(build, layer)
        self.mlp_out = build.norm(parts["mlp_out"]) if "mlp_out" in parts else None

    @property
    def norms(self) -> list[Norm]:
        """Of the residual stream, in order."""
        every = (self.attention_in, self.attention_out, self.mlp_in, self.mlp_out)
        return [norm for norm in every if norm is not None]

    def __call__(self, x: Array, rope: Ropes, cache: KVCache, adapter: RunningAdapter | None) -> Array:
        return self.transform(self.attend(x, rope, cache, adapter), adapter)

    def attend(self, x: Array, rope: Ropes, cache: KVCache, adapter: RunningAdapter | None) -> Array:
        """The first half: float32 (T, D) with what attention adds."""
        normed = self.attention_in(x)
        self.clock.mark(NORM)
        x = x + _through(self.attention_out, self.attention(normed, rope, cache, adapter))
        self.clock.mark(OUTPUT)
        return x

    def transform(self, x: Array, adapter: RunningAdapter | None) -> Array:
        """The second half: with what the MLP adds."""
        normed = self.mlp_in(x)
        self.clock.mark(NORM)
        x = x + _through(self.mlp_out, self.mlp(normed, adapter))
        self.clock.mark(DOWN)
        return x


def _through(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


def rope_table(inverse_frequencies: Array, n_positions: int) -> Ropes:
    """cos and sin, float32 (n_ropes, P, rotary_dim / 2), of positions 0 .. P - 1, P >= n_positions.

    `inverse_frequencies` are `ModelConfig.inverse_frequencies()`.
    """
    positions = np.arange(-(-n_positions // BLOCK) * BLOCK, dtype=np.float32)
    angles = positions[:, None] * inverse_frequencies[:, None]
    return np.cos(angles), np.sin(angles)


class Model:
    """A decoder: token ids in, logits out, keys and values kept in a KVCache that the caller owns."""

    def __init__(self, config: ModelConfig, weights: Weights, ops: Backend) -> None:
        build, outer = Builder(config, weights, ops), outer_parts(config)
        self.config, self.ops = config, ops
        self.clock = build.clock  # where forward passes spend their time, while it runs
        self.embed_tokens = build.weight(f"{outer['embedding'].name}.weight")
        self.layers = [Layer(build, i) for i in range(config.n_layers)]
        self.norm = build.norm(outer["norm"])
        head = build.weight(f"{outer['head'].name}.weight") if "head" in outer else self.embed_tokens
        self.lm_head = Linear("lm_head", head, ops=ops, clock=self.clock, part=HEAD)
        self.linears, self.arrays = build.linears, build.arrays
        self._decoder = ops.build_decoder(self._decoder_weights())
        self._inverse_frequencies = config.inverse_frequencies()
        self._rope = (np.zeros((1, 0, 0), np.float32),) * 2
        self.threads = choose_threads(ops.NAME)
        self.observer: ForwardObserver | None = None
        self.watch: Watch = nothing_to_watch  # of the files that weights lie in, before and behind every pass

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(d, k) of the linear modules of all layers."""
        return {name: linear.shape for name, linear in self.linears.items()}

    @property
    def adaptable_shapes(self) -> dict[str, tuple[int, int]]:
        """(d, k) of every module that an adapter may address: these, the embedding and the head."""
        return adaptable_shapes(self.config)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory; a tied head counts once."""
        return sum(weight.nbytes for weight in self.arrays.values())

    def run_form(self, adapter: CompiledAdapter | None) -> RunningAdapter | None:
        """The adapter as this model runs it: int8 pairs for modules with packed weights, float32 ones for others.

        Made anew by every call; None, the bare base, stays None. AdapterError names a module that cannot be rounded.
        """
        if adapter is None:
            return None
        with self.ops.use_threads(self.threads.prefill):
            return run_form(adapter, self._packer)

    def _packer(self, module: str) -> Pack | None:
        linear = self.linears.get(module)
        return self.ops.pack_int8 if linear is not None and isinstance(linear.weight, QuantizedTensor) else None

    def rope_table(self, n_positions: int) -> Ropes:
        """cos and sin, float32 (n_ropes, P, rotary_dim / 2), of positions 0 .. P - 1, P >= n_positions."""
        if self._rope[0].shape[1] < n_positions:
            self._rope = rope_table(self._inverse_frequencies, n_positions)
        return self._rope

    def forward(
        self,
        ids: NDArray[np.integer],
        cache: KVCache,
        adapter: RunningAdapter | None = None,
        *,
        all_logits: bool = False,
    ) -> Array:
        """Run T new tokens (T,) after what the cache holds; float32 logits (V,) of the last, or (T, V) of all.

        The cache is longer by T afterwards. If the step is interrupted the cache keeps its length.
        """
        n_tokens = len(ids)
        self._check(ids, [adapter])
        first_logit = 0 if all_logits else n_tokens - 1
        with self._pass("decode" if all_logits or n_tokens == 1 else "prefill", n_tokens, [cache]):
            if self._steps(n_tokens, [cache], [adapter]):
                positions = range(cache.length, cache.length + n_tokens)
                logits = self._step(ids.tolist(), [self._place(cache, pos, adapter) for pos in positions], first_logit)
            else:
                logits = self._forward(ids, cache, adapter, first_logit)
        cache.advance(n_tokens)
        return logits if all_logits else logits[0]

    def step(
        self, ids: Sequence[int], caches: Sequence[KVCache], adapters: Sequence[RunningAdapter | None] | None = None
    ) -> Array:
        """One new token for each of N sequences, each with its own cache and adapter; float32 logits (N, V).

        The same bits as N calls of `forward`; on the compiled back end the weights are read once for all of them. A
        cache may occur once. Interrupted, the caches keep their lengths.
        """
        each = adapters or [None] * len(ids)
        self._check(ids, each)
        with self._pass("decode", 1, caches):
            if self._decoder is not None and self._steps(1, caches, each):
                places = [self._place(cache, cache.length, a) for cache, a in zip(caches, each, strict=True)]
                most, tokens = self._decoder.MAX_ROWS, [int(token) for token in ids]
                starts = range(0, len(tokens), most)
                logits = [self._step(tokens[i : i + most], places[i : i + most], 0) for i in starts]
            else:
                alone = zip(np.asarray(ids, np.int64).reshape(-1, 1), caches, each, strict=True)
                logits = [self._forward(token, cache, adapter, 0) for token, cache, adapter in alone]
        for cache in caches:
            cache.advance(1)
        return np.concatenate(logits)

    def step_reading(
        self,
        prompt: Sequence[int],
        reader: tuple[KVCache, RunningAdapter | None],
        ids: Sequence[int],
        caches: Sequence[KVCache],
        adapters: Sequence[RunningAdapter | None],
    ) -> tuple[Array, Array]:
        """As `step`, and in the same passes some tokens of a prompt, with `reader`'s cache and adapter: float32 logits
        (V,) behind these and (N, V) of the others.

        Passes of up to 16 rows read the weights once, so the prompt takes the rows that are left (chunked prefill;
        Sarathi, Agrawal et al. 2023). The same bits as `forward` and `step`. OptionError where `steps_reading` says no.
        """
        if not self.steps_reading([reader[0], *caches], [reader[1], *adapters]):
            raise OptionError("these caches or adapters are not for the compiled decoder: use forward and step")
        assert self._decoder is not None
        self._check([*prompt, *ids], [reader[1], *adapters])
        n, cache = len(prompt), reader[0]
        with self._pass("decode", 1, caches):
            cache.reserve(cache.length + n)
            places = [self._place(c, c.length, a) for c, a in zip(caches, adapters, strict=True)]
            places += [self._place(cache, cache.length + i, reader[1]) for i in range(n)]
            tokens, most, found = [*(int(i) for i in ids), *(int(i) for i in prompt)], self._decoder.MAX_ROWS, []
            for at in range(0, len(tokens), most):
                rows = tokens[at : at + most]
                wanted = 0 if at < len(ids) else len(rows) - 1  # of a prompt only what is behind it
                found.append(self._step(rows, places[at : at + most], wanted))
        for one in caches:
            one.advance(1)
        cache.advance(n)
        logits = np.concatenate(found)
        return logits[-1], logits[: len(ids)]

    def steps_reading(self, caches: Sequence[KVCache], adapters: Sequence[RunningAdapter | None]) -> bool:
        """Whether `step_reading` takes these."""
        return self._steps(1, caches, adapters)

    @contextmanager
    def observed(self, observer: ForwardObserver) -> Iterator[None]:
        """Tell `observer` of every pass while the block runs. OptionError when somebody is watching already."""
        if self.observer is not None:
            raise OptionError("this model is being observed already: one profile at a time")
        self.observer = observer
        try:
            yield
        finally:
            self.observer = None

    @contextmanager
    def _pass(self, kind: Literal["prefill", "decode"], n_tokens: int, caches: Sequence[KVCache]) -> Iterator[None]:
        """A pass of `n_tokens` for each cache, which has room for them then: with this model's threads, and in sight of
        the observer."""
        self.watch()
        with self.ops.use_threads(self.threads.of(n_tokens)):
            observer = self.observer
            if observer is not None:
                depth, rows = max(cache.length for cache in caches), len(caches)
                observer.forward_began(Forward(kind, rows * n_tokens, depth, rows))
            for cache in caches:
                cache.reserve(cache.length + n_tokens)
            yield
            if observer is not None:
                observer.forward_ended()
        self.watch()

    def _check(self, ids: Sequence[int] | NDArray[np.integer], adapters: Sequence[RunningAdapter | None]) -> None:
        if any(isinstance(adapter, CompiledAdapter) for adapter in adapters):
            raise AdapterError("a merged adapter was given; a model takes what it runs: model.run_form(adapter)")
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
        rope = cos[:, span], sin[:, span]
        x = self._embed(ids, adapter)
        self.clock.mark(EMBED)
        for layer in self.layers:
            x = layer(x, rope, cache, adapter)
        normed = self.norm(x[first_logit:])
        self.clock.mark(NORM)
        return self.lm_head(self.ops.Activations(normed), adapter)

    def _embed(self, ids: NDArray[np.integer], adapter: RunningAdapter | None) -> Array:
        """The vectors (T, D) of token ids. An adapter of the embedding adds a column of its A times its B to each."""
        x = self.ops.embed(self.embed_tokens, ids)
        pair = adapter.pairs.get(EMBEDDING) if adapter is not None else None
        if pair is not None and isinstance(pair.a, np.ndarray) and isinstance(pair.b, np.ndarray):
            columns = np.ascontiguousarray(pair.a[:, ids].T)  # (T, R): what A makes of tokens as unit vectors
            self.ops.add_lora(columns, np.eye(pair.rank, dtype=np.float32), pair.b, x)
        if pair is not None and pair.bias is not None:
            x = x + pair.bias
        return x * np.float32(self.config.embedding_scale) if self.config.embedding_scale != 1 else x

    # ------------------------------------------------------------ a few tokens at once: the same arithmetic, compiled

    def _steps(self, n_tokens: int, caches: Sequence[KVCache], adapters: Sequence[RunningAdapter | None]) -> bool:
        """Whether the decoder takes `n_tokens` with these caches and adapters (none of embedding or head)."""
        fits = self._decoder is not None and n_tokens <= self._decoder.MAX_ROWS
        inside = not any(adapter is not None and adapter.changes_vocabulary for adapter in adapters)
        return fits and inside and all(cache.dtype != "fp32" for cache in caches)

    def _step(self, ids: Sequence[int], places: Sequence[Place], first_logit: int) -> Array:
        assert self._decoder is not None
        rotation = self.rope_table(1 + max(place.pos for place in places))
        return self._decoder.step(ids, places, rotation, self.clock, first_logit)

    def _place(self, cache: KVCache, pos: int, adapter: RunningAdapter | None) -> Place:
        return Place(cache.cached, pos, adapter, partial(self._pairs, adapter))

    def _pairs(self, adapter: RunningAdapter | None) -> list[RunningPair | None]:
        return [None if adapter is None else adapter.pairs.get(name) for name in self.linears]

    def _decoder_weights(self) -> DecoderWeights:
        c, n = self.config, len(COMPONENTS)
        parts = list(self.linears.values())  # in each layer those of COMPONENTS, as Attention and MLP make them
        norms = [*(norm for layer in self.layers for norm in layer.norms), self.norm]
        biases = [norm.bias for norm in norms if norm.bias is not None]
        heads = [(layer.attention.q_norm, layer.attention.k_norm) for layer in self.layers]
        return DecoderWeights(
            layers=[[(m.weight, m.bias) for m in parts[i : i + n]] for i in range(0, len(parts), n)],
            head=self.lm_head.weight,
            embedding=self.embed_tokens,
            norms=np.stack([norm.weight for norm in norms]),
            norm_biases=np.stack(biases) if biases else None,
            head_norms=np.stack([norm.weight for pair in heads for norm in pair if norm is not None])
            if "qk_norm" in c.options
            else None,
            eps=c.norm_eps,
            n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            attention_scale=c.attention_scale,
            embedding_scale=c.embedding_scale,
            windows=c.windows,
            ropes=c.ropes,
            options=c.options,
        )
