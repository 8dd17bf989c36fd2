"""What is connected across boxes: their nodes joined over the faces that they share, holes filled, what is too small
left out, and the rest numbered by its first voxel.

Held are the nodes of all boxes (class, first voxel, size), the pairs that are joined, and the faces of one
cross-section of the volume, compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from unet_engine.errors import PlanError
from unet_engine.plan.plan import Index
from unet_engine.postprocess.base import Array, Found, packed, unpacked
from unet_engine.postprocess.labelling import CONNECTIVITY, distinct

MOST_NODES = 2**31 - 2
"""What SciPy's graphs hold."""


@dataclass(frozen=True)
class Rules:
    """Which objects there are."""

    connectivity: int
    """Neighbours that count: 4 or 8 in 2D, 6, 18 or 26 in 3D."""
    min_size: int = 1
    """Voxels an object has at the least."""
    fill_holes: bool = False
    """Background that faces connect, that does not reach the volume's edge, and that touches one class alone becomes
    that class; it is done before sizes are looked at."""
    largest: int | None = None
    """So many objects of each class are kept, of equal ones the first."""
    classes: tuple[int, ...] | None = None
    """The labels that all this concerns, None for all; objects of others are kept as they are."""
    values: Literal["numbers", "labels"] = "numbers"
    """What voxels of what is kept become: the number of their object, or their label."""

    def facts(self) -> dict[str, Any]:
        """All that decides what is written; what came later, and is as it always was, is not among it."""
        later = {"classes": None, "values": "numbers"}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass(frozen=True)
class Nodes:
    """The nodes of all boxes, one after another, each box with its 0 first."""

    kind: Array
    first: Array
    count: Array
    base: dict[Index, int]
    """Where those of a box begin."""
    joined: Array
    """Pairs of nodes of one class, or of the background, that are one."""
    touching: Array
    """Pairs (node of the background, node of a class) that share a face."""
    outer: Array
    """Nodes at the edge of the volume."""


def gathered(found: Iterable[tuple[Index, Found]], counts: Sequence[int], connectivity: int) -> Nodes:
    """All nodes, and how they meet. found: what `components.Components.look` gives, in index order; counts: boxes along
    each axis"""
    seams = _Seams(tuple(counts), connectivity)
    kinds, firsts, sizes, joined, touching, outer = [], [], [], [], [], []
    base, total = {}, 0
    for index, one in found:
        base[index] = total
        kinds.append(one["class"])
        firsts.append(one["first"])
        sizes.append(one["count"])
        outer.append(one["outer"].astype(np.int64) + total)
        touching.append(one["touching"] + total)
        pairs, contacts = seams.meet(index, one, total)
        joined.append(pairs)
        touching.append(contacts)
        total += len(one["class"])
    return Nodes(
        np.concatenate(kinds), np.concatenate(firsts), np.concatenate(sizes), base,
        _all(joined), _all(touching), np.concatenate(outer),
    )  # fmt: skip


def _all(pairs: list[Array]) -> Array:
    return np.concatenate([np.zeros((0, 2), np.int64), *pairs])


class _Seams:
    """The upper faces of boxes, kept until all boxes that they meet were there."""

    def __init__(self, counts: tuple[int, ...], connectivity: int) -> None:
        n = len(counts)
        self._counts = counts
        steps = CONNECTIVITY[n].index(connectivity)
        self._steps = {
            axis: [s for s in product((-1, 0, 1), repeat=n - 1) if sum(map(abs, s)) <= steps] for axis in range(n)
        }
        """By axis along which two voxels are neighbours, where the upper one may lie off the other along the rest."""
        self._kept: list[dict[Index, tuple[bytes, int]]] = [{} for _ in counts]
        """By axis and box: its upper face, and the number of its node 0."""

    def meet(self, index: Index, one: Found, base: int) -> tuple[Array, Array]:
        """Pairs that are joined, and pairs that touch, between this box and those before it. base: its node 0"""
        joined, touching = [], []
        for axis in range(len(self._counts)):
            if index[axis]:
                node, kind = one[f"lo{axis}"].astype(np.int64) + base, one["class"][one[f"lo{axis}"]]
                below = self._below(index, axis, node.shape)
                for step, (other, its) in below:
                    same = (kind == its) & (other >= 0) & (node > base)
                    if any(step):
                        same &= kind > 0  # background is connected by faces
                    joined.append(_distinct(other[same], node[same]))
                    if not any(step):
                        apart = ((kind == 0) != (its == 0)) & (other >= 0) & (node > base)
                        empty = np.where(kind == 0, node, other)[apart]
                        touching.append(_distinct(empty, np.where(kind == 0, other, node)[apart]))
            if index[axis] + 1 < self._counts[axis]:
                plane = one[f"hi{axis}"]
                self._kept[axis][index] = packed({"node": plane, "class": one["class"][plane]}), base
        self._forget(index)
        return _all(joined), _all(touching)

    def _below(self, index: Index, axis: int, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
        """For each step: node (-1 for none) and class of the voxel below each voxel of the lower face along `axis`, off
        by that step. Boxes that lie off along an axis before `axis` meet this one over that axis."""
        rest = [a for a in range(len(self._counts)) if a != axis]
        node = np.full([n + 2 for n in shape], -1, np.int64)
        kind: Array | None = None
        ring = len(self._steps[axis]) > 1
        for off in product(*((-1, 0, 1) if ring and a > axis else (0,) for a in rest)):
            place = {axis: index[axis] - 1} | {a: index[a] + o for a, o in zip(rest, off, strict=True)}
            kept = self._kept[axis].get(tuple(place[a] for a in range(len(place))))
            if kept is None:
                continue
            plane = unpacked(kept[0])
            assert plane is not None
            if kind is None:
                kind = np.zeros(node.shape, plane["class"].dtype)
            into = tuple(
                slice(1, 1 + n) if o == 0 else slice(0, 1) if o < 0 else slice(1 + n, 2 + n)
                for o, n in zip(off, shape, strict=True)
            )
            of = tuple(slice(None) if o == 0 else slice(-1, None) if o < 0 else slice(0, 1) for o in off)
            node[into] = plane["node"][of].astype(np.int64) + kept[1]
            node[into][plane["node"][of] == 0] = -1
            kind[into] = plane["class"][of]
        if kind is None:
            return
        for step in self._steps[axis]:
            cut = tuple(slice(1 + s, 1 + s + n) for s, n in zip(step, shape, strict=True))
            yield step, (node[cut], kind[cut])

    def _forget(self, index: Index) -> None:
        """Let go of faces that no later box meets."""
        for axis, kept in enumerate(self._kept):
            for other in list(kept):
                last = [
                    o + 1 if a == axis else min(o + 1, c - 1) if a > axis else o
                    for a, (o, c) in enumerate(zip(other, self._counts, strict=True))
                ]
                if tuple(last) > index:
                    break
                del kept[other]


def _distinct(a: Array, b: Array) -> Array:
    """Pairs as rows, each once."""
    return distinct(np.stack([a, b], 1))


@dataclass(frozen=True)
class Objects:
    """What is numbered: objects 1, 2, … by their first voxel; arrays have an entry for each, in order."""

    ids: Array
    """Of each node the number of its object; 0 for none."""
    kind: Array
    first: Array
    count: Array
    base: dict[Index, int]
    filled: int
    """Voxels of holes that were filled."""

    def of(self, index: Index, total: int) -> Array:
        """The numbers of nodes 0 to `total` of a box."""
        return self.ids[self.base[index] : self.base[index] + total + 1]


def numbered(nodes: Nodes, rules: Rules) -> Objects:
    """Join, fill, leave out, number."""
    group = _groups(len(nodes.kind), nodes.joined)
    filled = 0
    if rules.fill_holes:
        kind, holes = _filled(nodes, group, rules.classes)
        filled = int(nodes.count[holes].sum())
        contacts = nodes.touching[holes[nodes.touching[:, 0]]]
        group = _groups(len(nodes.kind), np.concatenate([nodes.joined, contacts]))
    else:
        kind = nodes.kind
    is_object = (kind > 0) & (nodes.count > 0)
    member = group[is_object]
    total = int(group.max(initial=-1)) + 1
    count = np.zeros(total, np.int64)
    np.add.at(count, member, nodes.count[is_object])
    first = np.full(total, np.iinfo(np.int64).max)
    np.minimum.at(first, member, nodes.first[is_object])
    of_class = np.zeros(total, kind.dtype)
    of_class[member] = kind[is_object]
    free = np.zeros(total, np.bool_) if rules.classes is None else ~np.isin(of_class, rules.classes)
    kept = np.flatnonzero((count >= max(1, rules.min_size)) | (free & (count > 0)))
    kept = kept[np.argsort(first[kept], kind="stable")]
    if rules.largest is not None:
        kept = kept[(_rank(of_class[kept], count[kept]) < rules.largest) | free[kept]]
    number = np.zeros(total, np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    ids = np.where(is_object, number[group], 0)
    return Objects(ids, of_class[kept], first[kept], count[kept], nodes.base, filled)


def _groups(count: int, pairs: Array) -> Array:
    """Of each node the number of what it is part of."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if count > MOST_NODES:
        raise PlanError(
            f"there are {count:,} pieces to join, and {MOST_NODES:,} at most can be; smooth the labels first"
        )
    graph = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups: Array = connected_components(graph, directed=False)[1]
    return groups


def _filled(nodes: Nodes, group: Array, classes: tuple[int, ...] | None) -> tuple[Array, Array]:
    """The class of each node once holes are filled, and which nodes are filled holes. classes: whose are, None for all"""
    total = int(group.max(initial=-1)) + 1
    empty, other = nodes.touching[:, 0], nodes.kind[nodes.touching[:, 1]]
    least = np.full(total, np.iinfo(other.dtype).max, other.dtype)
    most = np.zeros(total, other.dtype)
    np.minimum.at(least, group[empty], other)
    np.maximum.at(most, group[empty], other)
    open_ = np.zeros(total, np.bool_)
    open_[group[nodes.outer]] = True
    hole = ~open_ & (least == most)
    if classes is not None:
        hole &= np.isin(most, classes)
    holes = (nodes.kind == 0) & (nodes.count > 0) & hole[group]
    return np.where(holes, most[group], nodes.kind), holes


def _rank(kind: Array, count: Array) -> Array:
    """Of each object how many of its class come before it: larger ones, and of equal ones those before it."""
    order = np.lexsort((np.arange(len(kind)), -count, kind))
    sorted_kind = kind[order]
    begin = np.flatnonzero(np.concatenate([[True], sorted_kind[1:] != sorted_kind[:-1]])) if len(kind) else order
    lengths = np.diff(begin, append=len(kind))
    rank = np.empty(len(kind), np.int64)
    rank[order] = np.arange(len(kind)) - np.repeat(begin, lengths)
    return rank
