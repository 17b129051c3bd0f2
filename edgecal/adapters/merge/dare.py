"""DARE (arXiv 2311.03099): drop entries at random, divide the rest by the density, so that the mean stays; then merge.

PEFT's variant (0.21.2): `dare_linear` adds what is left, `dare_ties` elects signs among it; both on the A's and on the
B's with square roots of the weights, their `_svd` forms on dW_i, followed by a truncated SVD. The masks depend on
`seed`, the module, the adapter's name and the factor, never on the order of the adapters (see `pruning`).
A recipe of one adapter is left whole, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..compiled import CompiledPair
from ..lora import Array, LoraPair
from ..merge_kernels import plain
from .context import PLAIN, Context
from .factors import Combine, merge_with_roots, weighted_sum
from .peft_linear import peft_linear
from .pruning import DENSITY, SEED, STRETCH, RandomDrop
from .registry import method
from .sign_election import SIGN_METHOD, elect_and_average
from .truncation import SVD_RANK, merge_dense
from .workspace import scratch

_PIECE = 2 * STRETCH
_PAPER = "DARE (arXiv 2311.03099), PEFT's variant"


def mask_key(context: Context, adapter: str, factor: str) -> str:
    """What the random mask of one factor ("A", "B", "dW") of one adapter at one module is made from."""
    return "\0".join((str(SEED.of(context.options)), context.module, adapter, factor))


def _dare(context: Context, count: int, *, elect: bool) -> Combine:
    densities = DENSITY.each(context.options, context.placed(count))
    names = context.names(count)

    def combine(tensors: list[Array], weights: list[float], factor: str, out: Array) -> None:
        drops = [
            RandomDrop(density, mask_key(context, name, factor), context.kernels)
            for density, name in zip(densities, names, strict=True)
        ]
        flat, total = [plain(tensor).reshape(-1) for tensor in tensors], out.reshape(-1)
        for start in range(0, total.size, _PIECE):
            piece = slice(start, start + _PIECE)
            size = total[piece].size
            thinned = [
                drop.next(x[piece], scratch(f"kept {i}", (size,)))
                for i, (drop, x) in enumerate(zip(drops, flat, strict=True))
            ]
            if elect:
                sign_method = SIGN_METHOD.of(context.options)
                elect_and_average(thinned, weights, sign_method, total[piece], kernels=context.kernels)
            else:
                weighted_sum(thinned, weights, total[piece], kernels=context.kernels)

    return combine


@method(
    "dare_linear",
    title="random entries of the factors, rescaled and added",
    paper=_PAPER,
    takes_weights=True,
    equal_ranks=True,
    options=(DENSITY, SEED),
    alone=peft_linear,
)
def dare_linear(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return merge_with_roots(pairs, weights, _dare(context, len(pairs), elect=False), context)


@method(
    "dare_ties",
    title="random entries of the factors that agree in sign",
    paper=_PAPER,
    takes_weights=True,
    equal_ranks=True,
    options=(DENSITY, SEED, SIGN_METHOD),
    alone=peft_linear,
)
def dare_ties(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank r."""
    return merge_with_roots(pairs, weights, _dare(context, len(pairs), elect=True), context)


@method(
    "dare_linear_svd",
    title="random entries of dW, rescaled and added, cut to a rank",
    paper=_PAPER,
    takes_weights=True,
    options=(DENSITY, SEED, SVD_RANK),
    alone=peft_linear,
)
def dare_linear_svd(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank `svd_rank`, or the largest of the adapters'."""
    return merge_dense(pairs, weights, context, _dare(context, len(pairs), elect=False))


@method(
    "dare_ties_svd",
    title="random entries of dW that agree in sign, cut to a rank",
    paper=_PAPER,
    takes_weights=True,
    options=(DENSITY, SEED, SIGN_METHOD, SVD_RANK),
    alone=peft_linear,
)
def dare_ties_svd(pairs: Sequence[LoraPair], weights: Sequence[float], context: Context = PLAIN) -> CompiledPair:
    """Rank `svd_rank`, or the largest of the adapters'."""
    return merge_dense(pairs, weights, context, _dare(context, len(pairs), elect=True))
