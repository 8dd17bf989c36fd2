"""Rows of many tables that are sorted by number, joined to one in ascending order: in memory as far as they fit, else by
sorted runs on the disk, of which a part is held at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from unet_engine.errors import writing
from unet_engine.postprocess.base import Array, Found

KEY = "id"
COPIES = 6
"""Times that a row is held while it is sorted, added up and written."""


@dataclass
class Runs:
    """Rows with a number (``id``), added table by table; those of a number come in the order in which they were added.
    What comes out does not depend on `room`."""

    folder: Path
    """Where runs are kept; made once one is needed, and removed in the end."""
    room: int
    """Bytes that may be taken."""
    _waiting: list[Found] = field(default_factory=list)
    _bytes: int = 0
    _runs: list[_Run] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, room: int, found: Iterable[Found]) -> Runs:
        """All of `found`, each of the same columns and sorted by number."""
        shutil.rmtree(folder, ignore_errors=True)
        runs = cls(folder, room)
        for one in found:
            runs._add(one)
        return runs

    def _add(self, one: Found) -> None:
        self._waiting.append(one)
        self._bytes += sum(column.nbytes for column in one.values())
        if self._bytes * COPIES > self.room and len(self._waiting) > 1:
            with writing(str(self.folder), "keeping rows of the table"):
                self._runs.append(_Run.of(self.folder / str(len(self._runs)), _sorted(self._waiting)))
            self._waiting, self._bytes = [], 0

    def __iter__(self) -> Iterator[Found]:
        """Rows of ascending numbers; all of a number are in one table, see `_sorted`. Once only."""
        if not self._runs:
            yield _sorted(self._waiting)
            return
        if self._waiting:
            with writing(str(self.folder), "keeping rows of the table"):
                self._runs.append(_Run.of(self.folder / str(len(self._runs)), _sorted(self._waiting)))
            self._waiting = []
        each = max(1, self.room // COPIES // self._runs[0].row_bytes // len(self._runs))
        while any(run.left for run in self._runs):
            heads = [run.numbers(each) for run in self._runs]
            # what lies below the last number of each that goes on is all there
            ends = [head[-1] for head, run in zip(heads, self._runs, strict=True) if len(head) < run.left]
            end = min(ends, default=None)
            if end is not None and all(not len(head) or head[0] >= end for head in heads):
                each *= 2  # a number has more rows than that
                continue
            counts = [len(head) if end is None else int(np.searchsorted(head, end)) for head in heads]
            yield _sorted([run.take(count) for run, count in zip(self._runs, counts, strict=True)])
        shutil.rmtree(self.folder, ignore_errors=True)


def _sorted(parts: list[Found]) -> Found:
    """The rows of `parts` by number; those of one in the order of `parts`."""
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(every[KEY], kind="stable")
    return {name: column[order] for name, column in every.items()}


@dataclass
class _Run:
    """Sorted rows in a folder, a file for each column, of which the first `at` were taken."""

    folder: Path
    rows: int
    columns: dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]
    at: int = 0

    @classmethod
    def of(cls, folder: Path, rows: Found) -> _Run:
        folder.mkdir(parents=True)
        for name, column in rows.items():
            column.tofile(folder / name)
        return cls(folder, len(rows[KEY]), {name: (c.dtype, c.shape[1:]) for name, c in rows.items()})

    @property
    def left(self) -> int:
        return self.rows - self.at

    @property
    def row_bytes(self) -> int:
        return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in self.columns.values())

    def numbers(self, most: int) -> Array:
        """Of the next rows, `most` at most."""
        return self._column(KEY, min(most, self.left))

    def take(self, count: int) -> Found:
        """The next rows."""
        found = {name: self._column(name, count) for name in self.columns}
        self.at += count
        return found

    def _column(self, name: str, count: int) -> Array:
        dtype, shape = self.columns[name]
        width = int(np.prod(shape))
        values = np.fromfile(self.folder / name, dtype, count * width, offset=self.at * width * dtype.itemsize)
        return values.reshape(count, *shape)
