"""Who does a pass over a finished volume: threads of this process, or others, and what each process may take."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from unet_engine import machine
from unet_engine.postprocess.base import Crew, one_done

T = TypeVar("T")
AT_ONCE = 2
"""Boxes that a process works on at the same time: one is read or written while another is labelled, which takes one
core of a process whatever it has."""


@dataclass(frozen=True)
class Hands:
    """A crew, and what each of its processes may take."""

    crew: Crew
    memory: int
    """Bytes for one box."""


def here(memory: int | None) -> Hands:
    """This process, which may take `memory` bytes in all; None: half of what is free."""
    memory = memory or machine.available_memory() // 2
    return Hands(Here(), max(0, memory - machine.resident_bytes()) // AT_ONCE)


class Here:
    """Threads of this process."""

    def each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(AT_ONCE, "pass") as threads:
            try:
                for item in items:
                    waiting.append(threads.submit(do, item))
                    while len(waiting) > AT_ONCE:
                        waiting.popleft().result()
                        one_done(items)
                for future in waiting:
                    future.result()
                    one_done(items)
            finally:
                for future in waiting:
                    future.cancel()
