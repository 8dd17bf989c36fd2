"""A station: one worker's part, without a cluster around it."""

from __future__ import annotations

import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from support.stations import work
from support.volumes import fake_model, make_volume, result_of
from support.waiting import PATIENCE, wait_until
from unet_engine import api
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError, ClusterError, DataError, PlanError
from unet_engine.execution.dask import station
from unet_engine.execution.dask.station import Station
from unet_engine.plan.bundles import bundles
from unet_engine.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings


@pytest.fixture
def volume(tmp_path):
    voxels = np.random.default_rng(5).normal(size=(26, 30, 34)).astype(np.float32)
    return make_volume(tmp_path / "scan.zarr", voxels)


def prepared(tmp_path, volume, **options):
    """A job with its output made, of a network that takes two windows at once."""
    options = {
        "model": fake_model(tmp_path),
        "out": str(tmp_path / "out.zarr"),
        "output": "logits",
        "threads": 2,
        **options,
    }
    ready = prepare.prepare(survey(Settings.of(input=volume, **options)))
    ready.network.close()
    api._open_output(ready, there=False).header.begin()
    return ready.job


@pytest.mark.parametrize("length", [1, 2, 5])
def test_same_bytes_as_the_local_executor_and_every_window_once(tmp_path, volume, length):
    job = prepared(tmp_path, volume)
    counted = work(job, length)
    local = api.run(volume, model=str(job.model.path), out=str(tmp_path / "local.zarr"), output="logits")
    assert counted.inferred == job.plan.window_count == local.windows_inferred
    assert counted.blocks == job.plan.block_count
    assert (counted.halo_bytes > 0) == (job.plan.block_count > 1)
    assert result_of(job.out).tobytes() == result_of(local.out).tobytes()


def test_a_commit_can_be_repeated(tmp_path, volume):
    """A worker that is thought lost may still commit, and its bundle be committed again from the same sums."""
    job = prepared(tmp_path, volume)
    here = Station(job, "here", 60, pytest.fail)
    bundle = next(iter(bundles(job.plan, lambda _: True, 3)))
    sums = pickle.loads(pickle.dumps(here.predict(bundle)))
    before = [part.core.copy() for part in sums.parts]
    for _ in range(2):
        here.commit(sums, [])
        assert all((part.core == b).all() for part, b in zip(sums.parts, before, strict=True))
    once = result_of(job.out)
    here.commit(sums, [])
    here.close()
    assert once.any()
    assert result_of(job.out).tobytes() == once.tobytes()


def test_at_most_two_blocks_are_held_raw(tmp_path, volume, monkeypatch):
    job = prepared(tmp_path, volume, model=fake_model(tmp_path, latency_ms=2))
    here = Station(job, "here", 60, pytest.fail)
    held, most, read, predict = [0], [0], here.worker.read, here.worker.predict

    def counted_read(task):
        held[0] += 1
        most[0] = max(most[0], held[0])
        return read(task)

    def counted_predict(blocks):
        for done in predict(blocks):
            held[0] -= 1
            yield done

    monkeypatch.setattr(here.worker, "read", counted_read)
    monkeypatch.setattr(here.worker, "predict", counted_predict)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(here.predict, bundles(job.plan, lambda _: True, 2)))
    here.close()
    assert most[0] == station.READ_AHEAD


def test_out_of_memory_is_tried_once_with_half_the_windows(tmp_path, volume):
    """The same bytes as with enough memory; then the block and the settings to change."""
    job = prepared(tmp_path, volume)
    enough = replace(job, model=replace(job.model, path=_model(tmp_path, "two", out_of_memory_above=2)))
    enough = replace(enough, setup=replace(enough.setup, model=enough.model, threads=4))
    assert work(enough, 2).inferred >= job.plan.window_count
    local = api.run(volume, model=str(job.model.path), out=str(tmp_path / "local.zarr"), output="logits")
    assert result_of(job.out).tobytes() == result_of(local.out).tobytes()
    short = replace(
        enough,
        setup=replace(enough.setup, model=replace(job.model, path=_model(tmp_path, "one", out_of_memory_above=1))),
    )
    with pytest.raises(PlanError, match=r"block \(\d.*2 window.*after one try with fewer.*--window"):
        work(short, 2)
    single = replace(short, setup=replace(short.setup, threads=1))
    assert work(single, 2).inferred == job.plan.window_count


def _model(tmp_path, name, **behaviour):
    return Path(fake_model(tmp_path, name=name, **behaviour))


def test_errors_of_network_and_data_reach_every_caller_and_name_the_block(tmp_path, volume):
    job = prepared(tmp_path, volume)
    failing = replace(job.model, path=_model(tmp_path, "failing", fail_at=40))
    with pytest.raises(BackendError, match=r"window 40.*block \(\d, \d, \d\)"):
        work(replace(job, model=failing, setup=replace(job.setup, model=failing)), 2)
    voxels = np.zeros((26, 30, 34), np.float32)
    voxels[20, 7, 30] = np.nan
    broken = make_volume(tmp_path / "nan.zarr", voxels)
    with pytest.raises(DataError, match=r"block \(\d, \d, \d\) .*z=20 y=7 x=30"):
        work(replace(job, volume=broken), 2)


def test_a_network_that_hangs_is_noticed(tmp_path, volume):
    told = []
    job = prepared(tmp_path, volume)
    model = replace(job.model, path=_model(tmp_path, "hanging", hang_once=tmp_path / "hung"))
    here = Station(replace(job, model=model, setup=replace(job.setup, model=model)), "here", 0.5, told.append)
    begun = time.monotonic()
    caller = threading.Thread(target=here.predict, args=(next(iter(bundles(job.plan, lambda _: True, 1))),))
    caller.start()
    try:
        wait_until(lambda: told)
        assert time.monotonic() - begun >= 0.5
        assert "device" in told[0]
    finally:
        (tmp_path / "hung").write_text("go on")  # or Python would wait for its thread at the end
        caller.join()
        here.close()


class Clock:
    """A station's, which goes on by one with each window; the watch looks as often."""

    def __init__(self, monkeypatch, limit):
        self.now, self.limit, self.overdue = 0, limit, []
        watches, init, start = [], station._Watch.__init__, FakeBackend.start

        def starting(network, slot):
            self.now += 1
            self.overdue += [watch.overdue() for watch in watches]
            start(network, slot)

        monkeypatch.setattr(station, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(
            station._Watch, "__init__", lambda watch, *given: (watches.append(watch), init(watch, *given))[1]
        )
        monkeypatch.setattr(FakeBackend, "start", starting)


def test_a_slow_but_living_network_is_not_taken_for_hung(tmp_path, volume, monkeypatch):
    """The limit is for one block, however many wait. By a clock that goes on with the windows alone."""
    job = prepared(tmp_path, volume)
    clock = Clock(monkeypatch, limit=math.prod(job.plan.block) + job.setup.threads)
    work(job, 3, hung=clock.overdue.append, limit=clock.limit)
    assert clock.now > 2 * clock.limit
    assert not [what for what in clock.overdue if what and "device" in what]


def test_closing_lets_everybody_who_waits_go(tmp_path, volume):
    job = prepared(tmp_path, volume)
    model = replace(job.model, path=_model(tmp_path, "slow", latency_ms=5))
    here = Station(replace(job, model=model, setup=replace(job.setup, model=model)), "here", 60, pytest.fail)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(here.predict, bundle) for bundle in bundles(job.plan, lambda _: True, 1)]
        calls[0].result()
        here.close()
        errors = [call.exception(timeout=PATIENCE) for call in calls]
    assert any(isinstance(error, ClusterError) for error in errors)
    assert all(error is None or isinstance(error, ClusterError) for error in errors)
