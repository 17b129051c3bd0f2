"""Who is answered when: requests join and leave the running batch at any token, each with its own recipe, sampling and
length.

`Scheduler` is driven by whoever calls `step`: `answer_together` until a fixed list is answered (`Engine.stream_batch`,
`generate --prompts`, the benchmark), a thread for as long as a server runs (`async_engine`). Requests wait in order,
and where clients are told apart the one with the fewest running answers is next, so that nobody who sends a hundred
holds up who sends one. A pipeline keeps its place from one pass to the next.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from .completion import Pass, Piece, Request, numbered
from .decoding.batch import BATCH_SIZE, Batch, Job
from .serving import Run, Runner


@dataclass(eq=False)
class Ticket:
    """A request that was handed in. `passes` is filled with what its passes cost, as they end."""

    request: Request
    passes: list[Pass]
    client: Hashable
    run: Run = field(repr=False)
    job: Job | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        """Its turn has come, and it is not complete."""
        return self.job is not None


class Scheduler:
    """Runs requests on one model, at most `batch_size` at a time; see `Batch` for `interleave`.

    `drafts`: a request that has the model to itself guesses tokens ahead, as its settings say. Not for several threads:
    one of them calls everything.
    """

    def __init__(
        self, runner: Runner, batch_size: int = BATCH_SIZE, *, interleave: bool = False, drafts: bool = False
    ) -> None:
        self._runner = runner
        self._drafts = drafts
        self._batch = Batch(runner.model, runner.tokenizer.eos_ids, batch_size, interleave)
        self._waiting: list[Ticket] = []
        self._running: dict[Job, Ticket] = {}

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> list[Ticket]:
        return list(self._running.values())

    def add(self, request: Request, passes: list[Pass] | None = None, client: Hashable = None) -> Ticket:
        """Put a request in the queue; its pieces come out of `step`."""
        passes = [] if passes is None else passes
        ticket = Ticket(request, passes, client, Run(self._runner, request, passes, self._runner.prefixes))
        self._waiting.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """There are no more pieces of it, and its place is free. Harmless when it is complete."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        self._end(ticket)

    def close(self) -> None:
        """Cancel everything."""
        for ticket in (*self._waiting, *self._running.values()):
            self.cancel(ticket)

    def step(self) -> Iterator[tuple[Ticket, Piece | Exception]]:
        """Do a piece of work: the pieces of text that it gave, often none. A request that cannot go on gives the reason
        as its last."""
        while self._waiting and len(self._batch) < self._batch.size:
            ticket = self._next()
            self._waiting.remove(ticket)
            self._begin(ticket)
        at_work = self._batch.at_work()
        try:
            for job, token in self._batch.step():
                ticket = self._running[job]
                try:
                    piece, of_answer = ticket.run.push(token), ticket.run.last_pass
                    if piece.finish_reason is not None:
                        self._end_pass(ticket)
                except Exception as error:
                    self._end(ticket)
                    yield ticket, error
                    continue
                if of_answer:
                    yield ticket, piece
        except Exception as error:  # of the model: those whose work it was
            for job in at_work:
                if (broken := self._running.get(job)) is not None:
                    self._end(broken)
                    yield broken, error

    def _next(self) -> Ticket:
        """Of those who wait, in order, the first of a client with the fewest running answers."""
        running = [ticket.client for ticket in self._running.values()]
        return min(self._waiting, key=lambda ticket: running.count(ticket.client))

    def _begin(self, ticket: Ticket) -> None:
        """A pass of it joins the batch."""
        ticket.job = ticket.run.job(drafts=self._drafts)
        self._running[ticket.job] = ticket
        self._batch.add(ticket.job)

    def _end_pass(self, ticket: Ticket) -> None:
        self._leave(ticket)
        if not ticket.run.last_pass:
            ticket.run.go_on()
            self._begin(ticket)

    def _leave(self, ticket: Ticket) -> None:
        if ticket.job is not None:
            ticket.job.stopped = True
            self._running.pop(ticket.job, None)
            ticket.job = None

    def _end(self, ticket: Ticket) -> None:
        self._leave(ticket)
        ticket.run.close()


def answer_together(
    runner: Runner, requests: Sequence[Request], batch_size: int, passes: Sequence[list[Pass]]
) -> Generator[tuple[int, Piece], None, None]:
    """Answer requests, at most `batch_size` at a time; each piece with the index of its request.

    `passes`, a list for each, is filled with what they cost. Raises what makes a request impossible, its number (from
    1) in front.
    """
    scheduler = Scheduler(runner, batch_size)
    indices = {scheduler.add(*asked): index for index, asked in enumerate(zip(requests, passes, strict=True))}
    try:
        while scheduler.n_waiting or scheduler.n_running:
            for ticket, piece in scheduler.step():
                if isinstance(piece, Exception):
                    with numbered(indices[ticket] + 1):
                        raise piece
                yield indices[ticket], piece
    finally:
        scheduler.close()
