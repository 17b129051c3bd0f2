"""edgecal on ARM without a device: counted instructions, analyzed loops, predicted speeds.

    python -m bench.arm count --plugin libcount.so --machine DIR --ready DIR --llama llama_count \
        --edgecal-model PACKED --llama-model FILE.gguf --name q4_0 --json arm.json
    python -m bench.arm loops --llama llama_count --json arm.json
    python -m bench.arm predict arm.json

bench/README.md says how the plugin, llama_count and the folders are made. Every part adds its figures to the file.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.arm import counting, loops, prediction


def _kept(path: Path | None) -> dict[str, Any]:
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def _keep(path: Path | None, section: str, found: dict[str, Any]) -> None:
    if path is not None:
        known = _kept(path)
        known.setdefault(section, {}).update(found)
        path.write_text(json.dumps(known, indent=1) + "\n")


def count(options: argparse.Namespace) -> None:
    numbers = options.prompt, options.decode
    commands = {
        "edgecal": (
            counting.edgecal_command(options.machine, options.cpu, options.edgecal_model, *numbers),
            counting.edgecal_environment(options.machine, options.ready),
        ),
        "llama.cpp": (counting.llama_command(options.llama, options.cpu, options.llama_model, *numbers), {}),
    }
    found: dict[str, Any] = {"cpu": options.cpu, "prompt": options.prompt, "decode": options.decode}
    last = {}
    for engine, (command, environment) in commands.items():
        marks, last[engine] = counting.run(command, options.plugin, environment)
        found[engine] = counting.per_token(marks, *numbers)
    found["same_token"] = len(set(last.values())) == 1
    print(f"{options.name}, {options.cpu}: millions of instructions per token")
    print(f"the engines choose the same token after it: {found['same_token']}")
    print("{:9}{:11}".format("part", "engine") + "".join(f"{name:>19}" for name in (*counting.CLASSES, "SIMD")))
    for part in ("prefill", "decode"):
        simd = {engine: counting.simd(found[engine][part]) for engine in commands}
        for engine in commands:
            values = [*(found[engine][part][name] for name in counting.CLASSES), simd[engine]]
            print(f"{part:9}{engine:11}" + "".join(f"{value / 1e6:19.2f}" for value in values))
        print(f"{part:9}SIMD instructions of edgecal by llama.cpp's: {simd['edgecal'] / simd['llama.cpp']:.3f}")
    _keep(options.json, "counted", {options.name: found})


def analyze(options: argparse.Namespace) -> None:
    found = {}
    for device in prediction.DEVICES:
        tools = device.core, options.objdump, options.mca
        found[device.isa] = {"core": device.core, "edgecal": loops.edgecal_loops(device.isa, *tools)}
        if options.llama is not None and device.isa == "neon_dotprod":  # what it is compiled for
            found[device.isa]["llama.cpp"] = loops.llama_loops(options.llama, *tools)
    print("per 128 weights and token                            cycles  instructions   SIMD")
    for isa_name, entry in found.items():
        for engine in ("edgecal", "llama.cpp"):
            for name, figures in entry.get(engine, {}).items():
                row = "{cycles:8.2f}{instructions:14.2f}{simd:7.2f}".format(**figures)
                print(f"{isa_name:13} {entry['core']:12} {name:24} {row}")
    _keep(options.json, "loops", found)


def predict(options: argparse.Namespace) -> None:
    known = _kept(options.file)
    if not known.get("counted") or not known.get("loops"):
        raise SystemExit(f"error: {options.file} has no counts or no loops; run `count` and `loops` with --json first")
    rows = []
    for name, work in prediction.MODELS.items():
        counted = known["counted"].get(name)
        if counted is None:
            continue
        rest = prediction.others(work, counted["edgecal"], known["loops"]["neon_dotprod"]["edgecal"])
        for device in prediction.DEVICES:
            cycles = known["loops"][device.isa]["edgecal"]
            rows += [{"model": name, **row} for row in prediction.predict(device, work, cycles, rest)]
    print("predicted, not measured: tokens/s")
    for row in rows:
        threads = "{model:6} {device:24}{threads:2} threads".format(**row)
        print(threads + ": decode {decode:5.0f} ({limit}), prefill {prefill:5.0f}".format(**row))
    _keep(options.file, "predicted", {"rows": rows, "devices": {d.name: d.source for d in prediction.DEVICES}})


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.arm", description=__doc__, formatter_class=style)
    parts = parser.add_subparsers(required=True, metavar="PART")
    one = parts.add_parser("count", help="executed instructions per token under emulation, beside llama.cpp's")
    one.add_argument("--plugin", type=Path, required=True, help="the counting plugin of qemu-user, compiled")
    one.add_argument("--machine", type=Path, required=True, help="what tests/arm/setup.sh made")
    one.add_argument("--ready", type=Path, required=True, help="ready-made kernels for the emulated core")
    one.add_argument("--llama", type=Path, required=True, help="llama_count, for aarch64")
    one.add_argument("--edgecal-model", type=Path, required=True, help="`edgecal quantize` of the file below")
    one.add_argument("--llama-model", type=Path, required=True, help="a GGUF file")
    one.add_argument("--name", required=True, help=f"what to call it; {', '.join(prediction.MODELS)} can be predicted")
    one.add_argument("--cpu", default="cortex-a76", help="the emulator's core")
    one.add_argument("--prompt", type=int, default=64, help="tokens of the prompt")
    one.add_argument("--decode", type=int, default=8, help="tokens after it")
    one.add_argument("--json", type=Path, metavar="FILE")
    one.set_defaults(run=count)
    two = parts.add_parser("loops", help="cycles per 128 weights of the products' loops, by llvm-mca")
    two.add_argument("--llama", type=Path, help="llama_count, for its loops beside")
    two.add_argument("--objdump", default="llvm-objdump-19")
    two.add_argument("--mca", default="llvm-mca-19")
    two.add_argument("--json", type=Path, metavar="FILE")
    two.set_defaults(run=analyze)
    three = parts.add_parser("predict", help="tokens/s from both and from published bandwidths")
    three.add_argument("file", type=Path, help="the --json of the other two")
    three.set_defaults(run=predict)
    options = parser.parse_args()
    options.run(options)
    if path := getattr(options, "json", None) or getattr(options, "file", None):
        _keep(path, "made_with", {name: version(name) for name in ("edgecal", "numba", "llvmlite")})


if __name__ == "__main__":
    main()
