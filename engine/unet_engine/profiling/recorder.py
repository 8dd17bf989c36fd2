"""Taking times: a recorder is handed to whatever does a stage of the work. The plain one does nothing; `stages.Stages`
is the other."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")

SAMPLED = 8
"""Every so many-th call of one kind is taken apart, the first one always."""

_NOTHING = nullcontext()


class Recorder:
    """Takes no times: what a run that is not profiled is given. Costs a call and an empty context, and allocates
    nothing."""

    recording = False
    """Whether times are taken: whoever would have to work for them asks this first."""

    def span(self, stage: int) -> AbstractContextManager[None]:
        """Context in which the calling thread is in `stage`; spans nest, and a stage is given only the time that no
        inner span has."""
        return _NOTHING

    def block(self, stage: int) -> AbstractContextManager[None]:
        """As `span`, of a new block: what is kept for a trace is kept for whole blocks."""
        return _NOTHING

    def add(self, stage: int, begun: int, ended: int) -> None:
        """A span of the calling thread that ended just now, in nanoseconds of `clock`."""

    def fed(self, blocks: Iterable[T]) -> Iterable[T]:
        """The same `blocks`, taken by a thread that feeds a device: when it is in no span it is busy, too. Each is a
        block of spans."""
        return blocks

    def restart(self) -> None:
        """Count from now on. Call while nothing is under way."""

    def takes_apart(self, kind: str) -> bool:
        """Whether this call of what a library does in one, such as reading and decoding, is to be taken apart: one in
        `SAMPLED` is."""
        return False


PLAIN = Recorder()
