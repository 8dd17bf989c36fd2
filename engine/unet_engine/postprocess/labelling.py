"""What is connected inside one box: nodes, that neighbouring boxes then join.

A node is what is connected inside the box and has one class; where holes are looked for, background that is connected
by faces is nodes as well. Nodes are numbered from 1, those of the background last; the number of a node says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from unet_engine.errors import UnetEngineError
from unet_engine.plan.box import Box
from unet_engine.postprocess.base import Array

CONNECTIVITY = {2: (4, 8), 3: (6, 18, 26)}
"""Neighbours of a voxel that count, by the number of axes: those that share a face, an edge, a corner with it."""
SLAB = 2**20
"""Voxels that are gone through at once, so that what that needs stays small."""


def cc3d() -> Any:
    """The module. Raises `UnetEngineError` where it is not installed."""
    try:
        import cc3d
        import scipy.sparse.csgraph  # noqa: F401  # joins what cc3d finds
    except ImportError as error:
        raise UnetEngineError(
            f"components need the packages connected-components-3d and scipy ({error}); pip install "
            "'unet-engine[components]'"
        ) from error
    return cc3d


def nodes_of(labels: Array, connectivity: int, *, holes: bool) -> tuple[Array, int, int]:
    """The node of each voxel (0 for background where no `holes` are looked for), how many there are of classes, and how
    many there are in all. labels: unsigned, C order"""
    if not holes and not labels.any():
        return np.zeros(labels.shape, np.uint32), 0, 0
    found, count = cc3d().connected_components(labels, connectivity=connectivity, return_N=True)
    if not holes:
        return found, int(count), int(count)
    background = labels == 0
    faces = CONNECTIVITY[labels.ndim][0]
    empty, more = cc3d().connected_components(background, connectivity=faces, binary_image=True, return_N=True)
    total = int(count) + int(more)
    nodes = found.astype(np.uint32 if total < 2**32 else np.uint64)
    np.add(empty, np.array(count, nodes.dtype), out=nodes, where=background, casting="unsafe")
    return nodes, int(count), total


def starts(values: Array) -> Array:
    """Where a value differs from the one before it, in flat order; 0 is one of them."""
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def measured(nodes: Array, labels: Array, total: int, box: Box, shape: Sequence[int]) -> dict[str, Array]:
    """Of each node 0 to `total` (0 stands for nothing): its class, its first voxel, counted in C order in a volume of
    `shape`, and how many voxels it has."""
    first = np.zeros(total + 1, np.int64)
    count = np.zeros(total + 1, np.int64)
    flat = nodes.reshape(-1)
    for lo in reversed(range(0, flat.size, SLAB)):  # so that the first voxel is the last to be written
        part = flat[lo : lo + SLAB]
        begin = starts(part)
        node = part[begin]
        first[node[::-1]] = begin[::-1] + lo
        lengths = np.diff(begin, append=part.size)
        count += np.bincount(node, lengths, total + 1).astype(np.int64)
    kind = labels.reshape(-1)[first]
    kind[0] = count[0] = 0
    return {"class": kind, "first": _in_volume(first, box, shape), "count": count}


def _in_volume(flat: Array, box: Box, shape: Sequence[int]) -> Array:
    """Flat numbers of voxels of `box` as flat numbers in a volume of `shape`."""
    out = np.zeros(flat.size, np.int64)
    for coordinate, lo, size in zip(np.unravel_index(flat, box.shape), box.lo, shape, strict=True):
        out = out * size + (coordinate + lo)
    return out


def planes(nodes: Array, box: Box, shape: Sequence[int]) -> dict[str, Array]:
    """The outermost nodes of the box at those sides where the volume goes on, ``lo0`` to ``hi2``, and, as ``outer``,
    which nodes touch the volume's edge."""
    found: dict[str, Array] = {}
    outer = []
    for axis in range(nodes.ndim):
        for name, at, inside in (("lo", 0, box.lo[axis] > 0), ("hi", -1, box.hi[axis] < shape[axis])):
            plane = np.ascontiguousarray(nodes.take(at, axis))
            if inside:
                found[f"{name}{axis}"] = plane
            else:
                outer.append(np.unique(plane))
    return found | {"outer": np.unique(np.concatenate(outer)) if outer else np.zeros(0, nodes.dtype)}


def touching(nodes: Array, classes: int) -> Array:
    """Pairs (background node, node of a class) that share a face; nodes above `classes` are background."""
    found = [np.zeros((0, 2), np.int64)]
    for part in _slabs(nodes):
        empty = part > classes
        flat = part.reshape(-1)
        for axis in range(nodes.ndim):
            lower = tuple(slice(None, -1) if i == axis else slice(None) for i in range(nodes.ndim))
            upper = tuple(slice(1, None) if i == axis else slice(None) for i in range(nodes.ndim))
            differ = np.zeros(part.shape, np.bool_)
            np.not_equal(empty[lower], empty[upper], out=differ[lower])
            at = np.flatnonzero(differ)
            a, b = flat[at].astype(np.int64), flat[at + prod(part.shape[axis + 1 :])].astype(np.int64)
            found.append(distinct(np.stack([np.maximum(a, b), np.minimum(a, b)], 1)))
    return distinct(np.concatenate(found))


def _slabs(nodes: Array) -> Iterator[Array]:
    """Pieces along the first axis, each with the first plane of the next one."""
    step = max(1, SLAB // max(1, nodes[0].size))
    for lo in range(0, len(nodes), step):
        yield nodes[lo : lo + step + 1]


def distinct(pairs: Array) -> Array:
    """Rows of two numbers, each once, in order."""
    if len(pairs) < 2:
        return pairs
    pairs = pairs[_changes(pairs)]  # neighbours mostly say the same: fewer to sort
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    rows: Array = pairs[_changes(pairs)]
    return rows


def _changes(pairs: Array) -> Array:
    """Which rows differ from the one before them; the first does."""
    return np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(1)])
