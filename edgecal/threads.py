"""Threads of a model: a number for decoding, maybe another for reading prompts.

Decoding waits for memory, reading a prompt computes, so the best numbers may differ (more cores than memory channels,
a processor whose small cores help with products only). They belong to the model and hold in whatever Python thread
calls it.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgecal_kernels.dispatch import backend as find_backend

from .errors import OptionError

FEW_TOKENS = 16  # of one pass, up to which it counts as decoding: as many as the compiled decoder takes at a time


@dataclass(frozen=True)
class Threads:
    """Threads of the compiled kernels; both None on NumPy, whose BLAS has settings of its own."""

    decode: int | None
    prefill: int | None

    def of(self, n_tokens: int) -> int | None:
        """For a pass that runs `n_tokens` of one sequence."""
        return self.decode if n_tokens <= FEW_TOKENS else self.prefill


def choose_threads(backend: str, threads: int | None = None, prefill_threads: int | None = None) -> Threads:
    """`threads` for decoding, the physical (big) cores unless given; `prefill_threads` are as many unless given.

    OptionError names an option that is no number of threads, or that the NumPy back end does not have; BackendError
    for more threads than this process has.
    """
    for name, value in (("threads", threads), ("prefill_threads", prefill_threads)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"{name} must be a whole number of at least 1, found {value!r}")
        if backend == "numpy":
            raise OptionError(
                f"{name} {value}: the NumPy back end has no threads to set, its BLAS has settings of its own "
                "(OPENBLAS_NUM_THREADS, OMP_NUM_THREADS); leave the option out, or take compiled kernels"
            )
    if backend == "numpy":
        return Threads(None, None)
    number_of_threads = find_backend(backend).number_of_threads
    decode = number_of_threads(threads)
    return Threads(decode, decode if prefill_threads is None else number_of_threads(prefill_threads))
