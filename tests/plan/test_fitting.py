"""Windows spread evenly, and sizes that fit a volume's shape: as few voxels computed as any choice would."""

from __future__ import annotations

import itertools
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_engine.plan.fitting import AxisNeeds, fitted, lattice_of
from unet_engine.plan.grid import AxisGrid


@st.composite
def even(draw: st.DrawFn) -> tuple[AxisGrid, int]:
    """A grid that is spread evenly, and what its windows were asked to share."""
    window = draw(st.integers(1, 24))
    shared = draw(st.integers(0, window - 1))
    lattice = draw(st.sampled_from([1, 2, 4, 8]))
    size, blend = draw(st.integers(1, 90)), draw(st.sampled_from(["gaussian", "crop"]))
    return AxisGrid.evenly(size, window, shared, draw(st.integers(0, 3)), blend, lattice), shared


def starts(axis):
    return [axis.start(k) for k in range(axis.count)]


@given(even())
def test_even_windows_share_what_they_must_and_end_with_the_axis(drawn):
    axis, shared = drawn
    found = starts(axis)
    assert found == sorted(set(found))
    assert all(a + axis.window - b >= shared for a, b in itertools.pairwise(found))
    if axis.size >= axis.window:
        assert found[0] == 0
        assert found[-1] + axis.window == axis.size
    assert {x for k in range(axis.count) for x in range(*axis.support(k))} == set(range(axis.size))


@given(even())
def test_even_windows_begin_on_the_lattice_and_are_as_few_as_may_be(drawn):
    axis, shared = drawn
    assert all(start % axis.lattice == 0 for start in starts(axis)[:-1] if axis.size > axis.window)
    if axis.size > axis.window:
        most = (axis.window - shared) // axis.lattice * axis.lattice
        assert axis.count == 1 + -(-(axis.size - axis.window) // most), "one fewer would leave too long a distance"


@given(even())
def test_even_distances_differ_by_a_cell_of_the_lattice_at_most(drawn):
    axis, _ = drawn
    distances = [b - a for a, b in itertools.pairwise(starts(axis))]
    assert all(axis.stride <= d <= axis.longest for d in distances[:-1])
    assert all(0 < d <= axis.longest for d in distances[-1:])
    assert axis.longest - axis.stride in (0, axis.lattice)
    found = starts(axis)
    assert all(b - a >= axis.window for a, b in zip(found, found[axis.most :], strict=False))


@given(even(), st.data())
def test_what_meets_an_interval_of_an_even_grid(drawn, data):
    axis, _ = drawn
    lo = data.draw(st.integers(0, axis.size - 1))
    hi = data.draw(st.integers(lo, axis.size))
    true = [k for k in range(axis.count) if axis.support(k)[0] < hi and axis.support(k)[1] > lo and hi > lo]
    assert list(axis.meeting(lo, hi)) == true


def test_sharing_all_of_a_window_is_refused():
    with pytest.raises(ValueError, match="cannot share 8"):
        AxisGrid.evenly(20, 8, 8, 0, "crop")


# --- fitting ---


def work_of(axes, windows):
    return prod(axis.count * w for axis, w in zip(axes, windows, strict=True)) / prod(axis.size for axis in axes)


def test_work_a_voxel_of_the_stack_of_the_performance_page():
    """256×520×520: 128³ at 0.125 with a last window moved back computes 2.3 voxels for one, fitted windows 1.3."""
    shape = (256, 520, 520)
    moved = [AxisGrid.with_overlap(n, 128, 0.125, 0, "gaussian") for n in shape]
    assert work_of(moved, (128,) * 3) == pytest.approx(2.27, abs=0.01)
    found = fitted([AxisNeeds(n, 128, 16, 16, 8) for n in shape], 144**3)
    assert found.window == (136, 144, 144)
    assert found.counts == (2, 4, 4)
    assert found.work == pytest.approx(1.3, abs=0.01)


def test_windows_that_leave_threads_idle_are_not_the_cheapest():
    """One window over all computes the least, and one of two threads would watch it."""
    needs = [AxisNeeds(64, 16, 4, 16, 4), AxisNeeds(64, 16, 4, 16, 4)]
    assert fitted(needs, 64**2).counts == (1, 1)
    found = fitted(needs, 64**2, at_once=2)
    assert prod(found.counts) == 2
    assert found.work == pytest.approx(prod(found.window) * 2 / 64**2)


axis_needs = st.tuples(st.integers(1, 100), st.integers(10, 30), st.integers(0, 9))
needs = st.lists(axis_needs, min_size=2, max_size=3)


@given(needs, st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_admissible_windows_compute_less(wanted, step, margin):
    """Against every window that the model takes, one by one."""
    wanted = [AxisNeeds(*drawn, least=10, step=step, margin=margin) for drawn in wanted]
    most = 46 ** len(wanted)
    found = fitted(wanted, most)
    every = range(10, 130, step)
    best = None
    per_axis = []
    for axis in wanted:
        options = []
        for w in every:
            inner = w - 2 * margin
            if inner < min(axis.context, axis.size) or (inner <= axis.shared and inner < axis.size):
                continue
            count, at = 1, inner  # windows as far apart as may be, one after the other
            lattice = step if inner - axis.shared >= step else 1
            while at < axis.size:
                at += (inner - axis.shared) // lattice * lattice
                count += 1
            options.append((w, count))
        per_axis.append(options)
    for chosen in itertools.product(*[o[:25] for o in per_axis]):
        if prod(w for w, _ in chosen) <= most:
            total = prod(w * n for w, n in chosen)
            best = total if best is None else min(best, total)
    if best is None:
        assert found is None
        return
    assert prod(found.window) <= most
    assert found.work * prod(axis.size for axis in wanted) <= best + 1e-6
    for w, n, axis in zip(found.window, found.counts, wanted, strict=True):
        grid = AxisGrid.evenly(
            axis.size, w - 2 * margin, min(axis.shared, w - 2 * margin - 1), margin, "crop", lattice_of(step, w)
        )
        assert grid.count == n
        assert (w - 10) % step == 0


def test_what_is_not_admitted_is_not_taken():
    wanted = [AxisNeeds(n, 128, 16, 16, 8) for n in (256, 520, 400)]
    assert len(set(fitted(wanted, 160**3).window[1:])) == 2
    square = fitted(wanted, 160**3, lambda window: window[-1] == window[-2])
    assert square.window[1] == square.window[2]


def test_a_network_of_one_size_keeps_it():
    found = fitted([AxisNeeds(n, 64, 8, 64, 0) for n in (64, 100, 1000)], 64**3)
    assert found.window == (64, 64, 64)
    assert found.counts[:2] == (1, 3), "100 voxels: its poolings may be 32 wide, so the second begins at 32"
