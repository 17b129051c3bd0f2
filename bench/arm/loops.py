"""Innermost loops of compiled aarch64 code, and what LLVM's machine-code analyzer (llvm-mca) says of them.

The input is what `llvm-objdump -d` prints of an object file or a program: a function's name, then its instructions. A
loop begins where a branch backwards goes to and ends with that branch; it is innermost when no other one lies in it.
Such a loop is straight code (rarely taken branches out of it count as not taken), which is what llvm-mca understands:
it runs the body many times through a model of the processor and counts cycles. The model has no caches: every load
hits the first level.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_FUNCTION = re.compile(r"^[0-9a-f]+ <(?P<name>.+)>:$")
_LINE = re.compile(r"^\s*(?P<at>[0-9a-f]+):\s+(?P<text>\S.*)$")
_BRANCH = re.compile(r"^(?:b|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\w+,)\s+0x(?P<to>[0-9a-f]+)")
_COMMENT = re.compile(r"\s*(?://|<).*$")
ITERATIONS = 200
FEATURES = "+dotprod,+i8mm,+fullfp16"
DOTS = {"sdot": 16, "smmla": 32, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}  # products of an instruction
LLAMA_FUNCTIONS = (  # one token, then several, of what is repacked when it is loaded; then rows as they lie in a file
    "ggml_gemv_q4_0_4x4_q8_0",
    "ggml_gemm_q4_0_4x4_q8_0",
    "ggml_gemv_q8_0_4x4_q8_0",
    "ggml_gemm_q8_0_4x4_q8_0",
    "ggml_vec_dot_q4_1_q8_1",
)


@dataclass(frozen=True)
class Instruction:
    at: int
    text: str

    @property
    def target(self) -> int | None:
        """Where a branch within the function goes to."""
        found = _BRANCH.match(self.text)
        return int(found["to"], 16) if found else None


@dataclass(frozen=True)
class Loop:
    """The body of an innermost loop, its branch included."""

    function: str
    body: tuple[Instruction, ...]

    def count(self, *mnemonics: str) -> int:
        return sum(instruction.text.split()[0] in mnemonics for instruction in self.body)

    def products(self) -> int:
        """Of weights and activations; smull of plain registers is another instruction."""
        kinds = [instruction.text.split()[0] for instruction in self.body if " v" in instruction.text]
        return sum(DOTS.get(kind, 0) for kind in kinds)

    def simd(self) -> int:
        """Instructions that name a SIMD register, prefetches and branches left out."""
        return sum(bool(re.search(r"[ {]([vqds]\d+)\b", instruction.text)) for instruction in self.body)


def functions(disassembly: Iterable[str]) -> Iterator[tuple[str, list[Instruction]]]:
    name, body = "", list[Instruction]()
    for line in disassembly:
        if found := _FUNCTION.match(line.strip()):
            if body:
                yield name, body
            name, body = found["name"], []
        elif found := _LINE.match(line):
            body.append(Instruction(int(found["at"], 16), found["text"].replace("\t", " ").strip()))
    if body:
        yield name, body


def innermost_loops(disassembly: Iterable[str]) -> Iterator[Loop]:
    for name, body in functions(disassembly):
        place = {instruction.at: i for i, instruction in enumerate(body)}
        spans = {
            (place[target], i)
            for i, instruction in enumerate(body)
            if (target := instruction.target) is not None and target <= instruction.at and target in place
        }
        for first, last in sorted(spans):
            if not any((a, b) != (first, last) and first <= a and b <= last for a, b in spans):
                yield Loop(name, tuple(body[first : last + 1]))


def assembly(loop: Loop) -> str:
    """The body for llvm-mca: branches go to a label, comments and symbols are left out."""
    lines = []
    for instruction in loop.body:
        text = _COMMENT.sub("", instruction.text)
        if instruction.target is not None:
            text = re.sub(r"0x[0-9a-f]+$", "loop", text)
        lines.append(text)
    return "\n".join(["loop:", *lines]) + "\n"


def cycles(loop: Loop, cpu: str, features: str = "", tool: str = "llvm-mca") -> float:
    """Cycles of an iteration on a processor of LLVM's (`-mcpu`)."""
    command = [tool, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
    command += [f"-mattr={features}"] if features else []
    done = subprocess.run(command, input=assembly(loop), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {tool} refused a loop of {loop.function}: {done.stderr.strip()[:400]}")
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found is not None, done.stdout[:400]
    return int(found[1]) / ITERATIONS


def disassemble(file: Path, objdump: str, symbols: Sequence[str] = ()) -> list[str]:
    """All of a file, or the functions called so."""
    command = [objdump, "-d", "--no-show-raw-insn", f"--mattr={FEATURES}", str(file)]
    command += [f"--disassemble-symbols={','.join(symbols)}"] if symbols else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {objdump} cannot read {file}: {done.stderr.strip()[:400]}")
    return done.stdout.splitlines()


def busiest(disassembly: Iterable[str]) -> Loop:
    """The innermost loop with the most dot products."""
    return max(innermost_loops(disassembly), key=lambda loop: loop.count(*DOTS))


def figures(loop: Loop, units: float, cpu: str, mca: str) -> dict[str, float]:
    """Per 128 weights and token, of a loop that does `units` of them."""
    return {
        "cycles": cycles(loop, cpu, FEATURES, mca) / units,
        "instructions": len(loop.body) / units,
        "simd": loop.simd() / units,
    }


def edgecal_loops(isa_name: str, cpu: str, objdump: str, mca: str) -> dict[str, dict[str, float]]:
    """By format and "one" or "many" tokens; a kernel whose steps of 32 columns have loops in them is left out."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, "-m", "bench.arm.compile", isa_name, str(folder)]
        settings = {**os.environ, "EDGECAL_ISA": isa_name}
        done = subprocess.run(command, env=settings, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"error: compiling for {isa_name} failed: {done.stderr.strip()[-400:]}")
        rows, tokens = (int(word) for word in done.stdout.split()[-2:])
        units = {"one": 16 * 32 / 128, "many": rows * tokens * 32 / 128}  # of a step of 32 columns
        found = {}
        for file in sorted(folder.glob("*.o")):
            loop, n = busiest(disassemble(file, objdump)), units[file.stem.split("-")[1]]
            if loop.products() >= n * 128:
                found[file.stem.replace("-", " ")] = figures(loop, n, cpu, mca)
        return found


def llama_loops(program: Path, cpu: str, objdump: str, mca: str) -> dict[str, dict[str, float]]:
    """As `edgecal_loops`, by llama.cpp's names of the functions."""
    found = {}
    for name in LLAMA_FUNCTIONS:
        loop = busiest(disassemble(program, objdump, [name]))
        if loop.products():
            found[name] = figures(loop, loop.products() / 128, cpu, mca)
    return found
