"""The share of a run that is the network, by clocks: what the pipeline's order of work gives, and gave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from support.paths import BENCHMARKS, DOCS


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_schedule

    return gpu_schedule


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_clocks

    return gpu_clocks


@pytest.mark.slow
def test_the_table_of_the_page_is_that_of_the_command(schedule: Any) -> None:
    page = (DOCS / "gpu.md").read_text()
    assert schedule.table() in page
    assert schedule.block_table() in page
    assert schedule.reading_table() in page


@pytest.mark.parametrize(("classes", "whole", "steady"), [(3, 0.92, 0.98), (16, 0.48, 0.9), (104, 0.06, 0.17)])
def test_locking_ahead_and_streams_of_their_own_make_the_share_larger(
    schedule: Any, classes: int, whole: float, steady: float
) -> None:
    """104 classes are bound by halos through the host, whatever the order."""
    before, after = schedule.BEFORE, schedule.THROUGH_HOST
    assert schedule.share(classes, before) < schedule.share(classes, after)
    assert schedule.share(classes, schedule.STEADY_BEFORE) <= schedule.share(classes, schedule.STEADY_THROUGH_HOST) < 1
    assert schedule.share(classes, after) > whole
    assert schedule.share(classes, schedule.STEADY_THROUGH_HOST) > steady


@pytest.mark.parametrize(("classes", "least"), [(3, 0.95), (16, 0.9), (104, 0.7)])
def test_halos_that_stay_on_the_device_reach_what_is_asked(schedule: Any, classes: int, least: float) -> None:
    """Before: 0.93, 0.49 and 0.07 of the bare network."""
    assert schedule.share(classes, schedule.AFTER) >= least
    assert schedule.share(classes, schedule.THROUGH_HOST) < least
    assert schedule.share(classes, schedule.AFTER) < 1


def test_larger_blocks_gain_only_where_halos_do_not_fit(schedule: Any) -> None:
    small, large = (schedule.BLOCKS[0], schedule.BLOCKS[-1])
    much, little = schedule.Costs(), schedule.Costs(room=48 * 10**9)
    assert schedule.share(104, schedule.STEADY, little, large) > 1.3 * schedule.share(
        104, schedule.STEADY, little, small
    )
    assert schedule.share(104, schedule.STEADY, much, large) < 1.05 * schedule.share(104, schedule.STEADY, much, small)


def test_with_little_memory_some_halos_go_through_the_host(schedule: Any) -> None:
    """The less room, the less is gained; with none, it is as it was."""
    rooms = (10 * 10**9, 20 * 10**9, 141 * 10**9)
    shares = [schedule.share(104, schedule.AFTER, schedule.Costs(room=room)) for room in rooms]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 * shares[2]
    assert shares[0] >= schedule.share(104, schedule.THROUGH_HOST)


@pytest.mark.parametrize(("classes", "seen", "least"), [(3, 0.83, 0.95), (16, 0.47, 0.9), (104, 0.26, 0.7)])
def test_blocks_that_are_read_several_at_once_keep_the_network_busy(
    schedule: Any, classes: int, seen: float, least: float
) -> None:
    """One rate of reading gives what was measured with one thread and a CPU's blocks, for all three."""
    costs = replace(schedule.READING, windows_per_second=schedule.MEASURED[classes])
    one = replace(schedule.AFTER, readers=1)
    small = schedule.default_block(schedule.plan_of(classes).axes, classes)
    assert schedule.share(classes, one, costs, small) == pytest.approx(seen, abs=0.06)
    found = schedule.shares(classes, schedule.AFTER, costs)
    assert found.whole >= least
    assert found.whole <= found.middle + 0.01, "the first block's reading and the last one's writing are at the ends"
    slow = replace(costs, decode=costs.decode / 4)
    assert schedule.shares(classes, schedule.AFTER, slow).middle < 0.8, "three slow readers are not enough"
    together = replace(costs, decode_all=costs.decode)
    assert schedule.share(classes, schedule.AFTER, together) < 1.02 * schedule.share(classes, one, costs), (
        "nor too few cores"
    )


def test_a_reader_begins_once_a_block_as_far_back_is_asked_for(schedule: Any, clocks: Any) -> None:
    plan = schedule.plan_of(3)
    tasks = list(plan.tasks(next(plan.columns()), lambda _: True))[:4]
    costs = clocks.Costs(decode=clocks.decoded(tasks[0]))
    seconds = [clocks.decoded(task) / costs.decode for task in tasks]
    alone = clocks.Reading(tasks, clocks.Way(readers=1), costs)
    assert alone.there(0, 0.0) == 1
    assert alone.there(1, 1.0) == pytest.approx(1 + seconds[1]), "begun as the first was asked for"
    assert alone.there(2, 100.0) == 100
    two = clocks.Reading(tasks, clocks.Way(readers=2), costs)
    assert two.there(0, 0.0) == 1
    assert two.there(1, 1.0) == pytest.approx(max(1, seconds[1])), "read beside the first"


def test_clocks_are_those_of_a_device_that_does_one_thing_after_the_other(clocks: Any) -> None:
    streams = clocks.Clocks()
    assert streams.do("out", 2.0) == 2
    assert streams.do("out", 1.0, 0.5) == 3, "behind what was put there"
    assert streams.do("up", 1.0, 10.0) == 11, "behind what it waits for"


def test_wires_and_memory_without_cost_leave_the_network_alone(schedule: Any) -> None:
    free = schedule.Costs(memory=1e30, wire=1e30, launch=0, lock=1e30, write=1e30)
    assert schedule.share(104, schedule.AFTER, free) == pytest.approx(1)
    slow = replace(free, wire=1e9)
    assert schedule.share(104, schedule.THROUGH_HOST, slow) < 0.02
    assert schedule.share(104, schedule.THROUGH_HOST, slow) > 1.3 * schedule.share(104, schedule.BEFORE, slow), (
        "both ways at once"
    )
