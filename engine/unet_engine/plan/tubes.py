"""Tubes: an order of blocks in which what they share of a volume behind a network is kept in less memory.

Layer by layer, a chunk is kept until the next layer of blocks reads it: of a large volume a layer is more than may be
kept. A tube is as long as the volume and so thin that a layer of it can be kept. What is paid for that are the chunks at
the walls between tubes, which the next one reads again: they are kept as far as there is room, else fetched twice.
Halos at walls wait as long. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from heapq import heappop, heappush
from itertools import product
from math import prod

from unet_engine.plan.fetching import Fetching
from unet_engine.plan.plan import Plan

ONCE = 1.05
"""How often a chunk is fetched in the mean at most where that counts as once."""
MOST_TUBES = 6
"""Along an axis: more walls cost more than they spare."""
TRIED = 4
"""Ways to part into tubes that are looked at closer, of those that a bound finds best."""
MOVED = 2
"""Blocks that a wall is moved by at most, to where fewer chunks lie on both sides of it."""
WORTH = 0.01
"""How much less often a chunk has to be fetched for tubes to be worth what waits at their walls."""
MOST_BLOCKS = 2**18
"""Of plans of more, what waits at walls is not counted, and there are none."""
WALKED = 2**18
"""Reads of chunks up to which fetches are counted one by one."""
_BEING_READ = -1


def tubes(plan: Plan, fetching: Fetching, kept: float) -> Iterator[Plan]:
    """The plan in tubes, where `kept` of the chunks of `fetching` are kept and it would be more often than `ONCE` that
    one is fetched: those first that wait for least and are enough, then those that fetch least. Of a plan in one
    column."""
    if plan.column_count != 1 or plan.block_range.size > MOST_BLOCKS or not fetching.chunks:
        return
    before = counted(fetching, kept)
    if before <= ONCE:
        return
    found = []
    for counts in product(*(range(1, MOST_TUBES + 1) for _ in plan.order[1:])):
        walls = _walls(plan, fetching, dict(zip(plan.order[1:], counts, strict=True)))
        often = fetching.in_tubes(walls).fetches(kept) / fetching.chunks
        found.append((max(often, ONCE), prod(counts), walls))
    for _, _, walls in sorted(set(found))[:TRIED]:
        if counted(fetching.in_tubes(walls), kept) <= before - WORTH:
            yield replace(plan, walls=walls)


def _walls(plan: Plan, fetching: Fetching, counts: dict[int, int]) -> tuple[tuple[int, ...], ...]:
    """Per axis, the blocks at which so many tubes of about the same width part."""
    found = []
    for a in range(len(plan.axes)):
        rows, first = fetching.spans[a], fetching.blocks[a][0]
        chosen = set[int]()
        for i in range(1, counts.get(a, 1)):
            even = round(len(rows) * i / counts[a])
            near = [k for k in range(even - MOVED, even + MOVED + 1) if 0 < k < len(rows)]
            if near:
                chosen.add(min(near, key=lambda k: (rows[k - 1][1] - rows[k][0], abs(k - even))))
        found.append(tuple(first + k for k in sorted(chosen)))
    return tuple(found)


def counted(fetching: Fetching, kept: float) -> float:
    """How often a chunk is fetched in the mean where so many are kept, those that are being read included, and what is
    needed last goes first: one read after the other, where these are not too many; else a bound."""
    if not fetching.chunks:
        return 0.0
    reads = prod(sum(hi - lo for lo, hi in spans) for spans in fetching.spans)
    bound = fetching.fetches(kept) / fetching.chunks
    return bound if reads > WALKED or fetching.fetches(kept) <= fetching.chunks else _walked(fetching, kept)


def _walked(fetching: Fetching, kept: float) -> float:
    blocks = [
        list(product(*(range(*spans[row]) for spans, row in zip(fetching.spans, rows, strict=True))))
        for rows in fetching.in_order()
    ]
    due: dict[tuple[int, ...], list[int]] = {}
    for n in range(len(blocks) - 1, -1, -1):
        for chunk in blocks[n]:
            due.setdefault(chunk, []).append(n)  # the last first
    there: dict[tuple[int, ...], int] = {}
    last: list[tuple[int, tuple[int, ...]]] = []
    fetches = 0

    def leave_room() -> None:
        while len(there) > kept and last:
            when, chunk = heappop(last)
            if there.get(chunk) == -when:
                del there[chunk]

    for chunks in blocks:
        fetches += sum(chunk not in there for chunk in chunks)
        there.update(dict.fromkeys(chunks, _BEING_READ))
        leave_room()
        for chunk in chunks:
            left = due[chunk]
            left.pop()
            if left:
                there[chunk] = left[-1]
                heappush(last, (-left[-1], chunk))
            else:
                del there[chunk]
        leave_room()
    return fetches / len(due)
