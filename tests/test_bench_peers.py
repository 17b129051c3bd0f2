"""The rows of `bench.peers`, with packages that stand in for the engines: what they are asked, and what comes of it."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bench.peers import conversions, report
from bench.peers.engines import MODULES, engine
from bench.peers.models import Material, Row
from bench.peers.protocol import Peer, PeerError, Run, other_instructions

VNNI = "AVX2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | FMA = 1"
JOB = {"threads": 2, "ids": list(range(3000)), "adapters": {"peft": ["first", "second"], "gguf": "first.gguf"}}

OPENVINO = '''
import numpy as np

__version__ = "fake"


class Tensor:
    def __init__(self, data):
        self.data = data


class Core:
    def get_property(self, device, name):
        return ["INT8", "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else name.lower()
'''
OPENVINO_GENAI = '''
from types import SimpleNamespace

PIPELINES, SHORT, DROPS = [], [0], [False]


class SchedulerConfig:
    enable_prefix_caching, cache_size, max_num_batched_tokens = True, 1, 256


def Adapter(path):
    return path


def AdapterConfig(adapter, alpha):
    return (adapter, alpha)


class LLMPipeline:
    def __init__(self, model, device, **options):
        self.model, self.options, self.asked = model, options, []
        PIPELINES.append(self)

    def get_generation_config(self):
        return SimpleNamespace()

    def generate(self, prompt, config):
        self.asked.append((prompt if isinstance(prompt, str) else prompt.data.shape, config))
        times = [1000.0] * (config.max_new_tokens - 1 - SHORT[0])
        token = 7 if "adapters" in self.options and not DROPS[0] else 3
        metrics = SimpleNamespace(raw_metrics=SimpleNamespace(m_durations=times))
        return SimpleNamespace(tokens=[[token] * config.max_new_tokens], perf_metrics=metrics)
'''


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages that are found here and by the engines' processes, and are forgotten afterwards."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.delenv("EDGECAL_ISA", raising=False)
    yield folder
    for file in folder.iterdir():
        sys.modules.pop(file.stem, None)


@pytest.fixture
def openvino(packages):
    (packages / "openvino.py").write_text(OPENVINO)
    (packages / "openvino_genai.py").write_text(OPENVINO_GENAI)
    return packages


def worker(name: str, **model: str):
    made = engine(name)({**JOB, "model": model})
    made.imports()
    made.load()
    return made


def test_every_engine_answers_what_it_is_asked():
    for name in MODULES:
        assert not getattr(engine(name), "__abstractmethods__", None), name
        assert engine(name).install or name == "edgecal"


def test_openvino_runs_its_own_pipeline(openvino):
    peer = worker("openvino", ir="folder")
    import openvino_genai

    [pipeline] = openvino_genai.PIPELINES
    scheduler = pipeline.options["scheduler_config"]
    assert (pipeline.model, pipeline.options["INFERENCE_NUM_THREADS"]) == ("folder", 2)
    assert not scheduler.enable_prefix_caching and scheduler.max_num_batched_tokens == 3000
    assert peer.decode(64, 1024) == pytest.approx(0.064)  # by its clock, in microseconds
    assert peer.decode(8, 0) == pytest.approx(0.008) and peer.prefill(512) > 0 and peer.first_token("text") > 0
    shapes = [asked for asked, _ in pipeline.asked]
    assert shapes == [(1, 1024), (1, 1), (1, 512), "text"]
    assert all(config.ignore_eos and not config.do_sample for _, config in pipeline.asked)
    assert not pipeline.asked[-1][1].apply_chat_template and peer.probe() is None
    assert peer.facts()["kv_cache_precision"] == "kv_cache_precision"
    openvino_genai.SHORT[0] = 1
    with pytest.raises(RuntimeError, match="timed 63 tokens after the first, 64 were asked for"):
        peer.decode(64, 0)


def test_openvino_must_not_drop_the_adapter(openvino):
    peer = worker("openvino", ir="folder")
    import openvino_genai

    openvino_genai.DROPS[0] = True
    with pytest.raises(RuntimeError, match="left the adapter out"):
        peer.use("lora")
    openvino_genai.DROPS[0] = False
    peer.use("lora")
    assert openvino_genai.PIPELINES[-1].options["adapters"] == ("first/adapter_model.safetensors", 1.0)
    before = len(openvino_genai.PIPELINES)
    for variant in ("base", "lora"):
        peer.use(variant)
        peer.decode(8, 0)
    assert len(openvino_genai.PIPELINES) == before


class Generator:
    """Logits that name the last token and the number of tokens in the cache."""

    def __init__(self, model, params):
        self.model, self.params, self.ids = model, params, []

    def append_tokens(self, ids):
        self.ids += list(ids)
        assert len(self.ids) <= self.params.options["max_length"]

    def get_logits(self):
        logits = np.zeros((1, 1, 4000), np.float32)
        logits[0, 0, self.ids[-1]] = len(self.ids)
        return logits

    def token_count(self):
        return len(self.ids)

    def rewind_to(self, n):
        self.ids = self.ids[:n]


class Params:
    def __init__(self, model):
        self.options = {}

    def set_search_options(self, **options):
        self.options = options


class Config:
    def __init__(self, folder):
        self.folder = folder

    def overlay(self, text):
        self.settings = json.loads(text)


def test_onnxruntime_feeds_the_tokens(monkeypatch):
    tokenizer = SimpleNamespace(encode=lambda text: [5, 6], decode=lambda ids: "text")
    api = SimpleNamespace(Config=Config, Model=lambda config: config, GeneratorParams=Params, Generator=Generator)
    api.Tokenizer, api.__version__ = lambda model: tokenizer, "fake"
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", api)
    peer = worker("onnxruntime", onnx="plain", onnx_lora="adapted")
    assert peer.models["base"].settings["model"]["decoder"]["session_options"] == {"intra_op_num_threads": 2}
    assert min(peer.prefill(2048), peer.decode(64, 0), peer.decode(64, 1024), peer.first_token("text")) > 0
    peer.decode(8, 1024)
    deep = peer.deep["base", 1024]
    assert deep.ids == JOB["ids"][:1032]  # taken back to 1,024 and gone on from there
    probe = peer.probe()
    assert probe is not None and max(probe) in (0, 128)
    peer.use("lora")
    peer.decode(8, 1024)
    assert (deep.model.folder, peer.deep["lora", 1024].model.folder) == ("plain", "adapted")


@pytest.mark.parametrize(("info", "flash"), [(VNNI, True), ("AVX2 = 1 | AVX512_VNNI = 0", False)])
def test_ik_llama_cpp_attaches_adapters(monkeypatch, info, flash):
    calls = []

    class Function:
        def __init__(self, name, value):
            self.name, self.value = name, value

        def __call__(self, *arguments):
            calls.append((self.name, *(getattr(a, "value", a) for a in arguments)))
            return self.value

    library = SimpleNamespace(llama_print_system_info=Function("info", info.encode()))
    library.llama_lora_adapter_clear = Function("clear", None)
    library.llama_lora_adapter_init = Function("init", 77)
    library.llama_lora_adapter_set = Function("set", 0)
    api = SimpleNamespace(_lib=library, llama_model_default_params=lambda: SimpleNamespace(repack_tensors=False))
    seen = {}

    def model(path):
        seen["repacked"] = api.llama_model_default_params().repack_tensors
        return SimpleNamespace(model=11, n_vocab=8)

    def context(native, **options):
        seen.update(options)
        return SimpleNamespace(ctx=33 if options["flash_attn"] else 22, kv_cache_clear=lambda: None)

    package = ModuleType("ik_llama_cpp")
    package._ctypes_api, package._internals = api, SimpleNamespace(IkModel=model, IkContext=context)
    monkeypatch.setitem(sys.modules, "ik_llama_cpp", package)
    peer = worker("ik_llama.cpp", gguf="model.gguf")
    assert seen["repacked"] and seen["flash_attn"] is flash and peer.facts()["flash_attention"] is flash
    first = 33 if flash else 22  # flash attention and adapters do not go together: another context
    peer.use("lora")
    peer._ready(128)
    peer._ready(128)
    assert seen["flash_attn"] is False
    assert [call for call in calls if call[0] != "info"] == [
        ("clear", first),
        ("clear", 22),
        ("init", 11, b"first.gguf"),
        ("set", 22, 77, 1.0),
        ("clear", 22),
        ("set", 22, 77, 1.0),
    ]
    assert library.llama_lora_adapter_init.restype is ctypes.c_void_p  # a pointer, not an int of 32 bits
    library.llama_lora_adapter_set.value = -1
    with pytest.raises(RuntimeError, match="refused the adapter"):
        peer._ready(128)


def rows(folder: Path) -> list[Row]:
    return [
        Row("llama.cpp", "Q4_0", {"gguf": "never looked at"}),
        Row("openvino", "int4", {"ir": str(folder / "openvino-int4")}, "llama.cpp Q4_0", "int4"),
    ]


def tool(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_models_are_made_once_and_whole(openvino, tmp_path, monkeypatch):
    made, said = rows(tmp_path), []
    works = tool(tmp_path / "works", 'for last; do :; done; mkdir "$last" && echo "$PYTHONPATH $@" > "$last/arguments"')
    conversions.make_models(made, tmp_path / "hf", "adapter", works, said.append)
    assert [row.missing for row in made] == ["", ""] and said == ["making openvino-int4"]
    arguments = (tmp_path / "openvino-int4" / "arguments").read_text()
    assert arguments.startswith(" export openvino") and "--weight-format int4 --sym --group-size 32" in arguments
    conversions.make_models(made, None, "adapter", "nowhere", said.append)
    assert [row.missing for row in made] == ["", ""] and len(said) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_what_cannot_be_made_says_why(openvino, tmp_path, monkeypatch):
    def why(hf: Path | None, optimum_cli: str) -> str:
        made = rows(tmp_path)
        conversions.make_models(made, hf, "adapter", optimum_cli, lambda line: None)
        assert not (tmp_path / "openvino-int4").exists()
        return made[1].missing

    assert "--hf DIR" in why(None, "nowhere")
    assert "pip install optimum-intel nncf" in why(tmp_path, "nowhere")
    fails = tool(tmp_path / "fails", "echo one >&2; echo out of memory >&2; exit 3")
    assert why(tmp_path, fails) == f"{fails} export openvino ended with 3: out of memory"
    monkeypatch.setenv("EDGECAL_ISA", "avx2")
    assert "not measured under EDGECAL_ISA" in why(tmp_path, fails)


def test_the_adapter_is_part_of_a_model_of_onnxruntime(tmp_path):
    plain, adapted = (conversions.onnx_command(tmp_path, tmp_path / "out", "int8", a) for a in (None, "adapter"))
    assert plain[1:3] == ["-m", "onnxruntime_genai.models.builder"] and plain[plain.index("-p") + 1] == "int8"
    assert adapted == [*plain, "adapter_path=adapter"]
    assert "--sym" not in conversions.openvino_command("optimum-cli", tmp_path, tmp_path / "out", "int8")


def test_instruction_sets_are_not_mixed():
    assert other_instructions(None, "avx2") is None
    assert other_instructions(VNNI, "avx512vnni") is None and other_instructions("AVX2 = 1", "avx2") is None
    assert "built for AVX-512 VNNI, while edgecal runs avx2" in str(other_instructions(VNNI, "avx2"))
    assert "built without AVX-512 VNNI" in str(other_instructions("AVX2 = 1", "avx512vnni"))


def material(*of: Row) -> Material:
    return Material("fake", JOB["ids"], ["text"], {**JOB["adapters"], "rank": 32}, list(of))


def test_a_run_of_processes(openvino, tmp_path):
    """From the engine's process to the table: an engine that works, one without a model, one without a package."""
    (openvino / "onnxruntime_genai.py").write_text("raise ImportError('no', name='onnxruntime_genai')")
    without = Row("openvino", "int8", {"ir": "x"}, "llama.cpp Q8_0", "int8", missing="no model")
    row = Row("openvino", "int4", {"ir": "folder"}, "llama.cpp Q4_0", "int4")
    prepared = material(row, without, Row("onnxruntime", "int4", {"onnx": "x", "onnx_lora": "y"}))
    settings = {"threads": 1, "budget": 30.0, "torch_dtype": "float32", "say": lambda line: None}
    result = report.build(prepared, Run(prepared, rounds=1, skip={"start"}, **settings).run())
    measured = {row["label"]: row for row in result["rows"]}
    decode = measured["openvino int4"]["variants"]["lora"]["measures"]["decode_1024"]
    assert decode["unit"] == "tok/s" and decode["median"] == pytest.approx(1000)
    assert measured["openvino int8"]["remarks"] == ["no model"]
    assert measured["onnxruntime int4"]["remarks"] == [
        "not installed (onnxruntime_genai): pip install onnxruntime-genai"
    ]
    result |= {"machine": {"cpu": "fake"}, "settings": {"threads": 1}}
    table = report.table(result)
    assert "| openvino int4 | lora |" in table and "| onnxruntime int4 | not installed" in table


def test_an_engine_that_fails_says_so_in_its_own_words(openvino):
    peer = Peer(Row("openvino", "int4", {}), material(), 1, "float32")
    try:
        with pytest.raises(PeerError, match="KeyError: 'ir'"):
            peer.ask("load")
    finally:
        peer.close()
