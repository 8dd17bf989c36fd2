"""Arrays whose memory is used again: never two at once in the same memory."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.recycling import SEGMENT, SMALLEST, Recycler

LARGE = SMALLEST // 4
"""Float32 elements of the smallest array whose memory is kept."""


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


def test_zeros_are_zero_and_a_copy_is_equal_in_used_memory_too() -> None:
    recycler = Recycler()
    used = recycler.empty((LARGE,))
    place = _span(used)
    used.fill(np.nan)
    del used
    zeros = recycler.zeros((LARGE,))
    assert _span(zeros) == place
    assert not zeros.any()
    source = np.arange(2 * LARGE, dtype=np.float32).reshape(2, -1)[:, ::2]
    copy = recycler.copy(source)
    assert copy.flags.c_contiguous
    assert copy.flags.writeable
    np.testing.assert_array_equal(copy, source)


def test_small_arrays_are_left_to_numpy() -> None:
    recycler = Recycler()
    recycler.zeros((10,))
    assert recycler.held == 0


def test_gaps_side_by_side_become_one() -> None:
    recycler = Recycler()
    arrays = [recycler.empty((SEGMENT // 16,)) for _ in range(4)]
    assert recycler.held == SEGMENT
    del arrays[1:3]
    middle = recycler.empty((SEGMENT // 8,))
    assert _span(arrays[0])[1] == _span(middle)[0]
    assert _span(middle)[1] == _span(arrays[1])[0]
    assert recycler.held == SEGMENT


def test_what_holds_nothing_goes_back_before_more_is_taken() -> None:
    recycler = Recycler()
    recycler.empty((SEGMENT // 4,))
    large = recycler.empty((SEGMENT,))
    assert recycler.held == large.nbytes == 4 * SEGMENT


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 70), st.integers(0, 9)), max_size=60))
def test_arrays_in_use_never_share_memory_and_keep_what_is_in_them(steps: list[tuple[bool, int, int]]) -> None:
    recycler, held = Recycler(), []
    for turn, (takes, size, which) in enumerate(steps):
        if takes or not held:
            held.append((turn, recycler.empty((size, LARGE))))
            held[-1][1][:, ::997] = turn
        else:
            del held[which % len(held)]
        spans = sorted(_span(array) for _, array in held)
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
        assert all((array[:, ::997] == mark).all() for mark, array in held)
        assert recycler.held >= sum(array.nbytes for _, array in held)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6))
def test_the_same_sizes_over_and_over_need_no_new_memory(sizes: list[int]) -> None:
    recycler, seen = Recycler(), []
    for _ in range(6):
        arrays = [recycler.empty((size, LARGE)) for size in sizes]
        seen.append(recycler.held)
        del arrays
    assert len(set(seen)) == 1


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
    assert recycler.held <= 2 * SEGMENT
