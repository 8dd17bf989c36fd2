"""Outputs on a finer grid by clocks, and the part of `gpu_check.py` about their kernels at toy size."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from support.paths import BENCHMARKS, DOCS


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_grid

    return gpu_grid


def test_the_table_of_the_page_is_that_of_the_command(grid: Any) -> None:
    page = (DOCS / "gpu.md").read_text()
    assert grid.table() in page
    assert grid.what_holds() in page


@pytest.mark.parametrize(("classes", "before", "least"), [(3, 0.5, 0.95), (16, 0.1, 0.9), (104, 0.02, 0.7)])
def test_kernels_keep_the_network_busy_where_a_thread_of_the_host_does_not(
    grid: Any, classes: int, before: float, least: float
) -> None:
    assert grid.share(classes, before=True) < before
    assert least <= grid.share(classes, before=False) < 1


def test_what_costs_nothing_leaves_the_network_alone(grid: Any) -> None:
    free = grid.GridCosts(memory=1e30, wire=1e30, launch=0, lock=1e30, write=1e30, on_host=1e30, loads=1e30)
    for before in (True, False):
        assert grid.share(16, before=before, costs=free) == pytest.approx(1)
    slow = replace(free, loads=1e11)
    assert grid.share(16, before=False, order=3, costs=slow) < grid.share(16, before=False, costs=slow) < 0.8


def test_loads_are_those_of_the_passes(grid: Any) -> None:
    """Of 28 taps along each axis, passes over a quarter and a half of the voxels, and one over all."""
    plan = grid.plan_of(3)
    assert grid.loads(grid.finer(plan)) == 8
    assert grid.loads(grid.finer(plan, 3)) == 28 * (1 / 4 + 1 / 2 + 1)


def test_the_kernels_are_compared_and_measured_at_toy_size(grid: Any) -> None:
    rows = dict(grid.grid(SimpleNamespace(quick=False, simulate=True)))
    assert rows["labels and logits on a finer grid"] == "the host's bits"
    assert rows["labels, cubic, 3 classes: share of the copy's bandwidth"] > 0
    assert len(rows) == 2 + 2 * 2 * 2


def test_every_pass_over_all_kernels_has_this_one(grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compute-sanitizer watches."""
    import gpu_kernels

    assert gpu_kernels.all_once(grid.open_device("simulated")) == []
    monkeypatch.setattr(grid, "same", lambda _, order: order != 3)
    assert gpu_kernels.all_once(grid.open_device("simulated")) == ["interpolate, order 3"]
