"""Standard streams that a command can always write to, whatever they lead to.

A full disk or a reader that has gone must not end a run of hours: what cannot be said is left out, and whether stdout
took all of it is asked at the end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys


class _Patient(io.FileIO):
    """A file that takes everything; `error` is the first that the system gave."""

    error: OSError | None = None

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._taken: list[int] = []
        """What was written and could not be said: a signal's exception came between. Whoever writes begins again with
        the same bytes, which would be there twice."""

    def write(self, data: object, /) -> int:
        if not self._taken:
            try:
                self._taken.extend(map(super().write, (data,)))  # type: ignore[arg-type]  # one call: both or neither
            except OSError as error:
                self.error = self.error or error
                self._taken.append(len(memoryview(data).cast("B")))  # type: ignore[arg-type]
        count = self._taken[0]  # from here on nothing is called, so that no signal is looked for
        del self._taken[:]
        return count


_stdout: _Patient | None = None


def prepare() -> None:
    """Make stdout and stderr of this process take all text, and keep files that are opened from becoming one of
    them."""
    global _stdout  # a process has one
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file would get its number, and what libraries say would go into it
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        sys.stdout, _stdout = _stream(sys.stdout)
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr, _ = _stream(sys.stderr)


def _stream(old: io.TextIOWrapper) -> tuple[io.TextIOWrapper, _Patient | None]:
    try:
        raw = _Patient(old.fileno())
    except (OSError, ValueError):
        return old, None
    buffered = io.BufferedWriter(raw)
    lines = old is sys.__stderr__ or raw.isatty()
    return io.TextIOWrapper(buffered, old.encoding, "backslashreplace", line_buffering=lines), raw


def unsaid() -> OSError | None:
    """Why not all of stdout was taken; None where it was, or where its reader had enough."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:  # it was closed from the beginning
            sys.stdout.flush()
    error = _stdout.error if _stdout else None
    return None if error is None or error.errno == errno.EPIPE else error


def hush() -> None:
    """The last word was said, and this process ends. Where a store failed, what else it was asked for at the same time is
    torn down with it, which Python would tell of behind that word."""
    sys.unraisablehook = lambda _: None
    if asynchronous := sys.modules.get("asyncio.log"):
        asynchronous.logger.disabled = True
