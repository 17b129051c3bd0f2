"""Number formats as the choices of an option, which knows what llama.cpp calls the same."""

from __future__ import annotations

from typing import Any

import click

from edgecal_kernels.quant import SPECS

# GGUF's type of a tensor -> format, and what stands for no rounding
_OF_GGUF = {name: spec.name for spec in SPECS.values() for name in spec.gguf} | {"F32": "fp32", "FP32": "fp32"}


class FormatChoice(click.Choice):
    """One of these formats; the refusal of `Q4_K_M` says that the format is called int4_k here."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            kind = str(value).upper()
            for size in ("_S", "_M", "_L"):
                kind = kind.removesuffix(size)
            here = _OF_GGUF.get(kind)
            if here not in self.choices:
                raise
            hint = f"{error.message.rstrip('.')}; llama.cpp's {value} is {here} here."
            raise click.BadParameter(hint, ctx, param) from error
