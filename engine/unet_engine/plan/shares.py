"""Which blocks belong to part i of n. Pure arithmetic on the block grid, so that parts on different machines agree
without a word.

    blocks of a plane, n = 6        0   1 | 2   3 | 4   5
                                    --1---|--2----|--3---     3 spans along the fast axis
                                    --4---|--5----|--6---     2 along the other

Parts share nothing but the output: each infers the windows on its lower seams itself. Where n cannot be made of spans
along the axes, as few more boxes as possible are made, and some parts get two of them, one behind the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import prod

from unet_engine.plan.box import Box

Cuts = tuple[tuple[int, int], ...]
"""The spans of block indices an axis is cut into."""


def share(
    writing: Sequence[Sequence[int]], ends: Box, windows: Callable[[int, int, int], int], part: tuple[int, int]
) -> tuple[Box, ...]:
    """The boxes of blocks that make up part (i, n), 1 <= i <= n: one or two, none where there are more parts than
    blocks.

    writing: per axis the indices of blocks that write something; every box gets some of them
    ends: the range of all block indices
    windows: how many windows blocks lo to hi of an axis need, called as ``windows(axis, lo, hi)``
    """
    i, n = part

    @cache
    def cost(a: int, c: int) -> tuple[int, int]:
        return _cost(_spans(writing[a], ends, a, c), a, windows)

    counts = _boxes_per_axis([len(w) for w in writing], n, cost)
    spans = [_spans(w, ends, a, c) for a, (w, c) in enumerate(zip(writing, counts, strict=True))]
    first, stop = prod(counts) * (i - 1) // n, prod(counts) * i // n
    corners = [_at(k, spans) for k in range(first, stop)]
    return _joined(tuple(Box(*map(tuple, zip(*corner, strict=True))) for corner in corners))


def _boxes_per_axis(limits: Sequence[int], n: int, cost: Callable[[int, int], tuple[int, int]]) -> tuple[int, ...]:
    """Into how many spans each axis is cut: n boxes, or the smallest larger number that spans can make; all blocks
    where n is more.

    Of several ways, that with the fewest windows in all boxes together; of those, that with the smallest largest box.
    """
    numbers = itertools.count(min(n, prod(limits)))  # one box per block is always a way, so this ends
    ways = next(filter(None, (list(_factorizations(number, limits)) for number in numbers)))

    def price(way: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
        sums = [cost(a, c) for a, c in enumerate(way)]
        return prod(total for total, _ in sums), prod(widest for _, widest in sums), way

    return min(ways, key=price)


def _factorizations(n: int, limits: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All tuples of factors of n, each at most its limit."""
    if not limits:
        if n == 1:
            yield ()
        return
    for first in range(1, min(n, limits[0]) + 1):
        if n % first == 0:
            for rest in _factorizations(n // first, limits[1:]):
                yield (first, *rest)


def _spans(writing: Sequence[int], ends: Box, axis: int, count: int) -> Cuts:
    """`count` spans with as equal numbers of writing blocks as can be."""
    inner = [writing[len(writing) * k // count] for k in range(1, count)]
    return tuple(itertools.pairwise((ends.lo[axis], *inner, ends.hi[axis])))


def _cost(spans: Cuts, axis: int, windows: Callable[[int, int, int], int]) -> tuple[int, int]:
    """Windows of all spans together, and of the widest."""
    each = [windows(axis, lo, hi) for lo, hi in spans]
    return sum(each), max(each)


def _at(k: int, spans: Sequence[Cuts]) -> list[tuple[int, int]]:
    """The k-th of the products of `spans`, the last axis fastest."""
    found = []
    for along in reversed(spans):
        k, place = divmod(k, len(along))
        found.append(along[place])
    return found[::-1]


def _joined(boxes: tuple[Box, ...]) -> tuple[Box, ...]:
    """Two boxes that lie side by side as one: there is no seam to be inferred twice between them."""
    if len(boxes) == 2:
        a, b = boxes
        differing = [k for k in range(a.ndim) if (a.lo[k], a.hi[k]) != (b.lo[k], b.hi[k])]
        if len(differing) == 1 and a.hi[differing[0]] == b.lo[differing[0]]:
            return (Box(a.lo, b.hi),)
    return boxes
