"""Whether a model fits into memory, found out before it is loaded: what it will take, beside what may be taken.

A system that runs out of memory does not say so. Linux ends a process, perhaps this one, in the middle of an answer;
or it reads the weights from the disk again for every token. So the estimate is made from the files' headers, errs on
the large side, and comes with what to do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgecal_kernels.dispatch import Backend
from edgecal_weights.checkpoint import Checkpoint
from edgecal_weights.sizes import mebibytes

from .cache import BLOCK, position_bytes
from .config import ModelConfig
from .decoding.generate import PREFILL_CHUNK
from .errors import MemoryLimitError, OptionError
from .loading import weight_sizes
from .memory import Room, resident, room

_LEAST_CONTEXT = 512  # tokens without which no conversation is worth loading a model
_FIXED = 64 << 20  # compiled kernels, what adapters compile to, Python's own growth
_LOGIT_ROWS = 16  # of a step


@dataclass(frozen=True)
class Need:
    """Bytes that a model will take beyond what the process has: its weights, each token of context, and the rest."""

    weights: int
    position: int
    work: int

    def total(self, context: int) -> int:
        return self.weights + self.work + context * self.position

    def most_context(self, nbytes: int) -> int:
        """Tokens that fit, whole blocks of the cache; 0 or less where nothing does."""
        return (nbytes - self.weights - self.work) // self.position // BLOCK * BLOCK


@dataclass(frozen=True)
class Loading:
    """How a model is to be loaded, as in `Engine.load`; `prefix_cache` in bytes."""

    weights: str
    group_size: int
    cache_dtype: str
    prefix_cache: int
    ops: Backend


def need(checkpoint: Checkpoint, config: ModelConfig, loading: Loading) -> Need:
    """The estimate. Errors as for `load_model`."""
    c = config
    weights = sum(weight_sizes(checkpoint, config, loading.weights, loading.group_size).values())
    inner = 8 * c.hidden_size + 3 * c.intermediate_size + 2 * c.n_heads * c.head_dim  # of a chunk's activations
    work = _FIXED + loading.prefix_cache + 4 * (PREFILL_CHUNK * inner + _LOGIT_ROWS * c.vocab_size)
    position = position_bytes(c, loading.cache_dtype) + 8 * int(c.inverse_frequencies().size)  # and the rope table
    if loading.ops.NAME == "numpy":  # scores of a chunk, and their exponentials
        position += 8 * PREFILL_CHUNK * c.n_heads
    return Need(weights, position, work)


def fit(
    checkpoint: Checkpoint, config: ModelConfig, loading: Loading, context: int | None, limit: int | None
) -> tuple[ModelConfig, str]:
    """The configuration with the context that it will have, and what a person should know about that.

    Args:
        context: the most tokens; None for the model's own limit, or as many as there is memory for.
        limit: bytes that the process may take in all, 0 for no check; None for what is free.

    Raises:
        OptionError: a context or a limit that is none.
        MemoryLimitError: it does not fit; the message says what would.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise OptionError(f"memory_limit must be a number of bytes, 0 or more (0: no check), found {limit!r}")
    config = _with_context(config, context)
    granted = room() if limit is None else Room(limit - resident(), "are left of the memory limit")
    if granted is None or limit == 0:
        return config, ""
    wanted, needed = config.max_position_embeddings, need(checkpoint, config, loading)
    most = needed.most_context(granted.nbytes)
    if most >= wanted:
        return config, ""
    if context is not None or most < min(wanted, _LEAST_CONTEXT):
        least = wanted if context is not None else min(wanted, _LEAST_CONTEXT)
        raise MemoryLimitError(_refusal(checkpoint, config, loading, needed, granted, least))
    note = f"memory is enough for {most:,} tokens of context, the model has {wanted:,}"
    return replace(config, max_position_embeddings=most), note


def _refusal(
    checkpoint: Checkpoint, config: ModelConfig, loading: Loading, needed: Need, granted: Room, context: int
) -> str:
    total, cache = needed.total(context), context * needed.position
    parts = f"weights {mebibytes(needed.weights)}, {context:,} tokens of context {mebibytes(cache)}"
    advice = []
    most = needed.most_context(granted.nbytes)
    if _LEAST_CONTEXT <= most < context:
        advice.append(f"a context of {most:,} (--context {most}) fits")
    for change, said in (
        ({"cache_dtype": "int8"}, "a KV cache in int8 (--cache-dtype int8)"),
        ({"weights": "int4", "group_size": 32}, "weights in int4 (--weights int4)"),
    ):
        other = need(checkpoint, config, replace(loading, **change))
        if other.total(context) < total:
            much = mebibytes(other.total(context))
            fits = other.total(context) <= granted.nbytes
            advice.append(f"{said} fits with {much}" if fits else f"{said} would still take {much}")
    return (
        f"{checkpoint.path.name} takes some {mebibytes(total)} ({parts}, the rest work space), and "
        f"{mebibytes(max(granted.nbytes, 0))} {granted.where}; {'; '.join(advice) or 'take a smaller model'}; "
        "or --memory-limit 0 to try it all the same"
    )


def _with_context(config: ModelConfig, context: int | None) -> ModelConfig:
    if context is None:
        return config
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise OptionError(f"context must be a number of tokens, 1 or more, found {context!r}")
    most = config.max_position_embeddings
    if context > most:
        raise OptionError(f"a context of {context}: the model was trained on {most} tokens and knows no more")
    return replace(config, max_position_embeddings=context)
