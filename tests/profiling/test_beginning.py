"""How long each part of the way to the first window took."""

import json
import subprocess
import time

import pytest

import unet_engine
from support.command_line import COMMAND
from support.volumes import fake_model
from unet_engine.profiling import beginning
from unet_engine.profiling.beginning import ALL, COMPILING, IMPORTS, OUTPUT, PLANNING, RUNNING, SAMPLES, SURVEY, WARMING


@pytest.fixture(autouse=True)
def _begun_long_ago(monkeypatch):
    """A command of an earlier test that came to no run is not the beginning of this one."""
    monkeypatch.setattr(beginning, "_PROCESS", [])


def test_a_run_tells_the_parts_and_their_sum(tmp_path, ramp):
    begun = time.perf_counter()
    options = {"model": fake_model(tmp_path), "out": str(tmp_path / "o.zarr")}
    result = unet_engine.run(ramp[1], **options)
    took, start = time.perf_counter() - begun, result.start
    assert {SURVEY, SAMPLES, COMPILING, WARMING, PLANNING, OUTPUT, ALL} <= set(start)
    assert IMPORTS not in start
    parts = {part: seconds for part, seconds in start.items() if part not in (ALL, RUNNING)}
    assert sum(parts.values()) == pytest.approx(start[RUNNING], abs=0.01)
    assert start[RUNNING] <= took
    assert start[ALL] == start[RUNNING], "the identity network is warmed up with nothing of the run"
    again = unet_engine.run(ramp[1], **options, resume=True)
    assert ALL not in again.start  # nothing was inferred


def test_the_command_line_counts_from_the_start_of_its_process(tmp_path, ramp):
    command = [*COMMAND, "run", "--in", ramp[1], "--model", fake_model(tmp_path), "--out", "o.zarr", "--json"]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    start = json.loads(done.stdout.splitlines()[-1])["start"]
    assert 0 < start[IMPORTS] < start[ALL] < time.perf_counter() - begun + 0.02  # ticks of the system's clock


def test_only_the_first_run_of_a_process_began_with_it(monkeypatch):
    monkeypatch.setattr(beginning, "_age", lambda: 5.0)
    monkeypatch.setattr(beginning.time, "perf_counter", lambda: 7.0)
    beginning.of_this_process()
    first, second = beginning.Beginning(), beginning.Beginning()
    assert first.facts(None)[IMPORTS] == 5.0
    assert second.facts(None) == {}


def test_times_of_a_part_that_is_done_twice_are_added(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0])
    monkeypatch.setattr(beginning.time, "perf_counter", lambda: next(now))
    clock = beginning.Beginning()
    clock.done(SURVEY)
    clock.done(SAMPLES)
    clock.done(SURVEY)
    assert clock.facts(7.0) == {SURVEY: 4.0, SAMPLES: 2.0, OUTPUT: 1.0, RUNNING: 7.0, ALL: 7.0}
    assert clock.facts(7.0, ahead=5.5)[ALL] == 5.5
