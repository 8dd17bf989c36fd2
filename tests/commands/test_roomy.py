"""Calls that nest deep ask the system for no memory at each."""

import sys

import pytest

from unet_engine.commands.roomy import roomy


def deep(levels):
    return deep(levels - 1) if levels else 0


def faults_at(levels, count):
    """Page faults of so many calls at that depth: a piece of stack that is asked for anew has a fault at least."""
    resource = pytest.importorskip("resource")
    if levels:
        return faults_at(levels - 1, count)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(count):
        deep(3)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def test_it_returns_and_raises_what_the_call_does():
    assert roomy(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        roomy(lambda: 1 // 0)
    assert roomy(lambda: deep(200)) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults of a thread")
def test_no_depth_is_at_the_end_of_a_piece():
    count = 50
    found = [roomy(lambda levels=levels: faults_at(levels, count)) for levels in range(60, 260, 2)]
    assert max(found) < count
