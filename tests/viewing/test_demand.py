"""Which block is computed next: geometry against a walk through all blocks, and the order against what people see."""

import itertools
from math import dist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.plans import make, plans
from unet_engine.output.layout import Layout
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.viewing.demand import SETTLING, STALE, Blocks, Demand, Sight
from unet_engine.volumes.turn import Turn


def layout(plan, turn=None, begin=None):
    shape = plan.roi.shape if turn is None else turn.shape
    names = plan.names
    return Layout(names, names, shape, plan.chunk, None, "uint8", (1.0,) * len(shape), (0.0,) * len(shape), None, (),
                  turn=turn, begin=begin)  # fmt: skip


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def grid(size=(64, 64, 64), window=8, block=(2, 2, 2)):
    return make(tuple(AxisGrid.with_overlap(n, window, 0.5, 0, "gaussian") for n in size), block=block)


def demand(plan, done=(), turn=None):
    clock = Clock()
    found = Demand(Blocks(plan, layout(plan, turn)), lambda index: index not in done, clock)
    return found, clock


def following(demand, clock, count=10_000):
    """What is chosen one after the other, each committed."""
    clock.now += SETTLING
    order = []
    while len(order) < count and (index := demand.next(0)) is not None:
        order.append(index)
        demand.committed(index)
    return order


@given(plans(), st.data())
def test_blocks_in_a_box_are_those_that_write_into_it(plan, data):
    lo = [data.draw(st.integers(0, n - 1)) for n in plan.roi.shape]
    hi = [data.draw(st.integers(l + 1, n)) for l, n in zip(lo, plan.roi.shape, strict=True)]
    back = data.draw(st.permutations(range(len(lo))))
    flips = tuple(data.draw(st.booleans()) for _ in lo)
    shape = tuple(plan.roi.shape[back.index(a)] for a in range(len(lo)))
    turn = Turn(tuple(back), flips, shape)
    begin = tuple(data.draw(st.sampled_from((0, 5))) for _ in lo)
    blocks = Blocks(plan, layout(plan, turn, begin))
    box = turn.stored_box(Box(tuple(lo), tuple(hi))).shift(begin)
    seen = blocks.seen(box)
    assert blocks.stored(seen) == box
    found = set(itertools.product(*(blocks.along(a, seen.lo[a], seen.hi[a]) for a in range(len(lo)))))
    written = {b.index for b in plan.blocks() if not b.write.is_empty and b.write.meets(seen)}
    assert found == written


def test_the_block_in_the_middle_of_the_screen_comes_first_and_all_of_the_screen_but_no_more():
    plan = grid()
    asking, clock = demand(plan)
    at = (30.5, 20.5, 33.5)
    asking.look(Sight(at, planes=(0,)))
    asking.ask(Box((0, 0, 0), (64, 64, 64)), (1, 1, 1))
    order = following(asking, clock)
    middles = [[(l + h) / 2 for l, h in zip(plan.write_box(i).lo, plan.write_box(i).hi, strict=True)] for i in order]
    away = [dist(m, np.floor(at)) for m in middles]
    assert away == sorted(away)
    shown = {b.index for b in plan.blocks() if not b.write.is_empty and b.write.lo[0] <= at[0] < b.write.hi[0]}
    assert set(order) == shown
    assert len(order) < plan.block_count


def test_what_is_committed_is_not_computed_again():
    plan = grid()
    done = {b.index for b in plan.blocks() if b.index[0] == 0}
    asking, clock = demand(plan, done)
    asking.ask(Box((0, 0, 0), (64, 64, 64)), (1, 1, 1))
    assert not done & set(following(asking, clock))


def test_pieces_of_the_screen_say_how_far_it_reaches_once_they_come():
    """A coarse piece comes first and reaches beyond the screen."""
    plan = grid()
    asking, clock = demand(plan)
    asking.ask(Box((0, 0, 0), (64, 64, 64)), (4, 4, 4))
    clock.now += SETTLING
    assert asking.next(0) is not None  # all there is to go by
    small = Box((40, 40, 40), (56, 56, 56))
    asking.ask(small, (1, 1, 1))
    order = following(asking, clock)
    assert order
    assert all(plan.write_box(i).meets(small) for i in order)


def test_what_went_out_of_sight_is_not_computed():
    plan = grid()
    asking, clock = demand(plan)
    here, there = Box((0, 0, 0), (8, 8, 8)), Box((40, 40, 40), (48, 48, 48))
    asking.ask(here, (1, 1, 1))
    clock.now += 1
    asking.renew()  # and the viewer asks for what it shows by now
    asking.ask(there, (1, 1, 1))
    clock.now += STALE + 1
    order = following(asking, clock)
    assert order
    assert all(plan.write_box(i).meets(there) for i in order)


def test_nothing_is_chosen_before_the_first_pieces_are_all_asked_for():
    asking, clock = demand(grid())
    asking.ask(Box((0, 0, 0), (8, 8, 8)), (1, 1, 1))
    assert asking.next(0) is None
    clock.now += SETTLING
    assert asking.next(0) is not None


def test_a_volume_of_a_million_blocks_costs_nothing():
    plan = grid((4000, 4000, 4000), 8, (5, 5, 5))
    assert plan.block_count > 7_000_000
    asking, clock = demand(plan)
    asking.look(Sight((2000.0, 2000.0, 2000.0), (0, 1, 2)))
    asking.ask(Box((0, 0, 0), (4000, 4000, 4000)), (64, 64, 64))
    order = following(asking, clock, 3)
    assert all(max(abs(l - 2000) for l in plan.write_box(i).lo) < 60 for i in order)


@pytest.mark.parametrize("planes", [(), (0,), (2,)])
def test_a_plane_of_the_output_is_that_plane_of_the_plan(planes):
    plan = grid((64, 48, 32))
    turn = Turn((2, 0, 1), (False, True, False), (48, 32, 64))
    blocks = Blocks(plan, layout(plan, turn))
    sight = blocks.sight(Sight((10.5, 11.5, 12.5), planes))
    assert sight.at == (12.0, 48 - 1 - 10.0, 11.0)
    assert sight.planes == tuple(turn.order.index(p) for p in planes)
