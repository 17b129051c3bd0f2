"""Calibrations that are shared over tasks, stand alone or scale columns, from their files to compiled pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecal.adapters import Calibration, CompiledAdapter, LoraAdapter, LoraPair, Recipe, compile_recipe
from edgecal.adapters.calibration import calibration_parameters
from edgecal.errors import AdapterError, CalibrationError
from edgecal_weights.calibration_file import AdapterReference, BaseModelFacts, CalibrationFile

D, K = 6, 5
SHAPES = {f"model.layers.{i}.self_attn.{name}": (D, K) for i in range(3) for name in ("q_proj", "v_proj")}
FIRST, LAST = "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.v_proj"
BASE = {"model_type": "llama", "hidden_size": 5, "num_hidden_layers": 3, "vocab_size": 100}
FACTS = BaseModelFacts("some/base", "llama", 5, 3, 100)


def adapter(name: str, seed: int, modules: Any = SHAPES) -> LoraAdapter:
    rng = np.random.default_rng(seed)
    pairs = {
        m: LoraPair(rng.normal(size=(2, K)).astype(np.float32), rng.normal(size=(D, 2)).astype(np.float32), 0.5)
        for m in modules
    }
    return LoraAdapter(name, pairs, sha256=f"{seed:064x}")


def reference(of: LoraAdapter) -> AdapterReference:
    return AdapterReference(of.name, of.sha256)


def compiled(method: str, adapters: list[LoraAdapter], content: CalibrationFile, base: Any = BASE) -> CompiledAdapter:
    recipe = Recipe(method, tuple(a.name for a in adapters), calibration="in memory")
    result = compile_recipe(recipe, {a.name: a for a in adapters}, Calibration(content), SHAPES, base)
    assert result is not None
    return result


def vectors(adapters: list[LoraAdapter], **changes: Any) -> CalibrationFile:
    groups = {name: {"p": np.full(D, i + 1, np.float32)} for i, name in enumerate(("q_proj", "v_proj"))}
    weights = (1 / len(adapters),) * len(adapters) if adapters else ()
    made = CalibrationFile("learnable_calibration", tuple(map(reference, adapters)), weights, FACTS, groups)
    return dataclasses.replace(made, **changes)


def test_one_calibration_for_several_compositions() -> None:
    one, two, three, four = (adapter(name, i) for i, name in enumerate(("one", "two", "three", "four")))
    shared = vectors([one, two], shared_with=((reference(one), reference(three)),))
    for pair in ([one, two], [one, three]):
        assert compiled("learnable_calibration", pair, shared).rank == 3
    with pytest.raises(CalibrationError, match="in the order one, three; given: three, one. Swap them"):
        compiled("learnable_calibration", [three, one], shared)
    with pytest.raises(CalibrationError, match="adapter 2 is .*'four'"):
        compiled("learnable_calibration", [one, four], shared)


def test_without_the_base_the_adapters_are_compared() -> None:
    one, two = adapter("one", 1), adapter("two", 2)
    assert compiled("learnable_calibration", [one, two], vectors([one, two]), None).rank == 3
    with pytest.raises(CalibrationError, match="Swap them"):
        compiled("learnable_calibration", [two, one], vectors([one, two]), None)


def test_calibration_alone_changes_its_components() -> None:
    content = vectors([], method="learnable_calibration_only", groups={"q_proj": {"p": np.ones(D, np.float32)}})
    found = compiled("learnable_calibration_only", [], content)
    assert set(found.pairs) == {module for module in SHAPES if module.endswith("q_proj")}
    assert (found.rank, found.extra_parameters) == (1, D)
    np.testing.assert_array_equal(found.pairs[FIRST].delta(), np.ones((D, K)))
    with pytest.raises(CalibrationError, match="hidden_size"):
        compiled("learnable_calibration_only", [], content, {**BASE, "hidden_size": 6})
    with pytest.raises(CalibrationError, match="down_proj.*none"):
        wrong = {**content.groups, "down_proj": {"p": np.ones(D, np.float32)}}
        compiled("learnable_calibration_only", [], dataclasses.replace(content, groups=wrong))


@pytest.mark.parametrize("shared", [False, True])
def test_scales_belong_to_modules_or_to_components(shared: bool) -> None:
    one, two = adapter("one", 1), adapter("two", 2, list(SHAPES)[1:])  # which leaves the first module alone
    rng = np.random.default_rng(0)
    names = ("q_proj", "v_proj") if shared else tuple(SHAPES)
    groups = {name: {m: rng.normal(size=K).astype(np.float32) for m in ("m1", "m2")} for name in names}
    content = CalibrationFile("dam", (reference(one), reference(two)), (1.0, 1.0), FACTS, groups)
    found = compiled("dam", [one, two], content)
    for module in SHAPES:
        scales = groups[module.rsplit(".", 1)[1] if shared else module]
        wanted = one.pairs[module].delta() * scales["m1"]
        if module != FIRST:
            wanted = wanted + two.pairs[module].delta() * scales["m2"]
        np.testing.assert_allclose(found.pairs[module].delta(), wanted, rtol=0, atol=1e-5)
    assert found.extra_parameters == 2 * K * len(names)
    if not shared:
        with pytest.raises(CalibrationError, match=f"no tensors 'q_proj.*' for {FIRST}"):
            compiled("dam", [one, two], dataclasses.replace(content, groups={m: groups[m] for m in list(groups)[1:]}))


def test_scales_of_another_width() -> None:
    one = adapter("one", 1)
    groups = {name: {"m1": np.ones(K + 1, np.float32)} for name in ("q_proj", "v_proj")}
    with pytest.raises(CalibrationError, match=r"'q_proj.m1' has shape \(6,\), .* needs \(5,\)"):
        compiled("dam", [one], CalibrationFile("dam", (reference(one),), (1.0,), FACTS, groups))


def test_the_first_module_that_cannot_be_merged_is_named() -> None:
    """Whichever thread finds which first."""
    rng = np.random.default_rng(0)
    one = adapter("one", 1)
    other = {m: LoraPair(rng.normal(size=(3, K)).astype(np.float32), np.ones((D, 3), np.float32)) for m in SHAPES}
    two = LoraAdapter("two", other)
    for _ in range(5):
        with pytest.raises(AdapterError, match=f"ties of one, two at {FIRST}: "):
            compile_recipe(Recipe("ties", ("one", "two")), {"one": one, "two": two}, None, SHAPES, BASE)


def test_compiling_does_not_touch_what_was_compiled(export: Path) -> None:
    """Results lie in memory of their own, not in the threads' scratch, nor in one another's."""
    adapters = {name: LoraAdapter.load(export / name) for name in ("summarize", "professional")}
    shapes = {module: (s.d, s.k) for module, s in adapters["summarize"].shapes.items()}
    first: list[CompiledAdapter] = []
    for method in ("concat", "ties", "linear", "dare_ties", "slerp", "concat"):
        result = compile_recipe(Recipe(method, tuple(adapters)), adapters, None, shapes, None)
        assert result is not None
        first.append(result)
    sums = [sum(float(np.abs(p.a).sum()) + float(np.abs(p.b).sum()) for p in c.pairs.values()) for c in first]
    again = compile_recipe(Recipe("peft_linear", tuple(adapters)), adapters, None, shapes, None)
    assert again is not None
    assert sums == [sum(float(np.abs(p.a).sum()) + float(np.abs(p.b).sum()) for p in c.pairs.values()) for c in first]
    for module, pair in first[0].pairs.items():
        np.testing.assert_array_equal(pair.a, first[-1].pairs[module].a)
        assert pair.a.ctypes.data % 64 == 0


def test_counts_without_loras() -> None:
    for method in ("learnable_calibration", "learnable_calibration_pp"):
        assert calibration_parameters(f"{method}_only", SHAPES) == calibration_parameters(method, SHAPES)
