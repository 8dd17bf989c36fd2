"""Connected components: every object of a label volume gets a number of its own, whatever boxes it was looked at in.

Objects are numbered 1, 2, … by their first voxel in C order (z, then y, then x), over all classes together. That
depends on voxels alone: not on boxes, workers, their number or their deaths. Inside a box cc3d does the work; see
`unet_engine.postprocess.joining` for what is done across boxes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_engine.errors import DataError, PlanError, SettingsError, UnetEngineError, writing
from unet_engine.output.label import Label
from unet_engine.output.layout import Layout
from unet_engine.plan.box import Box
from unet_engine.plan.plan import Index
from unet_engine.postprocess import objects
from unet_engine.postprocess.base import VOXELS, Array, Boxes, Crew, Found, block_of, known_of
from unet_engine.postprocess.joining import Objects, Rules, gathered, numbered
from unet_engine.postprocess.labelling import CONNECTIVITY, cc3d, measured, nodes_of, planes, touching
from unet_engine.postprocess.source import Source, check_labels, starting
from unet_engine.postprocess.target import Wish, begun
from unet_engine.units import Tell, silent, size, times
from unet_engine.version import version_of
from unet_engine.volumes.base import Volume

FORMAT = 1
"""Changes whenever the same rules would give other bytes than an earlier version's."""
VOXEL_BYTES = 64
"""Bytes that looking at a voxel takes at most: measured for noise of eight bytes with holes looked for, where every
second voxel is a node. What real labels need is a third of it."""
DTYPES = ("uint8", "uint16", "uint32", "uint64")


@dataclass(frozen=True)
class Components:
    """The pass: looks at nodes of boxes, joins them, writes numbers."""

    source: Source
    boxes: Boxes
    rules: Rules
    dtype: str = "uint64"
    """Of what is written, known once objects are counted."""

    def look(self, index: Index, box: Box) -> Found:
        """Nodes of the box as `labelling.measured` has them, its faces, and what tells whether it was changed."""
        labels = self.source.labels(box)
        nodes, classes, total = self._nodes(labels)
        check = [zlib.crc32(labels.data), _check(nodes)]
        pairs = touching(nodes, classes) if self.rules.fill_holes else np.zeros((0, 2), np.int64)
        return {
            **measured(nodes, labels, total, box, self.boxes.shape),
            **planes(nodes, box, self.boxes.shape),
            "touching": pairs,
            "crc": np.array(check),
        }

    def changed(self, box: Box, since: float) -> str | None:
        return self.source.changed(box, since)

    def _nodes(self, labels: Array) -> tuple[Array, int, int]:
        return nodes_of(labels, self.rules.connectivity, holes=self.rules.fill_holes)

    def reduce(self, found: Iterable[tuple[Index, Found]]) -> Numbers:
        checks: dict[Index, tuple[int, int, int]] = {}

        def noted() -> Iterable[tuple[Index, Found]]:
            for index, one in found:
                checks[index] = int(one["crc"][0]), int(one["crc"][1]), len(one["class"]) - 1
                yield index, one

        objects = numbered(gathered(noted(), self.boxes.counts, self.rules.connectivity), self.rules)
        return Numbers(objects, _values(objects, self.rules), checks)

    def values(self, index: Index, box: Box, part: tuple[int, int, Array]) -> Array:
        check, numbering, ids = part
        if not ids.any():
            return np.zeros(box.shape, self.dtype)
        labels = self.source.labels(box)
        if zlib.crc32(labels.data) != check:
            raise DataError(
                f"{self.source.path}: voxels {box} were changed while components were looked for; run again with "
                "--overwrite once nothing writes to it"
            )
        nodes, _, _ = self._nodes(labels)
        if _check(nodes) != numbering:
            raise UnetEngineError(
                "two processes number pieces differently: they have other versions of connected-components-3d; install "
                "the same one, and use --overwrite"
            )
        return np.take(ids.astype(self.dtype), nodes)


@dataclass(frozen=True)
class Numbers:
    """What the pass knows: `Parts` of numbers."""

    objects: Objects
    values: Array
    """What voxels of objects 0 (none), 1, 2, … become."""
    checks: Mapping[Index, tuple[int, int, int]]
    """Of each box the checksums of its labels and of some of its nodes, and how many nodes it has."""

    def of(self, index: Index) -> tuple[int, int, Array]:
        check, numbering, total = self.checks[index]
        return check, numbering, self.values[self.objects.of(index, total)]


def _values(objects: Objects, rules: Rules) -> Array:
    if rules.values == "numbers":
        return np.arange(len(objects.kind) + 1)
    return np.concatenate([np.zeros(1, objects.kind.dtype), objects.kind])


def _check(nodes: Array) -> int:
    """A checksum of every 61st node: it tells numberings apart, and costs little."""
    return zlib.crc32(np.ascontiguousarray(nodes.reshape(-1)[::61]).data)


def rules_of(ndim: int, connectivity: int | None, **others: Any) -> Rules:
    """Rules for a volume of so many axes; connectivity None: by faces; of `others` what is None is left out. Raises
    `SettingsError`."""
    known = CONNECTIVITY[ndim]
    if connectivity is not None and connectivity not in known:
        raise SettingsError(f"--connectivity {connectivity} is not one of {ndim}D; use {', '.join(map(str, known))}")
    given = {name: value for name, value in others.items() if value is not None}
    return Rules(known[0] if connectivity is None else connectivity, **given)


def components(
    source: Source,
    rules: Rules,
    wish: Wish,
    crew: Crew,
    *,
    memory: int,
    dtype: str | None = None,
    run: str | None = None,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Write the objects of the labels at `source` as the output `wish`; returns what is known of them.

    memory: bytes that looking at one box may take; run: the digest of the run that is to end in this, which made the
    labels for it. Raises what its parts raise, and `InputError` where the volume holds
    no labels.
    """
    cc3d()  # said before any work
    volume = check_labels(source)
    chunk = _chunk(volume)
    block = block_of(volume.shape, chunk, min(VOXELS, memory // VOXEL_BYTES))
    check_memory(volume, block, memory)
    identity, numbering = identity_of(source, rules, dtype), rules.values == "numbers"
    facts = {
        **{key: value for key, value in source.header.items() if key not in _NOT_KEPT},
        **({"run": run} if run else {"labels": source.path} if numbering else {"kept_of": source.path}),
        "output": "objects" if numbering else "labels",
        **({"start": list(start)} if (start := starting(source, volume)) else {}),
        **({"frame": volume.frame.facts()} if volume.frame else {}),
    }
    boxes = Boxes(volume.shape, block)
    with begun(wish, identity, facts, boxes, tell) as output:
        if output is not None:
            boxes = output.boxes(boxes)
            numbers: Numbers = known_of(Components(source, boxes, rules), output.keep, crew)
            found = numbers.objects
            kind = _dtype(int(numbers.values.max()), dtype)
            named = () if numbering else tuple(map(str, facts.get("classes") or ()))
            output.write(Components(source, boxes, rules, kind), numbers, _layout(volume, chunk, kind, named), crew)
            if numbering:
                with writing(wish.path, "writing the classes of its objects"):
                    objects.write_classes(wish.path, found.kind, output.durability)
            output.finish(_summary(found, kind))
    return {"out": wish.path, **(Source(wish.path).header.get("summary") or {})}


def identity_of(source: Source, rules: Rules, dtype: str | None) -> dict[str, Any]:
    """All that decides the numbers and how they are stored."""
    volume = source.open()
    return {
        "pass": "components", "format": FORMAT, "input": source.name, "shape": list(volume.shape), **rules.facts(),
        "dtype": dtype, "chunk": list(_chunk(volume)), "cc3d": version_of("connected-components-3d"),
    }  # fmt: skip


_NOT_KEPT = ("identity", "digest", "complete", "summary", "array", "block", "blocks", "begun", "versions")
"""Of what a run says of its labels, what is not true of their objects."""


def check_memory(volume: Volume, block: tuple[int, ...], memory: int) -> None:
    """Raises `PlanError` where not even the smallest block fits."""
    least = prod(map(min, block, volume.shape)) * VOXEL_BYTES
    if least > memory:
        raise PlanError(
            f"a box of {times(block)} voxels takes {size(least)}, and there are {size(memory)} for each: give more "
            "--memory, or store the labels in smaller chunks"
        )


MOST_CLASSES = 1000
"""That are told one by one: labels may be numbers of a million cells."""


def _summary(found: Objects, dtype: str) -> dict[str, Any]:
    kinds, counts = np.unique(found.kind, return_counts=True)
    by_class = {str(int(k)): int(c) for k, c in zip(kinds, counts, strict=True)}
    return {
        "objects": len(found.count),
        **({"objects_by_class": by_class} if len(by_class) <= MOST_CLASSES else {}),
        "voxels": int(found.count.sum()),
        "voxels_filled": found.filled,
        "dtype": dtype,
    }


def _dtype(count: int, wanted: str | None) -> str:
    """The type of numbers up to `count`. Raises `SettingsError` where `wanted` does not hold them."""
    fitting = [name for name in DTYPES if count <= np.iinfo(name).max]
    if wanted is None:
        return fitting[0]
    if wanted not in fitting:
        raise SettingsError(f"--dtype {wanted} holds no {count:,}; use {fitting[0]}, or leave it out")
    return wanted


LEAST_CHUNK, MOST_CHUNK = 2**12, 2**24
"""Voxels of chunks of the input that the output takes over."""


def _chunk(volume: Volume) -> tuple[int, ...]:
    """Chunks of the output: those of the input where they are of a size that is good to write."""
    chunk = tuple(min(c, n) for c, n in zip(volume.chunks, volume.shape, strict=True))
    if min(LEAST_CHUNK, prod(volume.shape)) <= prod(chunk) <= MOST_CHUNK:
        return chunk
    side = 64 if len(chunk) == 3 else 512
    return tuple(min(side, n) for n in volume.shape)


def _layout(volume: Volume, chunk: tuple[int, ...], dtype: str, named: tuple[str, ...]) -> Layout:
    return Layout(
        names=volume.spatial,
        stored=volume.stored_spatial,
        shape=volume.shape,
        chunk=chunk,
        channels=None,
        dtype=dtype,
        spacing=volume.spacing or (1.0,) * len(volume.shape),
        translation=volume.translation,
        unit=volume.unit,
        classes=named,
        frame=volume.frame,
        label=Label(named),
    )
