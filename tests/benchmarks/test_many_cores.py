"""The share of a run on many cores that is the network, by clocks; and that the pipeline does as the clocks say."""

from dataclasses import replace

import numpy as np
import pytest

import unet_engine
from support.paths import BENCHMARKS, DOCS
from support.volumes import fake_model, make_volume, result_of
from unet_engine.pipeline import host


@pytest.fixture
def clocks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import many_cores

    return many_cores


def test_the_table_of_the_page_is_that_of_the_command(clocks):
    assert clocks.table() in (DOCS / "performance.md").read_text()


@pytest.mark.parametrize("cores", [4, 8, 16, 32, 64])
def test_the_network_has_nearly_all_of_the_time(clocks, cores):
    for case in clocks.CASES[:3]:
        assert clocks.share(cores, case, clocks.now(cores, case)) > 0.95


def test_what_was_changed_for_many_cores_is_needed_there(clocks):
    """Each by itself: slots to spare where windows differ in time, blocks under way, threads that add."""
    jittery = replace(clocks.CASES[0], jitter=0.1)
    small, many = clocks.CASES[2], clocks.CASES[3]
    for case, back in ((jittery, {"slots": 66}), (small, {"under_way": 1}), (many, {"adding": 1})):
        way = clocks.now(64, case)
        assert clocks.share(64, case, replace(way, **back)) < clocks.share(64, case, way) - 0.03
    for case in clocks.CASES:
        assert clocks.now(2, case) == clocks.before(2, case), "two cores need nothing of it"


@pytest.mark.parametrize("threads", [1, 16])
def test_a_run_keeps_all_streams_at_work_however_few_windows_a_block_has(tmp_path, monkeypatch, threads):
    """Blocks of two windows: with one of them under way, 16 threads would have four windows at most."""
    most = []
    pushed = host._Flight.push

    def push(self, *given):
        pushed(self, *given)
        most.append(sum(sum(ring.waiting) for ring in self.rings))

    monkeypatch.setattr(host._Flight, "push", push)
    monkeypatch.setattr("unet_engine.prepare.draft.default_block", lambda *_: (1, 1, 2))
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(0).integers(0, 9, (8, 24, 64), np.uint8))
    outs = [
        unet_engine.run(volume, model=fake_model(tmp_path), out=str(tmp_path / f"{n}.zarr"), threads=n).out
        for n in (threads, 2)
    ]
    assert max(most) >= threads
    np.testing.assert_array_equal(result_of(outs[0]), result_of(outs[1]))
