"""What `bench.arm` reads and computes; the emulator and llvm-mca are not needed."""

from __future__ import annotations

import pytest

from bench.arm import counting, loops, prediction

PRINTED = """\
loading ... mark 7: not at the start of a line
mark 1: dot 5 dot by element 7 mmla 0 simd load or store 11 other simd 13 rest 17 = 53
mark 2: dot 640 dot by element 64 mmla 0 simd load or store 128 other simd 192 rest 320 = 1344
mark 3: dot 8 dot by element 16 mmla 24 simd load or store 32 other simd 40 rest 48 = 168
end: dot 0 dot by element 0 mmla 0 simd load or store 0 other simd 0 rest 1 = 1
"""


def test_marks_become_instructions_per_token():
    marks = counting.parse_marks(PRINTED.splitlines())
    assert [mark["dot"] for mark in marks] == [5, 640, 8] and marks[0]["dot by element"] == 7
    found = counting.per_token(marks, 64, 8)
    assert found["prefill"] == dict(zip(counting.CLASSES, (10, 1, 0, 2, 3, 5), strict=True))
    assert found["decode"] == dict(zip(counting.CLASSES, (1, 2, 3, 4, 5, 6), strict=True))
    assert counting.simd(found["decode"]) == 15


def test_what_the_plugin_did_not_say_is_an_error():
    with pytest.raises(SystemExit, match="should count"):
        counting.parse_marks(["mark 1: dot 5 rest 6 = 11"])
    with pytest.raises(SystemExit, match="three marks"):
        counting.per_token(counting.parse_marks(PRINTED.splitlines()[:2]), 64, 8)


DISASSEMBLY = """\

kernels.o:	file format elf64-littleaarch64

0000000000000000 <first>:
       0:      	mov	x8, xzr
       4:      	movi	v0.2d, #0000000000000000
       8:      	ldr	q1, [x0, x8]
       c:      	and	v2.16b, v1.16b, v3.16b
      10:      	sdot	v0.4s, v2.16b, v4.4b[1]
      14:      	add	x8, x8, #0x10
      18:      	cmp	x8, #0x40
      1c:      	b.ne	0x8 <first+0x8>
      20:      	str	q0, [x1], #16
      24:      	subs	x2, x2, #0x1
      28:      	b.gt	0x0 <first>
      2c:      	ret

0000000000000030 <second>:
      30:      	subs	x0, x0, #0x1            // =1
      34:      	cbnz	x0, 0x30 <second>
      38:      	b	0x0 <first>
"""


def test_innermost_loops_are_found():
    inner, counter = loops.innermost_loops(DISASSEMBLY.splitlines())
    assert (inner.function, inner.body[0].at, len(inner.body)) == ("first", 0x8, 6)
    assert inner.count("sdot") == 1 and inner.simd() == 3
    assert (counter.function, len(counter.body), counter.simd()) == ("second", 2, 0)
    assert loops.busiest(DISASSEMBLY.splitlines()) == inner


def test_a_loop_is_made_ready_for_the_analyzer():
    inner, counter = loops.innermost_loops(DISASSEMBLY.splitlines())
    lines = loops.assembly(inner).splitlines()
    assert lines[0] == "loop:" and lines[-1] == "b.ne loop" and "sdot v0.4s, v2.16b, v4.4b[1]" in lines
    assert loops.assembly(counter) == "loop:\nsubs x0, x0, #0x1\ncbnz x0, loop\n"


def test_the_nearer_limit_is_predicted():
    figures = {"cycles": 10.0, "instructions": 20.0}
    known = dict.fromkeys(("int4 one", "int4 many", "int8 one", "int8 many"), figures)
    work = prediction.Work({"int4": 12_800_000}, {"int8": 1_280_000}, 8_000_000)
    counted = {"decode": {"dot": 1_000_000, "rest": 1_600_000}, "prefill": {"dot": 2_000_000, "rest": 400_000}}
    rest = prediction.others(work, counted, known)
    assert rest == {"decode": 400_000, "prefill": 400_000}
    device = prediction.Device("d", "neon", "core", 1.0, {1: 8.0, 2: 1.0}, "")
    one, two = prediction.predict(device, work, known, rest)
    # 110,000 units of 10 cycles and 400,000 instructions at 2 per cycle are 1.3 ms; 8 MB at 8 GB/s are 1 ms
    assert one["limit"] == "arithmetic" and one["decode"] == pytest.approx(1e9 / 1.3e6)
    assert two["limit"] == "memory" and two["decode"] == pytest.approx(125)
    assert two["prefill"] == pytest.approx(2 * one["prefill"]) and one["prefill"] == pytest.approx(1e9 / 1.2e6)
