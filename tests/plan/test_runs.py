"""Runs: tasks grouped for a cluster. Pure geometry."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from support.plans import make, plans
from unet_engine.plan.bundles import RUNS_PER_WORKER, run_length, runs
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.plan import Plan


@given(plans(), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_runs_hold_every_task_once_in_plan_order(plan: Plan, length: int, random: object) -> None:
    committed = {b.index for b in plan.blocks() if random.random() < 0.3}  # type: ignore[attr-defined]
    pending = lambda index: index not in committed  # noqa: E731
    found = list(runs(plan, pending, length))
    assert [t for run in found for t in run.tasks] == [t for c in plan.columns() for t in plan.tasks(c, pending)]
    assert len({run.id for run in found}) == len(found)
    assert all(1 <= len(run.tasks) <= length for run in found)


@given(plans(), st.integers(1, 5))
@settings(max_examples=80)
def test_every_halo_reaches_its_block_from_its_own_run_or_one_piece(plan: Plan, length: int) -> None:
    """What a run merges was sent by runs that came before it, and nothing is sent to a run that never comes."""
    sent: dict[tuple[int, ...], set[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for run in runs(plan, lambda _: True, length):
        own = {t.block.index for t in run.tasks if t.commits}
        arrived = sent.pop(run.id, set())
        within = {(t.block.index, to) for t in run.tasks for to, _ in t.halos if to in own}
        wanted = {
            (t.block.index, to)
            for c in plan.columns()
            if c.number == run.column.number
            for t in plan.tasks(c, lambda _: True)
            for to, _ in t.halos
            if to in own
        }
        assert arrived | within == wanted
        for target, blocks in run.targets:
            assert target > run.id or plan.order != tuple(range(len(plan.axes)))
            pieces = {(t.block.index, to) for t in run.tasks for to, _ in t.halos if to in blocks}
            sent.setdefault(target, set()).update(pieces)
    assert not sent


def test_run_length_follows_the_time_a_block_takes() -> None:
    axes = tuple(AxisGrid.with_overlap(640, 64, 0.5, 0, "gaussian") for _ in range(3))
    plan = make(axes, block=(2, 2, 2))
    assert run_length(plan, 1.0, 4) == 1
    assert run_length(plan, 0.03, 4) == 5
    assert run_length(plan, 1e-6, 1) == plan.block_range.shape[plan.order[-1]]
    assert run_length(plan, 1e-6, 100) == max(1, plan.block_count // (100 * RUNS_PER_WORKER))
    assert run_length(plan, 0.0, 10**6) == 1


def test_runs_are_longer_with_more_workers_so_that_the_scheduler_keeps_up() -> None:
    axes = tuple(AxisGrid.with_overlap(6016, 64, 0.5, 0, "gaussian") for _ in range(3))
    plan = make(axes, block=(4, 4, 4))
    lengths = [run_length(plan, 0.0023, workers) for workers in (1, 16, 32, 64)]
    assert lengths == [7, 7, 14, 28]


def test_a_plan_of_a_million_blocks_starts_at_once(monkeypatch) -> None:
    """What is not handed out yet is not derived yet."""
    axes = tuple(AxisGrid.with_overlap(404, 8, 0.5, 0, "gaussian") for _ in range(3))
    plan = make(axes, block=(1, 1, 1))
    assert plan.block_range.size == 10**6
    looked_at: list[tuple[int, ...]] = []
    task = Plan.task
    monkeypatch.setattr(Plan, "task", lambda self, index, *rest: looked_at.append(index) or task(self, index, *rest))
    flow = runs(plan, lambda _: True, 4)
    for _ in range(10):
        next(flow)
    assert len(looked_at) <= 4 * 10 + 1
