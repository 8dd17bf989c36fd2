"""Who may write an output: one run alone, or any number of parts together, each part once.

    0/.lock           a whole run holds it exclusively, parts share it
    0/.lock.<i>.<n>   held by whoever runs part i of n

The locks are those of the operating system: they end with the process, however it dies. Remote stores, and file systems
without locks, are not protected; there, writers of one run do each other no harm, since chunks and markers are only
ever replaced by their equals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from unet_engine.errors import OutputError, writing
from unet_engine.output.header import ARRAY
from unet_engine.paths import is_local

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 5.0
"""Seconds that a part, or `finish`, waits for another process to let go: one that completes the output does so soon."""


class Holding:
    """What a process holds of an output: all of it, or a share beside other parts."""

    def __init__(self, whole: _Lock | None) -> None:
        self._whole = whole

    def leave(self) -> None:
        """Give up a share; all of the output is kept."""
        if self._whole and not self._whole.alone:
            self._whole.drop()

    def is_alone(self) -> bool:
        """Whether all of the output is held now; asks for it where there was a share, which is given up for that."""
        return self._whole is None or self._whole.take(alone=True)


@contextmanager
def hold(
    path: str, part: tuple[int, int] | None = None, patience: float = 0.0, array: str = ARRAY
) -> Iterator[Holding]:
    """Keep others from writing the output at `path`, but for other parts where this is a part (i, n).

    Raises `OutputError` where others are in the way, after `patience` seconds.
    """
    folder = Path(path, array)
    if not is_local(path) or fcntl is None or not folder.is_dir():
        yield Holding(None)
        return
    with ExitStack() as held:
        whole = held.enter_context(_Lock(path, folder / ".lock"))
        if part is None:
            if not whole.take(alone=True, patience=patience):
                raise OutputError(f"{path} is being written by another run; wait for it, or choose another --out")
        else:
            if not whole.take(alone=False, patience=max(patience, PATIENCE)):
                raise OutputError(f"{path} is being written by another run, of all parts; wait for it")
            own = held.enter_context(_Lock(path, folder / ".lock.{}.{}".format(*part)))
            if not own.take(alone=True):
                raise OutputError(
                    f"part {part[0]}/{part[1]} of {path} is being run already; wait for it, or run another part"
                )
        yield Holding(whole)


def clear(path: str) -> None:
    """Take away the lock files that runs left at an output which is complete, as they were killed right after they
    completed it. What is held stays, and so does what cannot be taken away."""
    if fcntl is None or not is_local(path):
        return
    for place in Path(path, ARRAY).glob(".lock*"):
        with suppress(OutputError), _Lock(path, place) as lock:
            lock.take(alone=True)


class _Lock:
    """A lock file. Whoever holds it alone takes it away in the end, and nobody else ever does."""

    def __init__(self, path: str, place: Path) -> None:
        self._path, self._place = path, place
        self._descriptor: int | None = None
        self.alone = False

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()

    def take(self, *, alone: bool, patience: float = 0.0) -> bool:
        """Whether it is held now, alone or shared. What was held before is given up first."""
        if self.alone:
            return True
        self.drop()
        end = time.monotonic() + patience
        while not self._try(fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        self.alone = alone
        return True

    def _try(self, kind: int) -> bool:
        while True:
            with writing(self._path, "locking it"):
                descriptor = os.open(self._place, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError:  # some network file systems know no locks
                pass
            if _is_still(self._place, descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # its last holder took it away before we had it: what we locked is nobody's any more

    def drop(self) -> None:
        if self._descriptor is not None:
            if self.alone:
                self._place.unlink(missing_ok=True)
            os.close(self._descriptor)
        self._descriptor, self.alone = None, False


def _is_still(place: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(place.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
