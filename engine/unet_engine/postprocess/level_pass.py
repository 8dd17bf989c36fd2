"""One level of a pyramid: the pass that makes it of the level before, and where it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine.errors import DataError, UnetEngineError, first_line, writing
from unet_engine.output.chunks import Chunks, chunks_of
from unet_engine.output.inspection import Look, inspect
from unet_engine.output.journal import Journal, LocalJournal, RemoteJournal
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.postprocess.base import VOXELS, Array, Boxes, Crew, Found, block_of, write_boxes
from unet_engine.postprocess.downsampling import downsampled, majority, mean_of
from unet_engine.postprocess.levels import Level
from unet_engine.storage import stores
from unet_engine.storage.codecs import fast_codecs
from unet_engine.storage.durability import ON_DISK, WHENEVER, Durability
from unet_engine.volumes.base import StoredVolume
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.nodata import Missing, same

MAJORITY, MEAN = "majority", "mean"


@dataclass(frozen=True)
class Source:
    """An array whose axes are `axes`, as workers find it."""

    path: str
    axes: str
    attempt: str
    """Another one for every command, so that nothing is kept open of what an earlier one saw."""

    def read(self, box: Box) -> Array:
        """The stored voxels of `box`, which has all axes. Raises `DataError`."""
        try:
            return _opened(self).stored(box.slices())
        except UnetEngineError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.path}: voxels {box} cannot be read: {first_line(error)}; restore them, and run again"
            ) from error


@lru_cache(maxsize=4)
def _opened(source: Source) -> StoredVolume:
    volume = open_stored(source.path, source.axes)
    assert isinstance(volume, StoredVolume)
    return volume


@dataclass(frozen=True)
class Downsampling:
    """The pass that writes one level. Boxes have all stored axes."""

    source: Source
    shape: tuple[int, ...]
    """Of the source."""
    factors: tuple[int, ...]
    boxes: Boxes
    by: str
    missing: Missing = ()
    """Values that no mean takes in, of each channel."""

    def look(self, index: Index, box: Box) -> Found:
        return {}

    def changed(self, box: Box, since: float) -> str | None:
        return None

    def reduce(self, found: Iterable[tuple[Index, Found]]) -> Any:
        return NOTHING

    def values(self, index: Index, box: Box, part: Any) -> Array:
        lo = tuple(l * f for l, f in zip(box.lo, self.factors, strict=True))
        hi = tuple(min(h * f, n) for h, f, n in zip(box.hi, self.factors, self.shape, strict=True))
        voxels = self.source.read(Box(lo, hi))
        if self.by == MAJORITY:
            return downsampled(voxels, self.factors, majority)
        if (shared := same(self.missing)) is not None:
            return downsampled(voxels, self.factors, mean_of(shared))
        at = self.source.axes.index("c")  # of which none are brought together
        channels = range(lo[at], hi[at])
        each = [
            downsampled(voxels.take([k], axis=at), self.factors, mean_of(self.missing[c]))
            for k, c in enumerate(channels)
        ]
        return np.concatenate(each, axis=at)


class Nothing:
    """No box needs to know of others."""

    def of(self, index: Index) -> None:
        return None


NOTHING = Nothing()


@dataclass(frozen=True)
class LevelTarget:
    """The array of a level; goes to workers as it is."""

    path: str
    name: str
    digest: str
    durable: bool
    attempt: str

    @cached_property
    def journal(self) -> Journal:
        if is_local(self.path):
            return LocalJournal(Path(self.path, self.name), self.digest, self.durability)
        return RemoteJournal(stores.open_group(self.path, "r+").store_path / self.name, self.digest)

    @cached_property
    def chunks(self) -> Chunks:
        with fast_codecs(self.path):
            # not by the group, which may keep metadata of what was in it before
            opened = zarr.open_array(stores.open_group(self.path, "r+").store_path / self.name, mode="r+")
        return chunks_of(opened, self.journal, durability=self.durability)

    @property
    def durability(self) -> Durability:
        return ON_DISK if self.durable else WHENEVER

    def put(self, index: Index, box: Box, values: Array) -> None:
        target = _target(self)
        with writing(self.path, f"writing voxels {box} of level {self.name}"):
            stored = target.chunks.write(box.slices(), values)
            target.chunks.keep([stored])
            target.journal.mark([(index, stored)])


@lru_cache(maxsize=4)
def _target(target: LevelTarget) -> LevelTarget:
    """One for all boxes of a process."""
    return LevelTarget(target.path, target.name, target.digest, target.durable, target.attempt)


def write_level(
    source: Source,
    before: tuple[int, ...],
    level: Level,
    chunk: tuple[int, ...],
    how: tuple[str, Missing],
    target: LevelTarget,
    crew: Crew,
    *,
    memory: int,
) -> int:
    """Write what of a level is not there yet into its array, which is; how many boxes that was.

    before: the shape of `source`; how: `MAJORITY` or `MEAN`, and the values of each channel that no mean takes in;
    memory: bytes that one box may take
    """
    with writing(target.path, f"opening the journal of level {target.name}"):
        target.journal.open()
    volume = _opened(source)
    voxel = VOXEL_BYTES + 4 * prod(level.factors) * volume.stored_dtype.itemsize
    block = _begun_with(target, block_of(level.shape, chunk, min(VOXELS, max(1, memory // voxel))))
    boxes = Boxes(level.shape, block)
    work = Downsampling(source, before, level.factors, boxes, *how)
    done = _done(target, boxes)
    try:
        write_boxes(work, NOTHING, replace(target), crew, lambda index: index not in done)
    finally:
        _target.cache_clear()
        _opened.cache_clear()
    return boxes.number - len(done)


VOXEL_BYTES = 48
"""Of a voxel that is made, beside those that it is made of: counted for columns of labels that differ."""
MOST_BYTES = VOXEL_BYTES + 4 * 8 * 8
"""The most that one takes of a level that halves three axes."""


def _begun_with(target: LevelTarget, block: tuple[int, ...]) -> tuple[int, ...]:
    """The blocks that the level was begun with: what is marked is of them."""
    with writing(target.path, "noting its blocks"):
        try:
            found = tuple(map(int, json.loads(target.journal.get(_BLOCK) or b"")))
            if len(found) == len(block) and min(found) > 0:
                return found
        except (ValueError, TypeError):  # there are none yet, or a power cut spoiled them
            pass
        target.journal.put(_BLOCK, json.dumps(block).encode())
    return block


_BLOCK = "block"


def _done(target: LevelTarget, boxes: Boxes) -> set[Index]:
    """The boxes that are written. Those that an attempt with other blocks wrote, or are not as written, count no
    more."""
    with writing(target.path, "looking for what is written"):
        spans = {index: target.chunks.span(box.slices()) for index, box in boxes}
        marked = set(target.journal.marked())
        known = [index for index in marked if index in spans]
        faults = {f.index for f in inspect(target.journal, target.chunks, known, Look.LENGTHS, spans.__getitem__)}
        for index in (marked - set(known)) | faults:
            target.journal.unmark(index)
        return set(known) - faults
