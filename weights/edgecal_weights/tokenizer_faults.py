"""What the tokenizers library makes of a tokenizer that contradicts itself.

It takes most of tokenizer.json as it is, and finds out when a text comes that a token is missing. Then it raises a bare
Exception, or panics, which PyO3 raises as a class that is no Exception and cannot be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import EdgecalError, FileFormatError

_PANIC = "PanicException"


@contextmanager
def tokenizer_faults(where: object) -> Iterator[None]:
    """FileFormatError naming `where` for whatever the library raises in the block; edgecal's own errors stay."""
    try:
        yield
    except EdgecalError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == _PANIC:
            told = f"{where}: the tokenizers library cannot work with this tokenizer: {error}"
            raise FileFormatError(told) from error
        raise
