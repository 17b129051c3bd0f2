"""One input, and whether the reader dealt with it as it should."""

from __future__ import annotations

import signal
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from edgecal.memory import peak_resident, reset_peak, resident
from edgecal_kernels.errors import LONGEST_MESSAGE, EdgecalError
from edgecal_weights.errors import EdgecalWarning

from .target import Target


@dataclass(frozen=True)
class Verdict:
    """`outcome` tells inputs apart by what became of them; `fault` says what is wrong, None where nothing is."""

    outcome: str
    fault: str | None = None
    details: str = ""


class _TooSlow(BaseException):
    """Not an Exception: no reader may catch it."""


class Judge:
    """Gives inputs to a target, one after the other, in the main thread. `slack` multiplies the time that it has."""

    def __init__(self, target: Target, folder: Path, slack: float = 1.0) -> None:
        self._target, self._folder, self._seconds = target, folder, target.seconds * slack
        self.seeds = target.prepare(folder)
        signal.signal(signal.SIGVTALRM, _give_up)

    def __call__(self, data: bytes) -> Verdict:
        exact, before, started = reset_peak(), resident(), time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, 4 * self._seconds)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", EdgecalWarning)
                self._target.run(data, self._folder)
        except EdgecalError as error:
            verdict = _refused(error)
        except _TooSlow as error:
            verdict = _fault("still running after four times its time", error)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            verdict = _fault(f"{type(error).__name__}: {error}"[:300], error)
        else:
            verdict = Verdict("accepted")
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        seconds, grown = time.process_time() - started, peak_resident() - before
        if verdict.fault is None and seconds > self._seconds:
            verdict = Verdict("slow", f"took {seconds:.1f} s")
        if verdict.fault is None and exact and grown > self._target.megabytes << 20:
            verdict = Verdict("large", f"took {grown >> 20} MB of memory")
        return verdict


def _give_up(number: int, frame: FrameType | None) -> None:
    raise _TooSlow


def _place(error: BaseException) -> str:
    """File and line where it was raised, in code of the project where there is any."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "edgecal" in f.filename and "site-packages" not in f.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _refused(error: EdgecalError) -> Verdict:
    message, outcome = str(error), f"{type(error).__name__} at {_place(error)}"
    if not 1 <= len(message) <= LONGEST_MESSAGE:
        return Verdict(outcome, f"{outcome}: a message of {len(message)} characters", message)
    if not message.replace("\n", "").isprintable():
        return Verdict(outcome, f"{outcome}: a message with characters that a terminal obeys", repr(message))
    return Verdict(outcome)


def _fault(what: str, error: BaseException) -> Verdict:
    outcome = f"{type(error).__name__} at {_place(error)}"
    return Verdict(outcome, f"{outcome}: {what}", "".join(traceback.format_exception(error)[-12:]))
