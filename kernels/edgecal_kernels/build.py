"""Make the ready-made libraries: `python -m edgecal_kernels.build [--own | --isa NAME]... [--folder FOLDER]`.

Every kernel that a request or a merge needs is compiled from the sources beside this file, for each instruction set by
a process of its own, whatever processor this is; a linker makes a shared library of it. Needs Numba and a linker for
the target: ld.lld (Debian's lld), the package ziglang, or, for this machine's own kind of processor, ld.

What was made is kept in the cache folder, and taken again as long as the sources that go into it, Python and Numba are
the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from . import cpu, ready_file
from .errors import BackendError, EdgecalError
from .paths import cache_directory

_OBJECT, _TABLE = "kernels.o", "table.json"
_MOST_KEPT = 8  # libraries of an instruction set, from as many states of the sources


def build(isa_name: str, folder: Path = ready_file.FOLDER) -> Path:
    """The library for an instruction set, in `folder`; its path.

    Raises BackendError where something that it needs is missing, or compiling fails.
    """
    if not find_spec("numba"):
        raise BackendError("Numba, which compiles the kernels, is not installed (`pip install numba`)")
    data = _kept(isa_name)
    if data is None:
        data = _make(isa_name)
        with suppress(OSError):  # then it is made anew the next time
            _keep(isa_name, data)
    path = ready_file.library_path(isa_name, folder)
    _write(path, data)
    return path


def own_isas() -> list[str]:
    """The best instruction set of this processor. Raises BackendError where no libraries are for it."""
    if found := cpu.processor_isas()[:1]:
        return found
    raise BackendError("no instruction set of this processor is one that ready-made kernels are for")


def build_all(isa_names: Sequence[str], folder: Path) -> Iterator[Path]:
    """As `build`, for several instruction sets at a time."""
    with ThreadPoolExecutor(cpu.usable_cores()) as pool:  # each is a process of its own
        yield from pool.map(lambda name: build(name, folder), isa_names)


def _make(isa_name: str) -> bytes:
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        _compile_apart(isa_name, place)
        table = json.loads((place / _TABLE).read_text())
        library = place / f"{isa_name}.so"
        _link(table["family"], place / _OBJECT, library)
        return ready_file.with_table(library.read_bytes(), table)


def _made_with() -> dict[str, str]:
    """What the bytes of a library depend on besides the sources."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"python": python, **{package: version(package) for package in ("numba", "llvmlite")}}


def _kept_before(isa_name: str) -> list[Path]:
    """The latest first."""
    found = (cache_directory() / "ready").glob(f"{isa_name}-*.so")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _kept(isa_name: str) -> bytes | None:
    """A library that was made from these sources, by this Python and this Numba."""
    for path in _kept_before(isa_name):
        try:
            if ready_file.read_table(path)["made_with"] == _made_with():
                return path.read_bytes()
        except BackendError:
            continue
    return None


def _keep(isa_name: str, data: bytes) -> None:
    name = f"{isa_name}-{hashlib.sha256(data).hexdigest()[:16]}"
    _write(ready_file.library_path(name, cache_directory() / "ready"), data)
    for old in _kept_before(isa_name)[_MOST_KEPT:]:
        old.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def _compile_apart(isa_name: str, place: Path) -> None:
    # Names that Python makes of hashes are part of what is compiled
    environment = {**os.environ, "PYTHONHASHSEED": "0", "EDGECAL_ISA": isa_name}
    environment = {key: value for key, value in environment.items() if not key.startswith("NUMBA_")}
    places = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]  # these sources, and no others
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    command = [sys.executable, "-m", "edgecal_kernels.build", "--isa", isa_name, "--object", str(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BackendError(f"compiling the kernels for {isa_name} failed: {reason[0]}")


def _linker(family: str) -> list[str]:
    """The command of a linker for a family of processors."""
    if found := shutil.which("ld.lld"):
        return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "ld.lld"]
    if platform.machine() == family and (found := shutil.which("ld")):
        return [found]
    raise BackendError(f"no linker for {family} was found; install lld, or the package ziglang")


def _link(family: str, source: Path, library: Path) -> None:
    # Pages of 64 KiB are the largest that an ARM system has; whatever is not defined inside is an error
    options = ["-shared", "--no-undefined", "-z", "noexecstack", "-z", "max-page-size=65536", "--hash-style=both"]
    options += ["--build-id=none", "--gc-sections", "-s", "-soname", library.name]
    command = [*_linker(family), *options, "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BackendError(f"linking {library.name} failed: {done.stderr.strip()[:500]}")


def compile_object(isa_name: str, place: Path, only: Collection[str] = ()) -> None:
    """In a process for this alone: the object file and the table, into a folder; of the kernels called `only`, or of
    all."""
    from . import build_target

    processor = build_target.PROCESSORS[isa_name]
    build_target.install(processor)
    from . import jit

    jit.keep_nothing()
    import llvmlite.binding as llvm
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    from . import build_arithmetic, build_exports, build_runtime
    from .blocks import TILES

    sources = _sources()
    context = cpu_target.target_context
    kernels: dict[str, Any] = {}
    parts = []
    with global_compiler_lock:
        for export in build_exports.EXPORTS:
            if only and export.name not in only:
                continue
            symbol = "edgecal_" + export.name.replace(".", "_")
            parts.append(build_exports.define(context, export, symbol))
            arguments, results = build_exports.signature(export)
            kernels[export.name] = {"symbol": symbol, "arguments": arguments, "results": results}
        for symbol, (kernel, n) in build_exports.TEAM.items():
            parts.append(build_exports.define_plain(context, kernel, n, symbol))
        codegen = context.codegen()
        module = llvm.parse_assembly(str(codegen._create_empty_module("edgecal")))
        for function, library in parts:
            module.link_in(llvm.parse_assembly(function))
            module.link_in(llvm.parse_assembly(_without_messages(str(library._get_module_for_linking()))))
        texts, called = [build_runtime.runtime(processor.family)], [*build_runtime.LIBRARY_CALLS]
        if isa_name == "portable":
            texts.append(build_arithmetic.TEXT)
            called += build_arithmetic.FUNCTIONS
        for text in texts:
            runtime = llvm.parse_assembly(text)
            runtime.triple, runtime.data_layout = module.triple, module.data_layout
            module.link_in(runtime)
        exported = {entry["symbol"] for entry in kernels.values()} | {*build_exports.TEAM, build_runtime.INITIALIZE}
        for symbol in [*module.functions, *module.global_variables]:
            if not symbol.is_declaration and symbol.name not in {*exported, *called}:
                symbol.linkage = "internal"
        module.verify()
        passes, builder = codegen._module_pass_manager()
        passes.add_global_dead_code_eliminate_pass()
        passes.run(module, builder)
        (place / _OBJECT).write_bytes(codegen._tm.emit_object(module))
    table = {
        "version": ready_file.VERSION,
        "sources": sources,
        "digest": ready_file.sources_digest(sources),
        "isa": isa_name,
        "family": processor.family,
        "made_with": _made_with(),
        "tiles": TILES,
        "kernels": kernels,
    }
    (place / _TABLE).write_text(json.dumps(table))


def _sources() -> list[str]:
    """Of this package, what a library depends on: all that was imported to define its kernels, and this file."""
    package, here = f"{__package__}.", Path(__file__).parent
    modules = [module for name, module in sys.modules.items() if name.startswith(package)]
    files = {Path(str(module.__file__)) for module in modules} | {Path(__file__)}
    return sorted(file.relative_to(here).as_posix() for file in files)


def _without_messages(assembly: str) -> str:
    """Without the exceptions that Numba would raise, which hold paths of this machine."""
    return re.sub(r'(@\.?const\.pickle[^ ]* = .*constant \[\d+ x i8\]) c".*?"', r"\1 zeroinitializer", assembly)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edgecal_kernels.build", description="Make ready-made kernels.")
    parser.add_argument("--isa", action="append", choices=cpu.READY_ISAS, help="this one; all unless given")
    parser.add_argument("--own", action="store_true", help="the best one of this processor")
    parser.add_argument("--folder", type=Path, default=ready_file.FOLDER, help="where they go; beside the sources")
    parser.add_argument("--object", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.object is not None:
        compile_object(given.isa[0], given.object)
        return
    try:
        for path in build_all(own_isas() if given.own else given.isa or cpu.READY_ISAS, given.folder):
            print(f"{path}: {path.stat().st_size / 2**10:.0f} KiB", flush=True)
    except EdgecalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
