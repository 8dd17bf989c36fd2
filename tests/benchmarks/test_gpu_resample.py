"""Volumes on a finer grid than the network's by clocks, and the part of `gpu_check.py` about their kernel at toy size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from support.paths import BENCHMARKS, DOCS


@pytest.fixture
def resample(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_resample

    return gpu_resample


def test_the_table_of_the_page_is_that_of_the_command(resample: Any) -> None:
    assert resample.table() in (DOCS / "gpu.md").read_text()


def test_a_kernel_keeps_the_network_busy_where_the_threads_that_read_do_not(resample: Any) -> None:
    assert resample.share(3, 4, 3, before=True) < 0.5
    assert 0.9 < resample.share(3, 4, 3, before=False) < 1


def test_loads_and_bytes_are_those_of_the_passes(resample: Any) -> None:
    """Of 28 taps along each axis, a pass over four times the voxels, one over twice, one over all; eight voxels of two
    bytes go over for one of four."""
    costs = resample.GridCosts()
    assert resample.feed(1, 3, costs, before=False).made == pytest.approx(28 * (4 + 2 + 1) / costs.loads)
    assert resample.feed(2, 1, costs, before=False).sent == 2 * 8 * 2
    assert resample.feed(2, 1, costs, before=True).sent == 2 * 4


def test_the_kernel_is_compared_and_measured_at_toy_size(resample: Any) -> None:
    rows = dict(resample.resample(SimpleNamespace(quick=False, simulate=True)))
    assert rows["voxels of a scan on a coarser grid"] == "the host's bits"
    assert rows["cubic: share of the copy's bandwidth"] > 0
    assert len(rows) == 2 + 2 * 2


def test_every_pass_over_all_kernels_has_this_one(resample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What compute-sanitizer watches."""
    import gpu_kernels

    monkeypatch.setattr(resample, "same", lambda _, order: order != 3)
    assert gpu_kernels.all_once(resample.open_device("simulated")) == ["resample, order 3"]


def test_every_part_has_a_time_and_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check
    import gpu_needs
    import gpu_parts

    assert set(gpu_parts.PARTS) == set(gpu_needs.PARTS) == {*gpu_check.BUDGETS, *gpu_check.FURTHER}
