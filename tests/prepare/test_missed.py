"""Bounds on what is missed: they hold, and they say more with more."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_engine.prepare.missed import (
    CONFIDENCE,
    LOOKS,
    Look,
    Region,
    evidence,
    rate,
    settled,
    tells,
    threshold_of,
    upper,
)

ERROR = 1 - CONFIDENCE


def region(*cells):
    """cells: (voxels, score)."""
    return Region(np.array([v for v, _ in cells], np.int64), np.array([s for _, s in cells], np.int64))


def test_none_of_n_is_the_rule_of_three():
    for n in (50, 1000, 3000):
        assert upper(0, n, 0.05) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-6)
        assert upper(0, n, 0.05) < 3 / n


def test_as_many_cells_are_needed_as_prove_it():
    for target in (0.3, 0.01, 0.001):
        for look in (Look(0.05, 0), *LOOKS):
            enough = look.needed(target)
            whole = int(look.misses)
            cells = [(7, 9)] * (enough - whole) + [(7, 0)] * whole
            assert rate([region(*cells[i::97]) for i in range(97)], 1, look.error).bound <= target
            assert upper(look.misses / enough, enough, look.error) <= target
            none = Look(look.error, 0).needed(target)
            assert rate([region(*[(7, 9)] * (none - 1))], 1, look.error).bound > target


def test_looks_share_what_confidence_leaves():
    assert sum(look.error for look in LOOKS) == pytest.approx(1 - CONFIDENCE)


def test_cells_of_one_region_alone_tell_nothing():
    many = [region(*[(7, 9)] * 9999)]
    assert not tells(many, LOOKS[0], 0.01)
    assert tells(many * 4, LOOKS[0], 0.01)
    assert not tells([*many, *[region()] * 9], LOOKS[0], 0.01)
    assert evidence([region()]) == 0


def test_the_bound_of_a_binomial_holds_as_often_as_it_says():
    rng, p, n = np.random.default_rng(0), 0.02, 400
    held = [upper(k / n, n, 0.05) >= p for k in rng.binomial(n, p, 300)]
    assert np.mean(held) >= 0.93


def test_counts_that_are_whole_have_the_bound_of_a_binomial_and_others_lie_between():
    def at_most(k, n, p):
        return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    for k, n in ((0, 40), (1, 40), (3, 700), (30, 31)):
        assert at_most(k, n, upper(k / n, n, 0.05)) == pytest.approx(0.05, rel=1e-6)
    bounds = [upper(k / 700, 700, 0.05) for k in np.linspace(0, 4, 21)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[1] < upper(0.5 / 700, 700, 0.05)


def test_a_few_voxels_of_a_cell_are_no_whole_cell():
    """A border's voxel would else choose the threshold, as the least of some hundred cells did."""
    full = [region(*[(512, 9)] * 300)] * 3
    few = rate([*full, region((5, 0), *[(512, 9)] * 300)], 1).bound
    one = rate([*full, region((512, 0), *[(512, 9)] * 300)], 1).bound
    none = rate([*full, region((512, 9), *[(512, 9)] * 300)], 1).bound
    assert none < few < none + 0.05 * (one - none)


def test_many_misses_are_bounded_no_lower_than_a_few_less():
    bounds = [upper(k / 100_000, 100_000, 0.05) for k in (900, 999, 1001, 2000)]
    assert bounds == sorted(bounds)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 255)), min_size=1, max_size=40), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_what_is_seen_is_below_the_bound_and_lower_thresholds_miss_less(cells, threshold):
    regions = [region(*cells[i::3]) for i in range(3)]
    found = rate(regions, threshold)
    assert found.seen == pytest.approx(sum(v for v, s in cells if s < threshold) / sum(v for v, _ in cells))
    assert found.seen <= found.bound <= 1
    assert rate(regions, max(0, threshold - 10)).seen <= found.seen


def test_cells_that_differ_in_foreground_count_as_fewer():
    even, uneven = [region(*[(10, 9)] * 100)], [region((901, 9), *[(1, 9)] * 99)]
    assert rate(even, 1).bound < 0.031
    assert rate(uneven, 1).bound > 0.9


def test_misses_in_one_region_say_less_than_misses_everywhere():
    clumped = [region(*[(10, 0)] * 8, *[(10, 9)] * 92), *[region(*[(10, 9)] * 100)] * 3]
    spread = [region(*[(10, 0)] * 2, *[(10, 9)] * 98)] * 4
    assert rate(clumped, 1).seen == rate(spread, 1).seen
    assert rate(clumped, 1).bound > rate(spread, 1).bound


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=30), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_the_threshold_is_the_largest_that_misses_no_more(cells, most):
    found = region(*cells)
    threshold, total = threshold_of([found], most), sum(v for v, _ in cells)
    assert found.missed(threshold) <= most * total
    larger = [s for _, s in cells if s > threshold]
    assert not larger or found.missed(min(larger)) > most * total


def test_without_foreground_nothing_is_known():
    assert rate([region()], 1).bound == 1
    assert threshold_of([region()], 0.1) == 0
    assert settled([region()], 0.1, 0.1, ERROR) == (1, rate([region()], 1))
    assert settled([region()], 0.1, 0.1, ERROR)[1].bound == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=60), st.floats(0.01, 0.9))
@settings(max_examples=60, deadline=None)
def test_the_largest_threshold_is_taken_up_to_which_all_are_proved(cells, target):
    regions = [region(*cells[i::4]) for i in range(4)]
    threshold, found = settled(regions, target, target / 2, ERROR)
    alone = rate(regions, threshold)
    assert (found.seen, found.cells) == (alone.seen, alone.cells)
    assert found.bound == max(alone.bound, target), "and not less, since these regions chose it"
    proved = [t for t in range(1, 22) if rate(regions, t).bound <= target and rate(regions, t).seen <= target / 2]
    unbroken = next((t for t in range(1, 22) if t not in proved), 22) - 1
    assert threshold in (unbroken, max([1, *(s for _, s in cells if 1 < s <= unbroken)]))


def test_trying_every_threshold_on_the_regions_that_prove_them_is_wrong_no_oftener_than_it_says():
    """A threshold t truly misses t of 2,000: up to 40 are right where a fiftieth may be missed."""
    rng, target, wrong, found = np.random.default_rng(1), 0.02, 0, []
    for _ in range(300):
        scores = rng.integers(0, 2000, 1500)
        threshold, rated = settled(
            [Region(np.ones(250, np.int64), s) for s in np.split(scores, 6)], target, target, ERROR
        )
        if rated.bound <= target:
            found.append(threshold)
            wrong += threshold > 40
    assert wrong / 300 <= 0.08
    assert np.median(found) > 10, "and it does find something"


def test_looking_twice_is_wrong_no_oftener_than_it_says():
    """A threshold t truly misses t of 1,000: up to 20 are right where a fiftieth may be missed. Whoever goes on until
    something is proved is wrong as seldom."""
    rng, target, wrong, looked = np.random.default_rng(2), 0.02, 0, 0
    for _ in range(150):
        regions = [Region(np.ones(50, np.int64), rng.integers(0, 40, 50)) for _ in range(40)]
        taken = 1
        for look in LOOKS:
            found = regions[: -(-look.needed(target) // 50)]
            threshold, rated = settled(found, target, target, look.error)
            if rated.bound <= target:
                taken = max(taken, threshold)
            looked += 1
        wrong += taken > 1
    assert looked == 300
    assert wrong / 150 <= 0.05 + 0.03
