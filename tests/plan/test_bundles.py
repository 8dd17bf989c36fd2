"""Bundles: tasks grouped for a cluster. Pure geometry."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import make, plans
from unet_engine.plan.bundles import BUNDLES_PER_WORKER, bundle_length, bundles
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan


@given(plans(), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_bundles_hold_every_task_once_in_plan_order(plan: Plan, length: int, random: object) -> None:
    committed = {b.index for b in plan.blocks() if random.random() < 0.3}  # type: ignore[attr-defined]
    pending = lambda index: index not in committed  # noqa: E731
    found = list(bundles(plan, pending, length))
    assert [t for bundle in found for t in bundle.tasks] == [t for c in plan.columns() for t in plan.tasks(c, pending)]
    assert len({bundle.id for bundle in found}) == len(found)
    assert all(1 <= len(bundle.tasks) <= length for bundle in found)


@given(plans(), st.integers(1, 5))
@settings(max_examples=80)
def test_every_halo_reaches_its_block_from_its_own_bundle_or_one_parcel(plan: Plan, length: int) -> None:
    """What a bundle merges was sent by bundles that came before it, and nothing is sent to a bundle that never
    comes."""
    sent: dict[tuple[int, ...], set[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for bundle in bundles(plan, lambda _: True, length):
        own = {t.block.index for t in bundle.tasks if t.commits}
        arrived = sent.pop(bundle.id, set())
        within = {(t.block.index, to) for t in bundle.tasks for to, _ in t.halos if to in own}
        wanted = {
            (t.block.index, to)
            for c in plan.columns()
            if c.number == bundle.column.number
            for t in plan.tasks(c, lambda _: True)
            for to, _ in t.halos
            if to in own
        }
        assert arrived | within == wanted
        for target, blocks in bundle.targets:
            assert target > bundle.id or plan.order != tuple(range(len(plan.axes)))
            parcels = {(t.block.index, to) for t in bundle.tasks for to, _ in t.halos if to in blocks}
            sent.setdefault(target, set()).update(parcels)
    assert not sent


def test_bundle_length_follows_the_time_a_block_takes() -> None:
    axes = tuple(AxisGrid.with_overlap(640, 64, 0.5, 0, "gaussian") for _ in range(3))
    plan = make(axes, block=(2, 2, 2))
    assert bundle_length(plan, 1.0, 4) == 1
    assert bundle_length(plan, 0.03, 4) == 5
    assert bundle_length(plan, 1e-6, 1) == plan.block_range.shape[plan.order[-1]]
    assert bundle_length(plan, 1e-6, 100) == max(1, plan.block_count // (100 * BUNDLES_PER_WORKER))
    assert bundle_length(plan, 0.0, 10**6) == 1


def test_bundles_are_longer_with_more_workers_so_that_the_scheduler_keeps_up() -> None:
    axes = tuple(AxisGrid.with_overlap(6016, 64, 0.5, 0, "gaussian") for _ in range(3))
    plan = make(axes, block=(4, 4, 4))
    lengths = [bundle_length(plan, 0.0023, workers) for workers in (1, 16, 32, 64)]
    assert lengths == [7, 7, 14, 28]


def test_a_plan_of_a_million_blocks_starts_at_once(monkeypatch) -> None:
    """What is not handed out yet is not derived yet."""
    axes = tuple(AxisGrid.with_overlap(404, 8, 0.5, 0, "gaussian") for _ in range(3))
    plan = make(axes, block=(1, 1, 1))
    assert plan.block_range.size == 10**6
    looked_at: list[tuple[int, ...]] = []
    task = Plan.task
    monkeypatch.setattr(Plan, "task", lambda self, index, *rest: looked_at.append(index) or task(self, index, *rest))
    flow = bundles(plan, lambda _: True, 4)
    for _ in range(10):
        next(flow)
    assert len(looked_at) <= 4 * 10 + 1
