"""Threads that share what is to be done with one block beside its network: on many cores one alone falls behind, see
`benchmarks/many_cores.py`. Work is divided by where it writes, so no number of threads changes a byte."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PER_THREAD, MOST = 8, 8
"""Cores of the network for each thread, and how many of these there are at most."""


def sharing_threads(cores: int) -> int:
    """Threads that share a block, where the network has so many cores."""
    return max(1, min(MOST, cores // PER_THREAD))


class Sharing:
    """A pool of so many threads, which the caller waits for; of one there is no pool, and the caller does it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "share") if threads > 1 else None

    def over(self, length: int, do: Callable[[slice], None]) -> None:
        """`do` what lies in each part of 0 to `length`; all of it is done when this returns."""
        count = min(self.threads, length)
        if self._pool is None or count < 2:
            do(slice(0, length))
            return
        ends = [length * k // count for k in range(count + 1)]
        list(self._pool.map(do, map(slice, ends[:-1], ends[1:])))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


ALONE = Sharing(1)
