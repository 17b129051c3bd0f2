"""edgecal and its peers on the same weights, threads and prompts, interleaved in one run.

    python -m bench.peers --model smollm2 --hf DIR          # the demo model; DIR has its bf16 weights
    python -m bench.peers --model FILE.gguf
    python -m bench.peers --shape llama-3.2-1b              # random weights
    ... [--formats native int4 int8] [--threads N] [--rounds R] [--skip NAME ...] [--json FILE] [--plot FILE.png]
    ... [--back-ends ready numba]                           # a row of edgecal's for each

The peers are llama.cpp, ik_llama.cpp, OpenVINO GenAI, ONNX Runtime GenAI, transformers and mistral.rs. Needs
llama-cpp-python and gguf; what another row needs, the row says when it is not there. The models of OpenVINO and ONNX
Runtime are made from --hf (conversions.py). Linux only (memory is read from /proc). EDGECAL_ISA=avx2 with
NUMBA_CPU_NAME=haswell compares with peers that were built for AVX2; what cannot be kept to it is left out.

Measured, each without an adapter, with one rank-32 LoRA on all seven components, and for edgecal with LC++ of two:
decode of 64 tokens behind 0 and 1,024; prefill of 128, 512 and 2,048; a text of 128 tokens to the text of the first
token (warm process). Without an adapter also: load, and the start of a fresh process to its first token, imports
included. Peak memory is VmHWM after loading and a context of 1,024 tokens, of a process that has the engine's own
libraries and CPython in it; with an adapter it is the peak of the same process, which served without one before.

How it is kept fair. Every engine has a process of its own that sleeps while others are measured (its processor time
meanwhile is in the JSON, and above 1 % in the table). Rounds interleave measure by measure, odd ones backwards; the
first, warm-up, round is dropped; ratios are formed within a round. Prompts are tokens of this repository's licence. The
tokens fed in decode are given, so no engine is helped by guessing, and the logits of all are compared. llama.cpp
is driven through its C interface as llama-bench does it: mmap, n_batch = n_ubatch = 512, flash attention by its own
choice, last logits only, weights repacked as it sees fit; which instructions it was built for stands in the JSON.

Traps. A llama-cpp-python wheel that was built for another machine lacks this one's instructions: look at
`facts.system_info`. llama.cpp's peak has its mapped file and its repacked copy. transformers runs float weights
(--torch-dtype), so its ratio compares what people use, not the same bits. mistral.rs gives milliseconds and its own
tokens, OpenVINO its own tokens. OpenVINO computes in bfloat16 with a KV cache of eight bits where it finds that fast;
ONNX Runtime's adapter is part of a second model, rounded as that is. For both, the peak with an adapter is of a process
that holds the model twice. What takes longer than --budget seconds is measured in one round only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from edgecal_kernels.cpu import physical_cores
from edgecal_kernels.dispatch import BACKENDS, backend
from edgecal_kernels.paths import cache_directory
from edgecal_kernels.warmup import warm_up
from edgecal_weights.demo_model import pull_demo_gguf

from ..machine import facts
from .conversions import make_models
from .models import SHAPES, Material, by_back_end, from_files, from_shape
from .protocol import CONTEXT, PREFILLS, Run
from .report import build, plot, table

PACKAGES = ("llama_cpp_python", "ik_llama_cpp_python", "openvino", "openvino_genai", "onnxruntime", "onnxruntime_genai")
PACKAGES += ("torch", "transformers", "peft", "mistralrs", "gguf")
FORMATS = ("native", "int4", "int4_f16", "int8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help='"smollm2" (fetched if needed) or a GGUF file')
    source.add_argument("--shape", choices=sorted(SHAPES), help="random weights in this shape")
    parser.add_argument("--hf", type=Path, metavar="DIR", help="float weights of --model, for int4, int8, transformers")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the demo model's file, instead of fetching it")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["int4", "int8"])
    parser.add_argument("--back-ends", nargs="+", choices=BACKENDS, metavar="NAME", help="a row of edgecal's for each")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--skip",
        nargs="+",
        default=[],
        metavar="NAME",
        help="engines (transformers, mistral.rs, ...), adapters (lora, lc++), measures (prefill_2048, start, read ...)",
    )
    parser.add_argument("--optimum-cli", metavar="FILE", help="of optimum-intel, which makes OpenVINO's models")
    parser.add_argument("--budget", type=float, default=30.0, metavar="S", help="what takes longer is measured once")
    parser.add_argument("--torch-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--work", type=Path, default=cache_directory() / "bench-peers", help="keeps converted models")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def material(arguments: argparse.Namespace) -> Material:
    n_ids = max(*PREFILLS, CONTEXT + 256)
    demo = arguments.gguf
    if demo is None and (arguments.shape or arguments.model == "smollm2"):
        demo = pull_demo_gguf(arguments.work)
    if arguments.shape:
        return from_shape(arguments.shape, demo, arguments.formats, arguments.work, n_ids)
    gguf = demo if arguments.model == "smollm2" else Path(arguments.model)
    return from_files(gguf, arguments.hf, arguments.formats, arguments.work, n_ids)


def main() -> int:
    arguments = parse()
    say("preparing the models")
    prepared = material(arguments)
    wanted = [row for row in prepared.rows if row.engine not in arguments.skip]
    make_models(wanted, arguments.hf, prepared.adapters["peft"][0], arguments.optimum_cli, say)
    if arguments.back_ends:
        prepared.rows = by_back_end(prepared.rows, arguments.back_ends)
    compiled = warm_up() if "numba" in [backend(name).NAME for name in arguments.back_ends or [None]] else 0.0
    say(f"kernels: {compiled:.1f} s to compile" if compiled else "kernels were compiled already")
    started = time.perf_counter()
    run = Run(
        prepared,
        threads=arguments.threads,
        rounds=arguments.rounds,
        skip=set(arguments.skip),
        budget=arguments.budget,
        torch_dtype=arguments.torch_dtype,
        say=say,
    )
    figures = run.run()
    result: dict[str, Any] = {
        "machine": facts(*PACKAGES),
        "settings": {
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "skip": sorted(arguments.skip),
            "torch_dtype": arguments.torch_dtype,
            "adapter_rank": prepared.adapters["rank"],
        },
        "compile_s": compiled or None,
        "run_s": time.perf_counter() - started,
        **build(prepared, figures),
    }
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.plot:
        plot(result, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
