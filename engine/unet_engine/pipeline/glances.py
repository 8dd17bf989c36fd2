"""Some of the chunks that a run reads from stores that keep no times, to be looked at again in the end: what was
rewritten meanwhile is another one then."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.storage.remote import AT_ONCE


class Source(Protocol):
    """A volume or a mask."""

    def token(self, box: Box) -> tuple[str, str] | None: ...


KEPT = 128
"""Glances that are kept, and taken again in the end, of all the boxes that were read: each as likely."""


@dataclass(frozen=True)
class _Glance:
    source: Source
    box: Box
    blocks: tuple[Index, ...]
    """What hangs on it."""
    token: str


class Glances:
    """Safe for any number of threads."""

    def __init__(self) -> None:
        self._kept: dict[int, _Glance] = {}
        self._read = 0
        self._chance = random.Random(0)
        self._changing = threading.Lock()

    def take(self, source: Source, box: Box, blocks: Sequence[Index]) -> None:
        """Look at one chunk of `box` if it is among those that are kept. Before it is read: what is changed between
        the two is told then."""
        with self._changing:
            place = self._read if self._read < KEPT else self._chance.randrange(self._read + 1)
            self._read += 1
        if place < KEPT and (seen := source.token(box)):
            with self._changing:
                self._kept[place] = _Glance(source, box, tuple(blocks), seen[1])

    def changed(self) -> Iterator[tuple[tuple[Index, ...], str]]:
        """Look again: blocks that hang on what is another one now, and what that is."""
        kept = list(self._kept.values())
        with ThreadPoolExecutor(AT_ONCE, "glances") as pool:  # each answer takes its time
            for glance, now in zip(kept, pool.map(lambda one: one.source.token(one.box), kept), strict=True):
                if now and now[1] != glance.token:
                    yield glance.blocks, now[0]
