"""Arrays whose memory is used again: never two at once in the same memory."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.pipeline import recycling
from unet_engine.pipeline.recycling import Recycler

SMALLEST = 2**16
LARGE = SMALLEST // 4
"""Float32 elements of the smallest array whose memory is kept here."""


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recycling, "SMALLEST", SMALLEST)
        yield


def _span(array: np.ndarray) -> tuple[int, int]:
    return array.ctypes.data, array.ctypes.data + array.nbytes


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    recycler = Recycler()
    first = recycler.zeros((2, LARGE))
    place, view = _span(first), first[1, 5:]
    del first
    second = recycler.empty((2, LARGE))
    assert _span(second) != place
    del view
    third = recycler.empty((LARGE, 2))
    assert _span(third) == place


def test_zeros_are_zero_in_used_memory_too() -> None:
    recycler = Recycler()
    used = recycler.empty((LARGE,))
    place = _span(used)
    used.fill(np.nan)
    del used
    zeros = recycler.zeros((LARGE,))
    assert _span(zeros) == place
    assert not zeros.any()


def test_a_smaller_array_takes_the_memory_too_and_a_larger_one_replaces_it() -> None:
    recycler = Recycler()
    large = recycler.empty((4 * LARGE,))
    place = large.ctypes.data
    del large
    small = recycler.empty((LARGE,))
    assert small.ctypes.data == place
    del small
    assert recycler.kept == 4 * SMALLEST
    larger = recycler.empty((5 * LARGE,))
    assert recycler.kept == 0
    del larger
    assert recycler.kept == 5 * SMALLEST


def test_small_arrays_are_left_to_numpy() -> None:
    recycler = Recycler()
    recycler.zeros((10,))
    assert recycler.kept == 0


def test_a_small_array_takes_what_is_kept_so_that_nothing_comes_on_top_of_it() -> None:
    recycler = Recycler()
    large = recycler.empty((LARGE,))
    place = large.ctypes.data
    del large
    small = recycler.zeros((10,))
    assert small.ctypes.data == place
    assert recycler.kept == 0
    del small
    assert recycler.kept == SMALLEST


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(0, 9)), max_size=60))
def test_arrays_in_use_never_share_memory_and_keep_what_is_in_them(steps: list[tuple[bool, int, int]]) -> None:
    recycler, held, most, largest = Recycler(), [], 0, 0
    for turn, (takes, size, which) in enumerate(steps):
        if takes or not held:
            held.append((turn, recycler.empty((size, LARGE))))
            held[-1][1][:, ::997] = turn
            most, largest = max(most, len(held)), max(largest, held[-1][1].nbytes)
        else:
            del held[which % len(held)]
        spans = sorted(_span(array) for _, array in held)
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
        assert all((array[:, ::997] == mark).all() for mark, array in held)
        assert recycler.kept <= (most - len(held)) * largest


@pytest.mark.parametrize("threads", [4])
def test_threads_take_and_drop_at_once(threads: int) -> None:
    recycler, wrong = Recycler(), []

    def work(mark: int) -> None:
        for turn in range(50):
            array = recycler.empty((1 + turn % 3, LARGE))
            array.fill(mark)
            if not (array == mark).all():
                wrong.append((mark, turn))

    running = [threading.Thread(target=work, args=(mark,)) for mark in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong
    assert recycler.kept <= 2 * threads * 3 * SMALLEST  # each holds the last one while it takes the next
