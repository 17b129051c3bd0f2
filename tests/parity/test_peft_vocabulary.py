"""LoRA of the embedding and of the head beside PEFT, for heads of their own and tied ones: logits, merges, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from edgecal import Engine, KVCache, Recipe, Settings
from edgecal.adapters.export import write_peft
from edgecal.errors import AdapterError
from tests.tiny import write_tiny_hf

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]

IDS = [5, 70, 100, 3, 260, 5, 44, 9]
CASES: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "ranks of their own": {
        "target_modules": ["embed_tokens", "lm_head", "v_proj"],
        "rank_pattern": {"embed_tokens": 2, "lm_head": 6},
        "alpha_pattern": {"lm_head": 9},
        "use_rslora": True,
    },
    "tied by PEFT": {"target_modules": ["embed_tokens", "o_proj"], "ensure_weight_tying": True},
}


def model_folder(root: Path, tied: bool) -> Path:
    return write_tiny_hf(root / f"model-{tied}", tie_word_embeddings=tied)


def theirs(folder: Path, options: dict[str, Any], seed: int) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options))
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for name, parameter in model.named_parameters():
        if ".default" in name and id(parameter) not in done:
            done.add(id(parameter))
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabulary")


@pytest.fixture(scope="module")
def made(root: Path) -> dict[tuple[str, bool], tuple[PeftModel, Path]]:
    found = {}
    for tied in (False, True):
        folder = model_folder(root, tied)
        for seed, (name, options) in enumerate(CASES.items()):
            if options.get("ensure_weight_tying") and not tied:
                continue
            model = theirs(folder, options, seed)
            path = root / f"{name}-{tied}".replace(" ", "-")
            model.save_pretrained(path, save_embedding_layers=False)
            found[name, tied] = model, path
    return found


PAIRS = [(name, tied) for tied in (False, True) for name in CASES if tied or name != "tied by PEFT"]


def engine_of(root: Path, tied: bool, path: Path, **options: Any) -> Engine:
    asked = {"weights": "fp32", "cache_dtype": "fp32"} | options
    return Engine.load(model_folder(root, tied), adapters={"mine": path}, **asked)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(("name", "tied"), PAIRS)
def test_logits_equal_pefts(root, made, name, tied, backend):
    model, path = made[name, tied]
    with torch.no_grad():
        wanted = model(torch.tensor([IDS])).logits[0].numpy()
        base = model.get_base_model()
    engine = engine_of(root, tied, path, backend=backend)
    (adapter,) = engine.compile(Recipe("single", ("mine",)))
    cache = KVCache(engine.model.config, "fp32")
    found = engine.model.forward(np.array(IDS), cache, adapter, all_logits=True)
    assert np.abs(found - wanted).max() <= 2e-4 * max(1, np.abs(wanted).max())
    assert (
        np.abs(
            found - engine.model.forward(np.array(IDS), KVCache(engine.model.config, "fp32"), None, all_logits=True)
        ).max()
        > 1e-2
    ), "it changes something"
    one_by_one = KVCache(engine.model.config, "fp32")
    steps = [engine.model.forward(np.array([token]), one_by_one, adapter) for token in IDS]
    assert np.abs(np.array(steps) - wanted).max() <= 2e-4 * max(1, np.abs(wanted).max())
    assert base is not None


@pytest.mark.parametrize(("name", "tied"), [("both", False), ("both", True), ("tied by PEFT", True)])
def test_on_quantized_weights_alone_and_in_batches(root, made, name, tied):
    """The compiled decoder hands such an adapter to the single operations; a neighbour in the batch is unharmed."""
    engine = engine_of(root, tied, made[name, tied][1], weights="int4", cache_dtype="fp16", backend="numba")
    recipe, settings = Recipe("single", ("mine",)), Settings(max_tokens=8)
    prompts, recipes = ["a b c", "x y z", "a b c"], [recipe, None, None]
    alone = [engine.generate(p, recipe=r, settings=settings).text for p, r in zip(prompts, recipes, strict=True)]
    together = engine.generate_batch(prompts, recipes=recipes, settings=settings, batch_size=3)
    assert [answer.text for answer in together] == alone
    drafted = engine.generate(prompts[0], recipe=recipe, settings=Settings(max_tokens=8, speculate=3))
    assert drafted.text == alone[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["linear", "peft_linear", "concat", "ties"])
def test_merges_hold_for_them_as_for_any_module(root, made, tied, method, tmp_path):
    """Two adapters of both: dW of embedding and head by the method's own formula on the factors of the files, and what
    is written back is read by PEFT to the same logits."""
    other = theirs(model_folder(root, tied), CASES["both"], 77)
    other.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    engine = engine_of(root, tied, made["both", tied][1])
    engine.add_adapter(tmp_path / "other", "other")
    recipe = Recipe(method, ("mine", "other"))
    (merged,) = engine.merge(recipe)
    assert {"model.embed_tokens", "lm_head"} <= set(merged.pairs)
    write_peft(merged, tmp_path / "merged", shapes=engine.model.adaptable_shapes)
    base = AutoModelForCausalLM.from_pretrained(model_folder(root, tied), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path / "merged").eval()
    with torch.no_grad():
        wanted = loaded(torch.tensor([IDS])).logits[0].numpy()
    found = engine.model.forward(
        np.array(IDS), KVCache(engine.model.config, "fp32"), engine.compile(recipe)[0], all_logits=True
    )
    assert np.abs(found - wanted).max() <= 3e-4 * max(1, np.abs(wanted).max())


def test_linear_of_the_embedding_by_hand(root, made, tmp_path):
    engine = engine_of(root, False, made["both", False][1])
    engine.add_adapter(made["embedding", False][1], "other")
    (merged,) = engine.merge(Recipe("linear", ("mine", "other")))
    pairs = [engine.adapters[name].pairs["model.embed_tokens"] for name in ("mine", "other")]
    a = sum(pair.a for pair in pairs) / 2
    b = sum(pair.scaling * pair.b for pair in pairs) / 2
    found = merged.pairs["model.embed_tokens"]
    np.testing.assert_allclose(found.b @ found.a, b @ a, rtol=0, atol=1e-6)


def test_a_tied_adapter_on_a_base_with_a_head_of_its_own_is_refused(root, made):
    engine = Engine.load(model_folder(root, False), weights="fp32")
    with pytest.raises(AdapterError, match="was trained on a base whose head is its embedding"):
        engine.add_adapter(made["tied by PEFT", True][1], "mine")
        engine.compile(Recipe("single", ("mine",)))
