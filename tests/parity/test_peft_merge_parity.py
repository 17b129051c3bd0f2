"""Live against peft 0.21.2: every combination type of `add_weighted_adapter`, on the same adapters.

Tolerance: max |error| / max |reference| <= 1e-6 in float32, on the factors where PEFT merges factors, on dW otherwise.
The reference of the truncated SVDs is PEFT's own code run in float64 (its float32 SVD is itself off by a few 1e-6).
DARE's masks cannot be the same, since torch.bernoulli's stream is torch's own: PEFT is given ours instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from edgecal.adapters import CompiledAdapter, LoraAdapter, Recipe, compile_recipe
from edgecal.adapters.merge.context import Context
from edgecal.adapters.merge.dare import mask_key
from edgecal.adapters.merge.pruning import random_mask
from edgecal.errors import AdapterError
from edgecal_kernels.dispatch import backend

# What PEFT and transformers say to each other about deprecations and odd options is not edgecal's to mend.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]

TOLERANCE = 1e-6
NAMES = ("one", "two", "three")
ALPHAS = (6, 3, -5)  # scalings 1.5, 0.75 and -1.25 at rank 4
TARGETS = ["q_proj", "k_proj", "up_proj", "down_proj"]
ON_FACTORS = {"peft_linear": "linear", **{m: m for m in ("ties", "dare_linear", "dare_ties", "magnitude_prune")}}
ON_DELTA = ("svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
WEIGHTS = [(1.0,), (-0.3,), (0.5, 0.5), (0.7, -0.4), (0.0, 1.0), (1.0, 2.0, -0.5), (0.3, 0.3, 0.4)]


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, int]]:
    modules = tiny_llama().named_modules()
    return {n: (m.out_features, m.in_features) for n, m in modules if isinstance(m, torch.nn.Linear)}


def save(folder: Path, **options: Any) -> None:
    """The three adapters; `options` may hold a tuple, one value per adapter."""
    for i, name in enumerate(NAMES):
        own = {key: value[i] if isinstance(value, tuple) else value for key, value in options.items()}
        config = {"r": 4, "lora_alpha": ALPHAS[i], "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | own
        model = get_peft_model(tiny_llama(), LoraConfig(**config))
        generator = torch.Generator().manual_seed(i + 1)
        for parameter_name, parameter in model.named_parameters():
            if ".default." in parameter_name:
                parameter.data = torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder / name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save(folder)
    return folder


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks 4, 2 and 3, others by pattern, and modules that only some of them change."""
    folder = tmp_path_factory.mktemp("ranks")
    save(
        folder,
        r=(4, 2, 3),
        rank_pattern=({"k_proj": 6}, {"layers.1.mlp.up_proj": 3}, {}),
        alpha_pattern=({"q_proj": 11}, {}, {"down_proj": 2}),
        target_modules=(TARGETS, ["q_proj", "up_proj"], ["down_proj", "k_proj"]),
    )
    return folder


def theirs(folder: Path, weights: tuple[float, ...], method: str, **options: Any) -> PeftModel:
    """PEFT's model with the merged adapter "all"; in float64 for the SVDs."""
    names = list(NAMES[: len(weights)])
    model = PeftModel.from_pretrained(tiny_llama(), folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    if method.endswith("svd"):
        model = model.double()
    model.add_weighted_adapter(names, list(weights), "all", combination_type=method, **options)
    return model


def layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if "all" in getattr(module, "lora_A", {}):
            yield name.removeprefix("base_model.model."), module


def ours(
    folder: Path, shapes: dict[str, tuple[int, int]], weights: tuple[float, ...], method: str, **options: Any
) -> CompiledAdapter:
    """With NumPy; the compiled kernels give the same bits."""
    names = NAMES[: len(weights)]
    adapters = {name: LoraAdapter.load(folder / name) for name in names}
    recipe = Recipe(method, names, weights, options=tuple(options.items()))
    found, compiled = (
        compile_recipe(recipe, adapters, None, shapes, {}, kernels) for kernels in (None, backend("numba").merging)
    )
    assert found is not None and compiled is not None and found.pairs.keys() == compiled.pairs.keys()
    for module, pair in found.pairs.items():
        np.testing.assert_array_equal(pair.a, compiled.pairs[module].a)
        np.testing.assert_array_equal(pair.b, compiled.pairs[module].b)
    return found


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30)
    assert error <= TOLERANCE, f"{error:.2e}"


def compare(found: CompiledAdapter, model: PeftModel, *, factors: bool) -> None:
    count = 0
    for module, layer in layers(model):
        pair = found.pairs[module]
        if factors:
            close(pair.a, layer.lora_A["all"].weight.detach().numpy())
            close(pair.b, layer.lora_B["all"].weight.detach().numpy())
        close(pair.delta(), layer.get_delta_weight("all").detach().numpy())
        count += 1
    assert count == len(found.pairs)


def feed_masks(
    monkeypatch: pytest.MonkeyPatch, model_names: tuple[str, ...], modules: list[str], factors: tuple[str, ...]
) -> None:
    """torch.bernoulli gives our masks, in the order in which PEFT asks: module, factor, adapter."""
    keys = iter(
        mask_key(Context(options={"seed": 7}, module=module), name, factor)
        for module in modules
        for factor in factors
        for name in model_names
    )

    def bernoulli(chances: torch.Tensor) -> torch.Tensor:
        density = float(chances.reshape(-1)[0])
        return torch.from_numpy(random_mask(tuple(chances.shape), density, next(keys))).to(chances.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


def lora_modules() -> list[str]:
    return [name for name, _ in tiny_llama().named_modules() if name.rsplit(".", 1)[-1] in TARGETS]


def seeded(
    monkeypatch: pytest.MonkeyPatch, method: str, n_adapters: int, factors: tuple[str, ...]
) -> dict[str, int]:
    """Our options beside those of PEFT: of DARE the seed of the masks, which PEFT is made to take as well."""
    if not method.startswith("dare"):
        return {}
    feed_masks(monkeypatch, NAMES[:n_adapters], lora_modules(), factors)
    return {"seed": 7}


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("method", ON_FACTORS)
def test_on_factors(
    monkeypatch: pytest.MonkeyPatch,
    plain: Path,
    shapes: dict[str, tuple[int, int]],
    method: str,
    weights: tuple[float, ...],
) -> None:
    """N = 1 included: PEFT merges one adapter linearly, whatever was asked for."""
    options: dict[str, Any] = {} if method == "peft_linear" else {"density": 0.4}
    extra = seeded(monkeypatch, method, len(weights), ("A", "B"))
    model = theirs(plain, weights, ON_FACTORS[method], **options)
    compare(ours(plain, shapes, weights, method, **options, **extra), model, factors=True)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("method", ON_DELTA)
def test_on_delta(
    monkeypatch: pytest.MonkeyPatch,
    plain: Path,
    shapes: dict[str, tuple[int, int]],
    method: str,
    weights: tuple[float, ...],
) -> None:
    options: dict[str, Any] = {} if method == "svd" else {"density": 0.4}
    extra = seeded(monkeypatch, method, len(weights), ("dW",))
    model = theirs(plain, weights, method, **options)
    found = ours(plain, shapes, weights, method, **options, **extra)
    assert found.rank == 4
    compare(found, model, factors=False)


@pytest.mark.parametrize("density", [1e-3, 0.017, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "dare_linear", "dare_ties"])
def test_density_at_its_edges(
    monkeypatch: pytest.MonkeyPatch, plain: Path, shapes: dict[str, tuple[int, int]], method: str, density: float
) -> None:
    extra = {"seed": 7} if method.startswith("dare") else {}
    feed_masks(monkeypatch, NAMES[:2], lora_modules(), ("A", "B"))
    model = theirs(plain, (0.7, -0.4), method, density=density)
    compare(ours(plain, shapes, (0.7, -0.4), method, density=density, **extra), model, factors=True)


@pytest.mark.parametrize("method", ["ties", "ties_svd", "dare_ties", "dare_ties_svd"])
def test_frequency_of_signs(
    monkeypatch: pytest.MonkeyPatch, plain: Path, shapes: dict[str, tuple[int, int]], method: str
) -> None:
    factors = not method.endswith("svd")
    extra = {"seed": 7} if method.startswith("dare") else {}
    feed_masks(monkeypatch, NAMES, lora_modules(), ("A", "B") if factors else ("dW",))
    options = {"density": 0.6, "majority_sign_method": "frequency"}
    model = theirs(plain, (0.7, -0.4, 1.1), method, **options)
    compare(ours(plain, shapes, (0.7, -0.4, 1.1), method, **options, **extra), model, factors=factors)


@pytest.mark.parametrize("rank", [None, 1, 3, 7])
@pytest.mark.parametrize("method", ["svd", "ties_svd", "magnitude_prune_svd"])
def test_svd_of_unequal_ranks(ranks: Path, shapes: dict[str, tuple[int, int]], method: str, rank: int | None) -> None:
    """rank_pattern, alpha_pattern and missing modules; the default rank is the largest anywhere, here 6."""
    options: dict[str, Any] = {} if method == "svd" else {"density": 0.6}
    chosen = options | ({"svd_rank": rank} if rank else {})
    model = theirs(ranks, (0.7, -0.4, 1.2), method, **chosen)
    found = ours(ranks, shapes, (0.7, -0.4, 1.2), method, **chosen)
    assert found.rank == (rank or 6)
    compare(found, model, factors=False)


@pytest.mark.parametrize("weight", [1.0, -0.3])
@pytest.mark.parametrize("method", ON_DELTA)
def test_one_adapter_is_left_whole(
    ranks: Path, shapes: dict[str, tuple[int, int]], method: str, weight: float
) -> None:
    """PEFT merges one adapter linearly and passes over svd_rank, here below every rank (4, 6 by pattern)."""
    options: dict[str, Any] = {} if method == "svd" else {"density": 0.4}
    model = theirs(ranks, (weight,), method, svd_rank=2, **options)
    found = ours(ranks, shapes, (weight,), method, svd_rank=2, **options)
    assert {pair.rank for pair in found.pairs.values()} == {4, 6}
    compare(found, model, factors=False)


def test_concat_of_unequal_ranks(ranks: Path, shapes: dict[str, tuple[int, int]]) -> None:
    model = theirs(ranks, (0.7, -0.4, 1.2), "cat")
    compare(ours(ranks, shapes, (0.7, -0.4, 1.2), "concat"), model, factors=False)


@pytest.mark.parametrize("method", ON_FACTORS)
def test_factors_of_unequal_ranks_are_refused(ranks: Path, shapes: dict[str, tuple[int, int]], method: str) -> None:
    """PEFT refuses too, or stops inside torch; here the module is named."""
    with pytest.raises(AdapterError, match=rf"{method} of one, two at model\.layers\.0\.self_attn\.q_proj: .*rank 4"):
        ours(ranks, shapes, (0.5, 0.5), method)
    with pytest.raises(ValueError, match="same r value"):
        theirs(ranks, (0.5, 0.5), ON_FACTORS[method], density=0.5)


def test_equal_rank_patterns(tmp_path: Path, shapes: dict[str, tuple[int, int]]) -> None:
    """Equal ranks at each module are enough, whatever they are elsewhere."""
    save(tmp_path, rank_pattern={"k_proj": 2, "layers.1.mlp.up_proj": 3}, alpha_pattern={"k_proj": 5})
    model = theirs(tmp_path, (0.7, 0.6, -0.2), "ties", density=0.5)
    compare(ours(tmp_path, shapes, (0.7, 0.6, -0.2), "ties", density=0.5), model, factors=True)


@pytest.mark.parametrize("method", ["peft_linear", "concat", "svd", "ties_svd"])
def test_rslora_follows_the_formula(tmp_path: Path, shapes: dict[str, tuple[int, int]], method: str) -> None:
    """PEFT 0.21.2 writes a merge of rsLoRAs whose scaling is off by sqrt(r); the formula has alpha / sqrt(r)."""
    save(tmp_path, use_rslora=True)
    adapters = [LoraAdapter.load(tmp_path / name) for name in NAMES[:1]]
    found = ours(tmp_path, shapes, (0.6,), method)
    for module, pair in found.pairs.items():
        one = adapters[0].pairs[module]
        close(pair.delta(), 0.6 * (6 / np.sqrt(4)) * (one.b.astype(np.float64) @ one.a.astype(np.float64)))
