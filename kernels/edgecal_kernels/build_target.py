"""Let Numba compile for a processor that is not this one.

Numba knows one target, the processor that it runs on, and compiles for it in memory. Here its code generator is
replaced by one that never runs what it makes: for any processor that LLVM has, with code that does not depend on where
it is loaded. What turns Python into LLVM's language is the same, and so are the passes that optimize it.

It has to be installed before anything is compiled, and the process can do nothing else afterwards: `build` starts one
for each instruction set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
from numba.core import codegen, config, cpu


@dataclass(frozen=True)
class Processor:
    """What LLVM is told: triple, name of the processor, features beyond it."""

    triple: str
    name: str
    features: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return self.triple.split("-")[0]


_X86, _ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
# Of each instruction set the oldest processor that has it, and the features that `cpu.available_isas` asks for
PROCESSORS = {
    "avx512vnni": Processor(_X86, "cascadelake", ("+avx512vnni", "+avx512bw", "+avx512vl")),
    "avxvnni": Processor(_X86, "haswell", ("+avx2", "+fma", "+f16c", "+avxvnni")),
    "avx2": Processor(_X86, "haswell", ("+avx2", "+fma", "+f16c")),
    "portable": Processor(_X86, "x86-64"),
    "neon_i8mm": Processor(_ARM, "cortex-a76", ("+dotprod", "+i8mm")),
    "neon_dotprod": Processor(_ARM, "cortex-a76", ("+dotprod",)),
    "neon": Processor(_ARM, "cortex-a72"),
}


class _Library(codegen.AOTCodeLibrary):
    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0  # nothing here is ever called


def install(processor: Processor) -> None:
    """From now on Numba compiles for `processor`."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    settings: Any = config

    class Codegen(codegen.CPUCodegen):
        _library_class = _Library

        def _init(self, llvm_module: Any) -> None:
            target = llvm.Target.from_triple(processor.triple)
            self._tm_features = ",".join(processor.features)
            self._tm = target.create_target_machine(
                cpu=processor.name, features=self._tm_features, opt=settings.OPT, reloc="pic", codemodel="default"
            )
            self._target_data = self._tm.target_data
            self._data_layout = str(self._target_data)
            self._loopvect, self._opt_level = False, 0  # as Numba's own: the first, cheap pass only inlines

        def _create_empty_module(self, name: str) -> Any:
            module = super()._create_empty_module(name)
            module.triple = processor.triple
            return module

        def _add_module(self, module: Any) -> None:
            pass

        def magic_tuple(self) -> tuple[str, str, str]:
            return processor.triple, processor.name, self._tm_features

        def set_env(self, env_name: str, env: Any) -> None:
            pass

    def nothing(*arguments: Any, **options: Any) -> None:
        pass

    def executable(self: Any, library: Any, fndesc: Any, env: Any) -> Any:
        library.get_pointer_to_function(fndesc.llvm_func_name)
        return [].append  # the dispatcher insists on a compiled function, and knows what it compiled by it

    setattr(codegen, "JITCPUCodegen", Codegen)  # noqa: B010
    for name, function in (
        ("create_cpython_wrapper", nothing),
        ("create_cfunc_wrapper", nothing),
        ("get_executable", executable),
    ):
        setattr(cpu.CPUContext, name, function)
