"""The kernels of products one by one, as object files: `python -m bench.arm.compile ISA FOLDER`, a process of its own.

The code generator is that of `edgecal_kernels.build`, for the same processors. There the kernels of all formats are
inlined into one function; here each is one file, FORMAT-one.o for one token or FORMAT-many.o for a block of TOKENS, so
that its loop is easily found. The rows and the tokens of a block are printed.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(isa_name: str, folder: Path) -> None:
    from edgecal_kernels import build_target

    build_target.install(build_target.PROCESSORS[isa_name])
    from edgecal_kernels import jit

    jit.keep_nothing()
    from numba import types
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    from edgecal_kernels import blocks, packed_kernels
    from edgecal_kernels.formats import FORMATS
    from edgecal_kernels.packed_blocks import BLOCKS
    from edgecal_kernels.packed_tiles import UNPACKED

    word = types.int64
    sums = blocks.sums_type(blocks.TOKENS)
    one = (word, word, word, packed_kernels.SIZES, *[word] * 4, types.UniTuple(word, 2))
    matrix = types.Tuple((word, word, word, packed_kernels.SIZES, word, word, word))
    unpacked = types.Tuple((word, word, word, types.boolean, word, word, word, word))
    with global_compiler_lock:
        for format in FORMATS:
            of = unpacked if format in UNPACKED else matrix
            for name, kernel, kinds in (
                ("one", packed_kernels.VECTORS[format], one),
                ("many", UNPACKED.get(format, BLOCKS[format]), (of, *[word] * 4, sums)),
            ):
                kernel.compile(kinds)
                library = kernel.overloads[kinds].library
                code = cpu_target.target_context.codegen()._tm.emit_object(library._final_module)
                (folder / f"{format}-{name}.o").write_bytes(code)
    print(blocks.ROWS * blocks.TILES, blocks.TOKENS)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
