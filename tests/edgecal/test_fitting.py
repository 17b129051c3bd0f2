"""What fits into memory is loaded, what does not is refused with what would fit."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from edgecal import Engine
from edgecal.cli import COMMANDS
from edgecal.config import ModelConfig
from edgecal.errors import MemoryLimitError, OptionError
from edgecal.fitting import Loading, need
from edgecal.memory import resident, room
from edgecal_kernels import reference
from edgecal_weights.opening import open_checkpoint
from edgecal_weights.sizes import read_size
from tests.cli.shell import edgecal, environment
from tests.tiny import write_tiny_hf

MIB = 1 << 20


def put(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


FREE = {"proc/meminfo": "MemTotal: 4000000 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n"}
V2 = {"memory.max": "3145728\n", "memory.current": "2621440\n", "memory.stat": "anon 9\ninactive_file 524288\n"}
V1 = {
    "memory.limit_in_bytes": "1048576",
    "memory.usage_in_bytes": "1000000",
    "memory.stat": "inactive_file 7\ntotal_inactive_file 400000\ntotal_active_file 100000\n",
}


@pytest.mark.parametrize(
    ("files", "nbytes", "where"),
    [
        (FREE, 2 * MIB, "free on this machine"),
        (FREE | {f"sys/fs/cgroup/{name}": text for name, text in V2.items()}, MIB, "control group"),
        (
            FREE
            | {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
            | {f"sys/fs/cgroup/a/{name}": text for name, text in V2.items()},
            MIB,
            "control group",
        ),
        (
            FREE
            | {"proc/self/cgroup": "4:memory:/x\n"}
            | {f"sys/fs/cgroup/memory/x/{name}": text for name, text in V1.items()},
            1048576 - 500000,
            "control group",
        ),
        (FREE | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 2 * MIB, "this machine"),
        (FREE | {"sys/fs/cgroup/memory.max": "9\n", "sys/fs/cgroup/memory.current": "12\n"}, 0, "control group"),
    ],
)
def test_room(tmp_path: Path, files: dict[str, str], nbytes: int, where: str) -> None:
    found = room(put(tmp_path, files))
    assert found is not None and found.nbytes == nbytes and where in found.where


def test_room_that_nothing_tells(tmp_path: Path) -> None:
    assert room(tmp_path) is None
    assert room() is not None  # of this machine


def test_room_within_the_limits_of_the_process() -> None:
    code = """
import resource; from edgecal.memory import room
used = {l.split(":")[0]: int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith("Vm")}
resource.setrlimit(resource.RLIMIT_AS, (used["VmSize"] + (99 << 20),) * 2); found = room()
assert abs(found.nbytes - (99 << 20)) < 9 << 20 and "ulimit -v" in found.where, found
"""
    subprocess.run([sys.executable, "-c", code], env=environment(Path("/nowhere")), check=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few weights and a long context: what a token takes decides."""
    return write_tiny_hf(tmp_path_factory.mktemp("fit") / "model", max_position_embeddings=1 << 20)


def needed(model: Path, **changes: str) -> tuple[int, int]:
    """Bytes of everything but the context, and of 256 tokens of it, by the estimate."""
    with open_checkpoint(model) as checkpoint:
        options = {"weights": "auto", "group_size": 32, "cache_dtype": "fp16", "prefix_cache": 0} | changes
        found = need(checkpoint, ModelConfig.from_dict(checkpoint.config), Loading(ops=reference, **options))
    return found.total(0), found.total(256) - found.total(0)


def test_the_context_is_what_there_is_memory_for(model: Path) -> None:
    fixed, block = needed(model)
    limit = resident() + fixed + 200 * block
    engine = Engine.load(model, backend="numpy", memory_limit=limit)
    context = engine.model.config.max_position_embeddings
    assert 150 * 256 < context <= 200 * 256 and context % 256 == 0
    assert f"memory is enough for {context:,} tokens of context, the model has 1,048,576" in engine.note
    assert "memory" not in Engine.load(model, backend="numpy", memory_limit=limit, context=2560).note
    for given in (0, None):
        assert Engine.load(model, backend="numpy", memory_limit=given, context=4096).note == ""
    assert Engine.load(model, backend="numpy", memory_limit=0).model.config.max_position_embeddings == 1 << 20


def test_what_does_not_fit_is_refused_with_what_would(model: Path) -> None:
    fixed, block = needed(model)
    limit = resident() + fixed + 200 * block
    with pytest.raises(MemoryLimitError, match=r"model takes some [\d,]+ MiB .*weights 0 MiB, 262,144 tok") as told:
        Engine.load(model, backend="numpy", memory_limit=limit, context=1 << 18)
    assert "left of the memory limit" in str(told.value) and len(str(told.value)) < 600
    assert "a context of" in str(told.value) and "--cache-dtype int8" in str(told.value)
    with pytest.raises(MemoryLimitError, match="0 MiB are left of the memory limit.*int8.* would still take "):
        Engine.load(model, backend="numpy", memory_limit=1)
    with pytest.raises(MemoryLimitError, match="weights in int4"):
        Engine.load(model, backend="numpy", memory_limit=resident() + fixed // 2, weights="fp32")


@pytest.mark.parametrize("limit", [-1, True, 1.5, "1G"])
def test_limits_that_are_none(model: Path, limit: object) -> None:
    with pytest.raises(OptionError, match="memory_limit must be a number of bytes"):
        Engine.load(model, backend="numpy", memory_limit=limit)


def test_the_estimate_is_on_the_large_side(model: Path) -> None:
    """Beside what a process really takes, with a long prompt."""
    code = """
import sys; from edgecal import Engine, Settings; from edgecal.memory import *
import edgecal_weights.hf_tokenizer, edgecal_weights.huggingface, numpy.random
before = resident(); engine = Engine.load(sys.argv[1], backend="numpy", context=4096)
list(engine.stream_ids([5 + i % 100 for i in range(4000)], settings=Settings(max_tokens=9)))
print(peak_resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], env=environment(model.parent), capture_output=True, text=True
    )
    fixed, block = needed(model)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < fixed + 16 * block


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("0", 0), ("800M", 800 << 20), ("1.5G", 3 << 29), ("2 GiB", 2 << 30), ("7kb", 7 << 10), (" 5 ", 5)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert read_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1e9", "1..5G", "12 apples", "0x10", "nan"])
def test_no_sizes(text: str) -> None:
    assert read_size(text) is None


def test_every_command_that_loads_a_model_takes_a_limit() -> None:
    commands = {name: import_module(f"edgecal.cli.{name}").command for name in COMMANDS}
    options = {name: {option for one in command.params for option in one.opts} for name, command in commands.items()}
    loading = {name for name, found in options.items() if found & {"--threads", "--backend"}}
    assert loading == {name for name, found in options.items() if "--memory-limit" in found}
    assert {"demo", "generate", "chat", "serve", "eval", "tune", "profile", "perplexity", "search", "verify"} == loading


def test_at_the_command_line(model: Path, tmp_path: Path) -> None:
    refused = edgecal("generate", model, "Hi", "--memory-limit", "20M", home=tmp_path)
    assert refused.returncode == 1 and "MiB are left of the memory limit" in refused.stderr
    assert refused.stderr.count("\n") == 1
    wrong = edgecal("generate", model, "Hi", "--memory-limit", "much", home=tmp_path)
    assert wrong.returncode == 2 and "'much' is no size such as 800M or 1.5G" in wrong.stderr
    done = edgecal("generate", model, "Hi", "--max-tokens", "2", "--memory-limit", "400M", home=tmp_path)
    assert done.returncode == 0 and "memory is enough for" in done.stderr
