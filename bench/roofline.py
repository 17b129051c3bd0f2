"""How far the kernels are from what the machine can do: `python -m bench.roofline`.

A product of T tokens with a packed weight (d, k) reads its weights once, B = nbytes, and does 2 d k T operations. Two
roofs bound it, and both are measured here and not taken from a data sheet:

    time >= B / plain read of memory        (the lower roof for few tokens)
    time >= 2 d k T / peak of the integer dot product, from registers      (the lower roof for many)

`share` is the larger of the two times by the time that was taken: 1.00 is the roof. All measurements of a round are
interleaved, and the table shows the fastest round of each, because a roof is what the machine can do when nothing
disturbs it; the JSON has the medians as well. Weights that serve few tokens are taken in turn from copies that no
cache holds together; the products are called from Python as in a prefill, and what an empty call costs stands in the
table. Products of float32 by NumPy's BLAS stand beside: the same shapes, no rounding.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numba
import numpy as np
from numba import prange

from bench.machine import facts
from edgecal_kernels.cached import TYPES, Cached
from edgecal_kernels.dispatch import backend
from edgecal_kernels.quant import FORMATS, QuantizedTensor, quantize
from edgecal_kernels.threads import number_of_threads, use_threads

SHAPES = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (8192, 2048))
TOKENS = (1, 2, 4, 8, 16, 64, 512)
_STREAMED, _MOST_COPIES = 96 << 20, 1000  # bytes of copies of a weight
_PLAIN = 128 << 20


@dataclass
class Measure:
    """One line: `bytes` are read and `operations` done per call, in `seconds` at best."""

    operation: str
    shape: str
    tokens: int
    bytes: float
    operations: float
    run: Callable[[], object]
    calls: int = 1
    seconds: float = 0.0
    median_seconds: float = 0.0


def _plain_read() -> Measure:
    @numba.njit(parallel=True, nogil=True)
    def read(words: np.ndarray, sums: np.ndarray) -> None:
        for share in prange(sums.shape[0]):
            part = words[len(words) * share // sums.shape[0] : len(words) * (share + 1) // sums.shape[0]]
            total = 0
            for i in range(len(part)):  # from nought: the compiler sees no negative index, and reads vectors
                total += part[i]
            sums[share] = total

    words, sums = np.ones(_PLAIN // 8, np.int64), np.zeros(numba.get_num_threads(), np.int64)
    read(words, sums)
    return Measure("plain read of memory", "", 0, words.nbytes, 0, lambda: read(words, sums))


def _peak() -> Measure:
    """Dot products of one block after another from registers, four blocks at a time to hide their latency."""
    from edgecal_kernels import blocks, memory

    begin, dot8, finish = blocks.BEGIN[8, blocks.WHOLE], blocks.DOT8[4], blocks.FINISH[4, 8, blocks.WHOLE]

    @numba.njit(parallel=True, nogil=True)
    def peak(lines: int, packed: int, ones: int, out: np.ndarray, n: int) -> None:
        for share in prange(out.shape[0]):
            first, second = blocks.load_lines(lines, 0), blocks.load_lines(lines + 64, 0)
            a, b = begin(blocks.zeros4(), packed), begin(blocks.zeros4(), packed)
            for _ in range(n):
                a = dot8(a, first, second, packed)
                b = dot8(b, first, second, packed)
            scale, sums = blocks.load_factors(ones, 0), blocks.zeros4()
            sums = blocks.scale_and_add(sums, finish(a, packed), scale, packed)
            sums = blocks.scale_and_add(sums, finish(b, packed), scale, packed)
            blocks.store(memory.address(out[share]), blocks.TILES * 64, 64, sums)

    n, threads = 200_000, numba.get_num_threads()
    lines, packed, ones = np.arange(128, dtype=np.uint8) & 15, np.ones(256, np.uint8), np.ones(16, np.float32)
    out = np.empty((threads, 4 * 2 * 16), np.float32)
    held = (lines, packed, ones)

    def run() -> object:
        return peak(held[0].ctypes.data, held[1].ctypes.data, held[2].ctypes.data, out, n)

    run()
    return Measure("peak of the dot product", "", 0, 0, 2.0 * 2 * 8 * blocks.ROWS * 4 * blocks.TILES * n * threads, run)


def _in_turn(run: Callable[[QuantizedTensor], object], weights: list[QuantizedTensor]) -> Callable[[], object]:
    def all_of_them() -> None:
        for weight in weights:
            run(weight)

    return all_of_them


def _copies(weight: QuantizedTensor) -> list[QuantizedTensor]:
    def one() -> QuantizedTensor:
        copied = {part: array.copy() for part, array in weight.arrays.items()}
        return QuantizedTensor(weight.format, weight.shape, weight.group_size, **copied)

    return [one() for _ in range(min(-(-_STREAMED // weight.nbytes), _MOST_COPIES))]


def _products(shape: tuple[int, int], tokens: tuple[int, ...], formats: tuple[str, ...]) -> list[Measure]:
    ops, rng = backend("numba"), np.random.default_rng(0)
    d, k = shape
    dense = rng.standard_normal(shape, np.float32)
    inputs = {n: rng.standard_normal((n, k), np.float32) for n in tokens}
    measures = []
    for format in formats:
        weight = quantize(dense, format)
        streamed = _copies(weight)
        for n, x in inputs.items():
            activations = ops.Activations(x)
            activations.rounded()
            weights = streamed if n <= 4 else [weight] * max(1, 128 // n)
            run = _in_turn(lambda w, a=activations: ops.matmul(a, w), weights)  # type: ignore[misc]
            cost = weight.nbytes, 2.0 * d * k * n
            measures.append(Measure(format, f"{d}x{k}", n, *cost, run, len(weights)))
    for n, x in inputs.items():
        calls = max(1, 64 // n)

        def blas(x: np.ndarray = x, calls: int = calls) -> None:
            for _ in range(calls):
                x @ dense.T

        measures.append(Measure("float32 BLAS", f"{d}x{k}", n, dense.nbytes, 2.0 * d * k * n, blas, calls))
    return measures


def _others() -> list[Measure]:
    """The rest of a step, at the sizes of a model with 2,048 dimensions and 32 heads over 8 of the cache."""
    ops, rng = backend("numba"), np.random.default_rng(0)
    x = rng.standard_normal((512, 2048), np.float32)
    wide = rng.standard_normal((512, 8192), np.float32)
    q = rng.standard_normal((512, 32, 64), np.float32)
    seen = 1024 + 256  # keys of a token in the middle of the 512 that follow 1,024
    work = 4.0 * 32 * 64
    tiny = quantize(np.ones((16, 32), np.float32), "int8")
    one = ops.Activations(np.ones((1, 32), np.float32))
    one.rounded()
    measures = [
        Measure(
            "empty call",
            "16x32",
            1,
            tiny.nbytes,
            2.0 * 16 * 32,
            _in_turn(lambda w: ops.matmul(one, w), [tiny] * 200),
            200,
        ),
        Measure("round to int8", "512x2048", 512, x.nbytes * 1.25, 0, lambda: ops.quantize_rows(x)),
        Measure("rms_norm", "512x2048", 512, x.nbytes * 2, 0, lambda: ops.rms_norm(x, x[0], 1e-5)),
        Measure("swiglu", "512x8192", 512, wide.nbytes * 3, 0, lambda: ops.gated(wide.copy(), wide)),
    ]
    for dtype in TYPES:
        cached = Cached(dtype, 1, 8, 1536, 64)
        ops.remember(cached, 0, 0, *(rng.standard_normal((1536, 8, 64), np.float32) for _ in range(2)))
        for n, keys in ((1, 1025), (512, seen)):

            def attend(n: int = n, cached: Cached = cached) -> object:
                return ops.attention(q[:n], cached, 0, 1024)

            read = cached.nbytes * (1024 + n) / 1536
            measures.append(Measure(f"attention {dtype}", "after 1024", n, read, work * keys * n, attend))
    return measures


def measure(measures: list[Measure], rounds: int) -> None:
    """Fill in the seconds. The first run of each only warms caches."""
    times: list[list[float]] = [[] for _ in measures]
    for round_ in range(rounds + 1):
        for taken, one in zip(times, measures, strict=True):
            start = perf_counter()
            one.run()
            if round_:
                taken.append((perf_counter() - start) / one.calls)
    for taken, one in zip(times, measures, strict=True):
        one.seconds, one.median_seconds = min(taken), statistics.median(taken)


def table(measures: list[Measure]) -> list[dict[str, object]]:
    """Rows of figures; the first two measures are the roofs."""
    bandwidth = measures[0].bytes / measures[0].seconds
    peak = measures[1].operations / measures[1].seconds
    rows = []
    for one in measures:
        row = {name: value for name, value in asdict(one).items() if name not in ("run", "calls")}
        row["gb_per_s"] = one.bytes / one.seconds / 1e9
        row["gops"] = one.operations / one.seconds / 1e9
        if one.operation in FORMATS:
            row["share"] = max(one.bytes / bandwidth, one.operations / peak) / one.seconds
        rows.append(row)
    by_case = {(r["operation"], r["shape"], r["tokens"]): r for r in rows}
    for row in rows:
        for other, name in (("int4", "to_int4"), ("float32 BLAS", "to_blas")):
            beside = by_case.get((other, row["shape"], row["tokens"]))
            if "share" in row and beside is not None:
                row[name] = float(str(beside["seconds"])) / float(str(row["seconds"]))
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """`x int4`, `x BLAS`: how many times faster than those at the same shape."""
    head = ("operation", "shape", "T", "us", "GB/s", "GOPS", "share", "x int4", "x BLAS")
    print("{:24}{:>11}{:>5}{:>10}{:>8}{:>8}{:>7}{:>8}{:>8}".format(*head))
    for row in rows:
        ratios = [f"{row[name]:.2f}" if name in row else "" for name in ("share", "to_int4", "to_blas")]
        figures = [f"{row[name]:.1f}" if row[name] else "" for name in ("gb_per_s", "gops")]
        micros = f"{float(str(row['seconds'])) * 1e6:.1f}"
        place = (row["operation"], row["shape"], row["tokens"] or "", micros)
        print("{:24}{:>11}{:>5}{:>10}{:>8}{:>8}{:>7}{:>8}{:>8}".format(*place, *figures, *ratios))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, help="threads of the kernels (default: physical cores)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="+", default=[f"{d}x{k}" for d, k in SHAPES], metavar="DxK")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.tokens) < 1:
        parser.error("--rounds and --tokens start at 1")
    try:
        shapes = [(int(d), int(k)) for d, k in (text.split("x") for text in options.shapes)]
    except ValueError:
        parser.error(f"--shapes takes rows x columns such as 2048x2048, not {' '.join(options.shapes)}")
    backend("numba")
    threads = number_of_threads(options.threads)
    with use_threads(threads):
        measures = [_plain_read(), _peak(), *_others()]
        for shape in shapes:
            measures += _products(shape, tuple(options.tokens), tuple(options.formats))
        measure(measures, options.rounds)
    rows = table(measures)
    print(f"{threads} threads, {facts()['instructions']}, fastest of {options.rounds} rounds")
    show(rows)
    if options.json:
        found = {"machine": facts(), "threads": threads, "rounds": options.rounds, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
