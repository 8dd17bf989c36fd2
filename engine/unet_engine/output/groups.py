"""Blocks marked in groups, so that the disk is waited for once for many: the folders that the chunks were moved into,
then the markers, then the folder of the markers.

A block's chunks are on the disk before this hears of it. So whatever of all that outlives a power cut: where there is a
marker, there are its chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from unet_engine.output.stored import Stored
from unet_engine.plan.plan import Index

Marked = tuple[Index, Stored]
WAITING = 1024
"""Blocks that may wait for their markers."""


class Groups:
    """Marks blocks in a thread of its own. Safe to use from several threads."""

    def __init__(self, mark: Callable[[Sequence[Marked]], None]) -> None:
        """mark: marks a group, and waits for the disk"""
        self._mark = mark
        self._thread = ThreadPoolExecutor(1, "mark")
        self._door = Lock()
        self._waiting: list[Marked] = []
        self._running: Future[None] | None = None

    def add(self, index: Index, stored: Stored) -> None:
        """Mark a block soon. Raises what marking an earlier one raised."""
        with self._door:
            full = len(self._waiting) >= WAITING
        if full:
            self.settle()
        with self._door:
            self._waiting.append((index, stored))
            begun, self._running = self._running, self._running or self._thread.submit(self._work)
        if begun and begun.done():
            self.settle()

    def settle(self) -> None:
        """Wait until all blocks that were added are marked. Raises what marking them raised."""
        while True:
            with self._door:
                if self._running is None and self._waiting:
                    self._running = self._thread.submit(self._work)
                running = self._running
            if running is None:
                return
            try:
                running.result()
            finally:
                with self._door:
                    if self._running is running:
                        self._running = None

    def _work(self) -> None:
        while True:
            with self._door:
                group, self._waiting = self._waiting, []
                if not group:
                    self._running = None
                    return
            self._mark(group)
