"""The methods that prune, rotate, truncate or take their weights from elsewhere, as algebra on random pairs.

`test_merge` has the plain sums and the calibrations, `tests/parity/test_peft_merge_parity` compares with PEFT itself.
Tolerance: 2e-6 of the largest entry involved, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecal.adapters import LoraAdapter, LoraPair, Recipe, compile_recipe
from edgecal.adapters.calibration import ModuleCalibration
from edgecal.adapters.compiled import CompiledPair
from edgecal.adapters.merge import Context, find_method, methods
from edgecal.adapters.merge.concat import concat
from edgecal.adapters.merge.dam import dam
from edgecal.adapters.merge.linear import linear
from edgecal.adapters.merge.pruning import RandomDrop, find_largest, random_mask, trimmed
from edgecal.adapters.merge.slerp import slerp, slerp_svd
from edgecal.adapters.merge.spherical import spherical_weights
from edgecal.adapters.merge.svd import svd
from edgecal.adapters.merge.truncation import truncate_dense, truncate_product
from edgecal.errors import RecipeError

D, K = 9, 7
SHAPES = {"m.q_proj": (D, K)}
# One adapter of weight 1, alone in its recipe, gives its own dW by every method but these: linear's kin square w
COMBINING = [m.name for m in methods() if m.merge is not None and not m.needs_calibration]
SEEDS = st.integers(0, 2**16)
MASK = "9a619179454d016b"


def random_pair(seed: int, rank: int, scaling: float = 1.0) -> LoraPair:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, K)), rng.normal(size=(D, rank))
    return LoraPair(a.astype(np.float32), b.astype(np.float32), scaling)


def random_pairs(seed: int, ranks: Sequence[int], scalings: Sequence[float] = (0.5, 1.5, -0.75, 2.0)) -> list[LoraPair]:
    return [random_pair(seed + 7919 * i, rank, scalings[i % 4]) for i, rank in enumerate(ranks)]


def delta(pair: CompiledPair | LoraPair) -> np.ndarray:
    scaling = pair.scaling if isinstance(pair, LoraPair) else 1.0
    return scaling * (pair.b.astype(np.float64) @ pair.a.astype(np.float64))


def close(found: np.ndarray, wanted: np.ndarray, largest: float = 0.0) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * max(largest, np.abs(wanted).max(initial=0)) + 1e-30)


def merged(
    method: str, pairs: Sequence[LoraPair], weights: Sequence[float] | None = None, **options: Any
) -> CompiledPair:
    """Through a recipe, as everyone gets there."""
    adapters = {f"a{i}": LoraAdapter(f"a{i}", {"m.q_proj": pair}) for i, pair in enumerate(pairs)}
    recipe = Recipe(
        method, tuple(adapters), None if weights is None else tuple(weights), options=tuple(options.items())
    )
    compiled = compile_recipe(recipe, adapters, None, SHAPES, {})
    assert compiled is not None
    return compiled.pairs["m.q_proj"]


@pytest.mark.parametrize("method", COMBINING)
@given(SEEDS, st.integers(1, 4))
@settings(max_examples=10)
def test_one_adapter_of_weight_1_gives_itself(method: str, seed: int, rank: int) -> None:
    pair = random_pair(seed, rank, 0.75)
    close(delta(merged(method, [pair], [1.0])), delta(pair))


@pytest.mark.parametrize("method", [m for m in COMBINING if find_method(m).max_adapters is None])
@given(SEEDS, st.permutations(range(3)))
@settings(max_examples=8)
def test_order_does_not_matter(method: str, seed: int, order: list[int]) -> None:
    """Not of DARE either, whose masks belong to the names of the adapters."""
    pairs, weights = random_pairs(seed, (3, 3, 3)), (0.2, 0.5, 0.3)
    adapters = {f"a{i}": LoraAdapter(f"a{i}", {"m.q_proj": pair}) for i, pair in enumerate(pairs)}

    def of(positions: Sequence[int]) -> np.ndarray:
        names = tuple(f"a{i}" for i in positions)
        recipe = Recipe(method, names, tuple(weights[i] for i in positions))
        compiled = compile_recipe(recipe, adapters, None, SHAPES, {})
        assert compiled is not None
        return delta(compiled.pairs["m.q_proj"])

    largest = sum(float(np.abs(delta(p)).max()) for p in pairs)
    np.testing.assert_allclose(of(order), of(range(3)), rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("method", [m for m in COMBINING if find_method(m).max_adapters is None])
def test_zero_adapters_are_harmless(method: str) -> None:
    zero = LoraPair(np.zeros((3, K), np.float32), np.zeros((D, 3), np.float32), 2.0)
    for pairs in ([zero, zero], [random_pair(1, 3), zero]):
        assert np.isfinite(delta(merged(method, pairs, [0.5, 0.5]))).all()
    assert not delta(merged(method, [zero, zero], [0.5, 0.5])).any()


# ------------------------------------------------------------------------------------------------------------ SVD
@given(SEEDS, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 12))
@settings(max_examples=60)
def test_factored_svd_is_the_dense_svd(seed: int, ranks: list[int], wanted: int) -> None:
    """Against numpy.linalg.svd of the dense sum; ranks beyond d and k included."""
    pairs = random_pairs(seed, ranks)
    weights = [0.5 + 0.25 * i for i in range(len(pairs))]
    dense = sum(w * delta(pair) for w, pair in zip(weights, pairs, strict=True))
    u, s, vt = np.linalg.svd(dense)
    found = svd(pairs, weights, Context(options={"svd_rank": wanted}))
    keep = min(wanted, D, K)
    close(delta(found), (u[:, :keep] * s[:keep]) @ vt[:keep], s[0])
    assert found.rank == min(wanted, sum(ranks), D, K)
    np.testing.assert_allclose(found.a @ found.a.T, np.eye(found.rank), atol=1e-6)  # A* = V^T, B* = U S


@given(SEEDS, st.integers(1, 10), st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=60)
def test_dense_truncation(seed: int, wanted: int, d: int, k: int) -> None:
    """Of tall and wide matrices of full rank, which is what is left after pruning."""
    dense = np.random.default_rng(seed).normal(size=(d, k)).astype(np.float32)
    u, s, vt = np.linalg.svd(dense.astype(np.float64))
    keep = min(wanted, d, k)
    found = truncate_dense(dense, wanted)
    close(delta(found), (u[:, :keep] * s[:keep]) @ vt[:keep], s[0])
    assert found.rank == keep


def test_truncation_of_nothing() -> None:
    assert not delta(truncate_dense(np.zeros((4, 6), np.float32), 2)).any()
    assert not delta(truncate_product(np.zeros((2, 6), np.float32), np.zeros((4, 2), np.float32), 2)).any()


@given(SEEDS, st.floats(-2, 2))
def test_svd_scales(seed: int, factor: float) -> None:
    pairs = random_pairs(seed, (2, 3))
    once, scaled = svd(pairs, [0.5, 0.5]), svd(pairs, [0.5 * factor, 0.5 * factor])
    close(delta(scaled), factor * delta(once))


@pytest.mark.parametrize("method", ["ties_svd", "magnitude_prune_svd", "dare_linear_svd", "dare_ties_svd"])
def test_unequal_ranks_on_delta(method: str) -> None:
    assert merged(method, random_pairs(3, (2, 4, 1))).rank == 4
    assert merged(method, random_pairs(3, (2, 4, 1)), svd_rank=6).rank == 6


@pytest.mark.parametrize("method", [m for m in COMBINING if "svd_rank" in {o.name for o in find_method(m).options}])
def test_one_adapter_is_left_whole(method: str) -> None:
    """`tests/parity/test_peft_merge_parity` has PEFT's own five; slerp_svd is mergekit's and does the same."""
    pair = random_pair(3, 4, 0.75)
    found = merged(method, [pair], [1.0], svd_rank=2)
    assert found.rank == 4
    close(delta(found), delta(pair))


# ------------------------------------------------------------------------------------------------------------ slerp
def mergekit_slerp(t: float, v0: np.ndarray, v1: np.ndarray) -> np.ndarray:
    """mergekit's formula, written down again from its description: on flattened tensors, in float64."""
    shape = v0.shape
    v0, v1 = v0.astype(np.float64).reshape(-1), v1.astype(np.float64).reshape(-1)
    u0, u1 = (v / n if (n := np.linalg.norm(v)) > 1e-8 else v for v in (v0, v1))
    dot = float(u0 @ u1)
    if abs(dot) > 0.9995:
        return ((1 - t) * v0 + t * v1).reshape(shape)
    theta = np.arccos(dot)
    return ((np.sin((1 - t) * theta) * v0 + np.sin(t * theta) * v1) / np.sin(theta)).reshape(shape)


@given(SEEDS, st.floats(0, 1))
def test_slerp_is_mergekits(seed: int, t: float) -> None:
    one, two = random_pairs(seed, (3, 3))
    found = merged("slerp", [one, two], t=t)
    close(found.a, mergekit_slerp(t, one.a, two.a))
    close(found.b, mergekit_slerp(t, one.scaling * one.b, two.scaling * two.b), 1.0)
    on_delta = merged("slerp_svd", [one, two], t=t, svd_rank=6)
    close(delta(on_delta), mergekit_slerp(t, delta(one), delta(two)), 20.0)


def test_slerp_of_parallel_and_opposite_adapters_is_linear() -> None:
    pair = random_pair(5, 2)
    for factor in (2.0, -1.5):
        other = LoraPair(pair.a, pair.b, factor)
        close(delta(slerp_svd([pair, other], [0.25, 0.75])), (0.25 + 0.75 * factor) * delta(pair))


def test_weights_of_slerp_are_shares() -> None:
    pairs = random_pairs(9, (3, 3))
    close(delta(slerp(pairs, [1.0, 3.0])), delta(slerp(pairs, [0.25, 0.75])))
    close(merged("slerp", pairs, t=0.75).a, slerp(pairs, [0.25, 0.75]).a)


@given(SEEDS, st.integers(2, 5), st.integers(1, 3))
def test_spherical_mean_is_where_the_arcs_cancel(seed: int, count: int, dimensions: int) -> None:
    """The definition of the Karcher mean; vectors within a right angle of one another, where there is just one."""
    rng = np.random.default_rng(seed)
    vectors = np.abs(rng.normal(size=(count, dimensions + 2))) + 0.05
    shares = rng.dirichlet(np.ones(count))
    coefficients = spherical_weights(vectors @ vectors.T, shares)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = coefficients @ units
    if count == 2 and units[0] @ units[1] > 0.9995:
        return
    np.testing.assert_allclose(np.linalg.norm(mean), 1, atol=1e-9)
    towards = np.clip(units @ mean, -1, 1)
    tangents = units - towards[:, None] * mean
    lengths = np.linalg.norm(tangents, axis=1)
    logs = tangents * (np.arccos(towards) / np.where(lengths > 1e-9, lengths, 1))[:, None]
    np.testing.assert_allclose(shares @ logs, 0, atol=1e-6)


def test_spherical_mean_of_two_is_slerp_and_of_nothing_is_as_given() -> None:
    from edgecal.adapters.merge import spherical

    cosines = np.array([[1.0, 0.3], [0.3, 1.0]])
    found = spherical._karcher_mean(cosines, np.array([0.3, 0.7]))
    np.testing.assert_allclose(found, spherical._between_two(0.3, 0.7), atol=1e-9)
    opposite = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(spherical_weights(opposite, [0.5, 0.5, 0.0]), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(spherical_weights(np.zeros((3, 3)), [0.2, 0.3, 0.5]), [0.2, 0.3, 0.5])


# ---------------------------------------------------------------------------------------------------------- pruning
@given(SEEDS, st.integers(1, 60), st.floats(1e-6, 1.0), st.integers(1, 4))
def test_keep_largest_keeps_just_so_many(seed: int, size: int, density: float, distinct: int) -> None:
    """Of few distinct values too, where the magnitude at the border is shared."""
    values = np.random.default_rng(seed).integers(1, distinct + 1, size).astype(np.float32)
    values *= np.where(np.random.default_rng(seed + 1).random(size) < 0.5, -1, 1)
    found = trimmed(values, find_largest(values, density))
    kept = found != 0
    assert kept.sum() == (size if density == 1 else int(density * size))
    np.testing.assert_array_equal(found[kept], values[kept])
    if kept.any() and not kept.all():
        assert np.abs(values[kept]).min() >= np.abs(values[~kept]).max()
        border = np.flatnonzero(np.abs(values) == np.abs(values[kept]).min())
        assert (np.diff(kept[border].astype(int)) <= 0).all()  # the first of equals stay


@pytest.mark.parametrize("density", [0.003, 0.25, 0.7, 0.996])
def test_random_masks(density: float) -> None:
    mask = random_mask((1000, 400), density, "key")
    spread = (density * (1 - density) / mask.size) ** 0.5
    assert abs(mask.mean() - density) < 5 * spread
    np.testing.assert_array_equal(mask, random_mask((1000, 400), density, "key"))
    np.testing.assert_array_equal(mask.reshape(-1)[:65_536], random_mask((65_536,), density, "key"))
    agree = (mask & random_mask((1000, 400), density, "other")).mean()
    assert abs(agree - density**2) < 0.005


def test_masks_are_the_same_everywhere() -> None:
    """Fixed for all platforms and versions: whoever changes the stream changes every DARE merge of every user."""
    bits = np.packbits(random_mask((4, 16), 0.5, "0\0model.layers.0.self_attn.q_proj\0summarize\0A"))
    assert bits.tobytes().hex() == MASK


def test_dare_keeps_the_mean() -> None:
    values = np.ones(200_000, np.float32)
    found = RandomDrop(0.3, "key").next(values, np.empty_like(values))
    assert set(np.unique(found)) == {np.float32(0), np.float32(1) / np.float32(0.3)}
    assert abs(found.mean() - 1) < 0.02


def test_seed_and_module_choose_the_mask() -> None:
    pairs = random_pairs(2, (4, 4))
    once = merged("dare_linear", pairs, density=0.5)
    np.testing.assert_array_equal(once.a, merged("dare_linear", pairs, density=0.5, seed=0).a)
    assert (once.a != merged("dare_linear", pairs, density=0.5, seed=1).a).any()


def test_density_of_each_adapter() -> None:
    pairs = random_pairs(4, (4, 4))
    found = merged("magnitude_prune", pairs, [1.0, 1.0], density=[1.0, 0.5])
    assert (merged("magnitude_prune", pairs, [1.0, 1.0], density=0.5).a != found.a).any()
    alone = merged(
        "magnitude_prune", [pairs[0], LoraPair(0 * pairs[1].a, 0 * pairs[1].b)], [1.0, 1.0], density=[1.0, 0.1]
    )
    close(delta(alone), delta(pairs[0]))


# ------------------------------------------------------------------------------------ weights and calibrations
def test_lm_cocktail() -> None:
    pairs = random_pairs(6, (2, 3, 1))
    losses = [1.0, 2.5, 0.25]
    shares = np.exp(-np.array(losses) / 5)
    shares /= shares.sum()
    assert np.allclose(Recipe("lm_cocktail", ("a", "b", "c"), options=(("losses", losses),)).merge_weights, shares)
    close(delta(merged("lm_cocktail", pairs, losses=losses)), delta(concat(pairs, shares.tolist())))
    sharp = Recipe("lm_cocktail", ("a", "b"), options=(("losses", [1e6, 0.0]), ("temperature", 1e-3)))
    assert sharp.merge_weights == (0.0, 1.0)
    with pytest.raises(RecipeError, match="needs the option 'losses'.*or weights"):
        Recipe("lm_cocktail", ("a", "b"))


def test_lorahub_is_the_full_weight_on_both_factors() -> None:
    pairs, weights = random_pairs(8, (3, 3)), [0.7, -1.4]
    close(delta(merged("lorahub", pairs, weights)), delta(linear(pairs, weights)))
    a = 0.7 * pairs[0].a - 1.4 * pairs[1].a
    b = 0.7 * pairs[0].scaling * pairs[0].b - 1.4 * pairs[1].scaling * pairs[1].b
    close(delta(merged("lorahub", pairs, weights)), b.astype(np.float64) @ a.astype(np.float64), 10)
    with pytest.raises(RecipeError, match="lorahub needs weights"):
        Recipe("lorahub", ("a", "b"))


@given(SEEDS, st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_dam_scales_columns(seed: int, ranks: list[int]) -> None:
    pairs = random_pairs(seed, ranks)
    scales = np.random.default_rng(seed).normal(size=(len(ranks), K)).astype(np.float32)
    term = ModuleCalibration({f"m{i + 1}": m for i, m in enumerate(scales)})
    wanted = sum(delta(pair) * m for pair, m in zip(pairs, scales, strict=True))
    close(delta(dam(pairs, [1.0] * len(pairs), Context(term))), wanted, 20.0)
    last = dam(pairs[-1:], [1.0], Context(term, positions=(len(ranks) - 1,)))
    close(delta(last), delta(pairs[-1]) * scales[-1], 20.0)


@pytest.mark.parametrize("name", ["learnable_calibration_only", "learnable_calibration_pp_only"])
def test_calibrations_alone(name: str, rng: np.random.Generator) -> None:
    p, p1, p2 = (rng.normal(size=s).astype(np.float32) for s in ((D,), (2, K), (D, 2)))
    merge: Callable[..., CompiledPair] | None = find_method(name).merge
    assert merge is not None
    found = merge([], [], Context(ModuleCalibration({"p": p, "P1": p1, "P2": p2}, -0.5), shape=(D, K)))
    wanted = np.outer(p, np.ones(K)) if name == "learnable_calibration_only" else p2 @ p1
    close(delta(found), -0.5 * wanted)
    if name == "learnable_calibration_only":
        bias = merge([], [], Context(ModuleCalibration({"p": p}, 2.0, "output"), shape=(D, K)))
        assert bias.rank == 0
        np.testing.assert_array_equal(bias.bias, 2 * p)
