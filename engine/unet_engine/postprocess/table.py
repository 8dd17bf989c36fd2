"""A table of objects: for each number in a volume how large it is, where it lies, and what the image is there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.postprocess import table_files
from unet_engine.postprocess.base import Array, Boxes, Crew, Found, block_of, known_of, refuse_changed
from unet_engine.postprocess.file_target import made
from unet_engine.postprocess.objects import read_classes
from unet_engine.postprocess.places import World
from unet_engine.postprocess.runs import Runs
from unet_engine.postprocess.source import Source, check_labels, starting
from unet_engine.units import times
from unet_engine.volumes.base import Volume
from unet_engine.volumes.laid import refuse_unsaid, start_in, turn_to
from unet_engine.volumes.turned import Turned

FORMAT = 3
"""Changes whenever the same volumes would give another table than an earlier version's."""
VOXELS = 2**22
"""Of a block, whatever memory there is: sums of floating point numbers depend on it."""
SLAB = 2**20


@dataclass(frozen=True)
class Table:
    """The pass: sums over objects, of each box and then of all."""

    source: Source
    boxes: Boxes
    image: Source | None = None
    start: tuple[int, ...] = ()
    """The voxel of the image that the first one of the labels lies on."""
    room: int = 2**30
    """Bytes that joining may take."""
    folder: Path = Path(".runs")
    """Where it keeps what is more."""

    def look(self, index: Index, box: Box) -> Found:
        """Sums over the objects in the box, by ascending number, see `_sums`."""
        labels = self.source.labels(box)
        image = absent = None
        if self.image:
            there = box.shift(self.start)
            image = self.image.open().read(there)
            absent = self.image.unmeasured(there, image)
        parts = []
        step = max(1, SLAB // max(1, labels[0].size))
        for lo in range(0, len(labels), step):
            piece, nowhere = (None if one is None else one[:, lo : lo + step] for one in (image, absent))
            parts.append(_sums(labels[lo : lo + step], piece, nowhere, (box.lo[0] + lo, *box.lo[1:])))
        return merged(parts)

    def changed(self, box: Box, since: float) -> str | None:
        found = self.source.changed(box, since)
        return found or (self.image.changed(box.shift(self.start), since) if self.image else None)

    def reduce(self, found: Iterable[tuple[Index, Found]]) -> Iterator[Found]:
        """The same of the whole volume, in pieces: of ascending numbers, each once."""
        return (added(rows) for rows in Runs.of(self.folder, self.room, (one for _, one in found)))


def _sums(labels: Array, image: Array | None, absent: Array | None, corner: Sequence[int]) -> Found:
    """Of each number but 0: how many voxels, sums of their coordinates, the box around them; by channel of the image
    how many voxels were measured, and their sum. labels: in C order; absent: which voxels of the image were not
    measured, None: all were; corner: where their first voxel lies in the volume"""
    flat, width = labels.reshape(-1), labels.shape[-1]
    differ = np.concatenate([[True], flat[1:] != flat[:-1]])
    differ[::width] = True  # a run lies in one row
    begin = np.flatnonzero(differ)
    value = flat[begin]
    lengths = np.diff(begin, append=flat.size)
    kept = value != 0
    ids, group = np.unique(value[kept], return_inverse=True)
    lengths_kept = lengths[kept]
    first = [c.astype(np.int64) + o for c, o in zip(np.unravel_index(begin[kept], labels.shape), corner, strict=True)]
    last = [*first[:-1], first[-1] + lengths_kept - 1]
    n = len(first)
    found = {
        "id": ids,
        "voxels": _added(group, lengths_kept, len(ids)),
        "sum": np.stack(
            [_added(group, (a + b) * lengths_kept // 2, len(ids)) for a, b in zip(first, last, strict=True)], 1
        ),
        "lo": np.full((len(ids), n), np.iinfo(np.int64).max),
        "hi": np.zeros((len(ids), n), np.int64),
    }
    for axis in range(n):
        np.minimum.at(found["lo"][:, axis], group, first[axis])
        np.maximum.at(found["hi"][:, axis], group, last[axis] + 1)
    if image is not None:
        kind = _sum_type(image.dtype)
        counts = [lengths_kept] * len(image)
        if absent is not None:
            image = np.where(absent, np.zeros((), image.dtype), image)
            counts = [np.add.reduceat(~channel.reshape(-1), begin, dtype=np.int64)[kept] for channel in absent]
        values = [np.add.reduceat(channel.reshape(-1), begin, dtype=kind)[kept] for channel in image]
        found["image"] = np.stack([_added(group, v, len(ids)) for v in values], 1)
        found["measured"] = np.stack([_added(group, v, len(ids)) for v in counts], 1)
    return found


def _sum_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Whole numbers of up to 32 bits are summed exactly."""
    return np.dtype(np.int64 if dtype.kind in "biu" and dtype.itemsize <= 4 else np.float64)


def _added(group: Array, values: Array, count: int) -> Array:
    out = np.zeros(count, values.dtype)
    np.add.at(out, group, values)
    return out


def merged(parts: Sequence[Found]) -> Found:
    """Sums of several parts as those of one, in the order of `parts`."""
    if len(parts) == 1:
        return parts[0]
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(every["id"], kind="stable")
    return added({name: values[order] for name, values in every.items()})


def added(rows: Found) -> Found:
    """Sums of rows that are sorted by number, one for each number."""
    ids = rows["id"]
    if not len(ids):
        return rows
    begin = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    how = {"lo": np.minimum, "hi": np.maximum}
    found = {"id": ids[begin]}
    for name, values in rows.items():
        if name != "id":
            found[name] = how.get(name, np.add).reduceat(values, begin)
    return found


def table(
    source: Source,
    out: str,
    crew: Crew,
    *,
    image: Source | None = None,
    memory: int = 2**30,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the table of the objects at `source` to the file `out`; returns what is known of it.

    memory: in bytes, of all that joining takes; what is more lies beside the file until it is there
    image: of the same grid, or the one that the labels were made of, where they are a part of it. Raises what its parts
    raise, and `InputError` where volumes do not fit.
    """
    write = table_files.writer(out)
    volume = check_labels(source)
    image = image and lying_as(volume, image)
    start = check_image(source, image) if image else (0,) * len(volume.shape)
    boxes = Boxes(volume.shape, block_of(volume.shape, volume.chunks, VOXELS))
    identity = {
        "pass": "table", "format": FORMAT, "input": source.name, "shape": list(volume.shape),
        "image": image.name if image else None, "start": list(start), "block": list(boxes.block),
    }  # fmt: skip
    if image and image.turn:
        identity["turn"] = [list(image.turn.order), list(image.turn.backwards)]
    with made(out, identity, overwrite=overwrite) as draft:
        work = Table(source, boxes, image, start, room=memory // 2, folder=draft.place.with_name("runs"))
        begun = time.time()
        pieces = known_of(work, draft.keep, crew)
        refuse_changed(work, begun)
        names, classes, counted = image.open().channel_names if image else (), classes_of(source), Counter[str]()
        columns = (columns_of(rows, volume, classes, names) for rows in _in_rows(_counted(pieces, counted)))
        first = next(columns)
        write(draft.place, chain([first], columns), World.of(volume))
    return {"out": out, "objects": counted["objects"], "columns": list(first)}


def _counted(pieces: Iterable[Found], counted: Counter[str]) -> Iterator[Found]:
    for piece in pieces:
        counted["objects"] += len(piece["id"])
        yield piece


def _in_rows(pieces: Iterable[Found]) -> Iterator[Found]:
    """The same rows, `table_files.ROWS` at a time, whatever pieces they come in; one piece at the least."""
    left: Found | None = None
    for piece in pieces:
        left = piece if left is None else {name: np.concatenate([left[name], piece[name]]) for name in piece}
        whole = len(left["id"]) // table_files.ROWS * table_files.ROWS
        for lo in range(0, whole, table_files.ROWS):
            yield {name: values[lo : lo + table_files.ROWS] for name, values in left.items()}
        left = {name: values[whole:] for name, values in left.items()}
        if whole and not len(left["id"]):
            left = None
    if left is not None:
        yield left


def lying_as(labels: Volume, image: Source) -> Source:
    """`image` with its axes as those of `labels` run, where both say how they do. Raises `InputError` where the labels
    are not on its voxels then."""
    other = image.open()
    turn = turn_to(other, labels) if labels.frame and other.frame else None
    if turn is None:
        return image
    if start_in(labels, Turned(other, turn)) is None:
        raise InputError(
            f"{image.path} lies turned to {labels.path}, and that not on its voxels; give the image on whose grid the "
            "labels are with --intensity, or none"
        )
    return replace(image, turn=turn)


def check_image(source: Source, image: Source) -> tuple[int, ...]:
    """The voxel of `image` that the labels' first one lies on. Raises `InputError` where they are on another grid: of
    another shape, unless their header, or where both lie, says which part of it they are."""
    volume, other = source.open(), image.open()
    refuse_unsaid(other, volume, "--intensity")
    said = starting(source, volume) or (None if volume.shape == other.shape else start_in(volume, other))
    start = said or (0,) * len(volume.shape)
    ends = [s + n for s, n in zip(start, volume.shape, strict=True)]
    fits = other.spatial == volume.spatial and all(
        end <= n if said else end == n for end, n in zip(ends, other.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"{image.path} has {times(other.shape)} voxels and the labels {times(volume.shape)}"
            + (f", from voxel {','.join(map(str, start))} on" if any(start) else "")
            + "; give the image on whose grid they are with --intensity, or none"
        )
    return start


@dataclass(frozen=True)
class Classes:
    """Which class objects are of."""

    by_id: zarr.Array | None
    """Of each number its class, read as far as it is asked for; None: the number is the class."""
    names: tuple[str, ...]

    def of(self, ids: Array) -> Array:
        if self.by_id is None:
            return ids
        count = self.by_id.shape[0]
        known = ids[ids < count]
        if not len(known):
            return np.zeros(len(ids), self.by_id.dtype)
        lo = int(known.min())
        part = np.asarray(self.by_id[lo : int(known.max()) + 1])
        return np.where(ids < count, part[np.where(ids < count, ids, known[0]) - known.dtype.type(lo)], 0)

    def name(self, kind: int) -> str:
        return self.names[kind] if kind < len(self.names) else ""


def classes_of(source: Source) -> Classes | None:
    """As an output of ours says it: of components or of labels; None of other volumes."""
    header = source.header
    names = tuple(map(str, header.get("classes") or ()))
    if header.get("output") == "objects":
        return Classes(read_classes(source.path), names)
    return Classes(None, names) if header.get("output") == "labels" else None


def columns_of(
    sums: Found, volume: Volume, classes: Classes | None, channel_names: Sequence[str] = ()
) -> Mapping[str, Any]:
    """Columns by name: an entry for each object, by its number."""
    world = World.of(volume)
    count = sums["voxels"]
    columns: dict[str, Any] = {"id": sums["id"]}
    if classes:
        kinds = classes.of(sums["id"])
        columns["class"] = kinds
        columns["class_name"] = [classes.name(int(kind)) for kind in kinds]
    columns["voxels"] = count
    columns["volume" if len(volume.shape) == 3 else "area"] = count * world.voxel
    columns["unit"] = [world.unit or ""] * len(count)
    centroid = world.points(sums["sum"] / np.maximum(count, 1)[:, None])
    lo, hi = world.boxes(sums["lo"], sums["hi"])
    columns |= {f"centroid_{a}": centroid[:, i] for i, a in enumerate(world.axes)}
    columns |= {f"min_{a}": lo[:, i] for i, a in enumerate(world.axes)}
    columns |= {f"max_{a}": hi[:, i] for i, a in enumerate(world.axes)}
    for i, a in enumerate(volume.spatial):
        columns |= {f"voxel_{a}0": sums["lo"][:, i], f"voxel_{a}1": sums["hi"][:, i]}
    if "image" in sums:
        columns |= dict(_means(sums["image"], sums["measured"], channel_names))
    return columns


def _means(sums: Array, counts: Array, names: Sequence[str]) -> Iterator[tuple[str, Array]]:
    """By channel, over what was measured in it; NaN where nothing was."""
    for i, (column, count) in enumerate(zip(sums.T, counts.T, strict=True)):
        name = "" if sums.shape[1] == 1 else f"_{names[i] if i < len(names) and names[i] else i}"
        yield f"mean_intensity{name}", np.where(count > 0, column / np.maximum(count, 1), np.nan)
