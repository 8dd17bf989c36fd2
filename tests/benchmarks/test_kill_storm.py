"""A little of the storm of kills: `benchmarks/kill_storm.py` is the whole."""

import importlib

import pytest

from support.paths import BENCHMARKS


@pytest.fixture
def storm(monkeypatch):
    from support.command_line import environment

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kill_storm")


@pytest.mark.slow
def test_a_few_kills_change_no_byte_and_leave_nothing(storm, tmp_path):
    found = storm.storm(tmp_path, 6, 2, ["run", "parts"])
    assert found["wrong"] == []
    assert found["kills"] >= 6


@pytest.mark.slow
def test_a_wrong_chunk_and_a_file_too_many_are_seen(storm, tmp_path, monkeypatch):
    """The storm itself is tried: what it looks for, it finds."""
    scene = storm.Scene(tmp_path, __import__("random").Random(1))
    scene.build()
    monkeypatch.setattr(storm, "killed", lambda *_: False)
    chunk = next((tmp_path / "whole.zarr/0/c").rglob("0"))
    name = next(n for n in scene.whole)
    scene.whole[name] = b"other"
    assert storm.torn(tmp_path / "whole.zarr", scene.whole) == [name]
    assert storm.storm_round(scene, 0, "run", 3) == 0
    assert "1 chunks differ" in scene.wrong[0]
    assert chunk.exists()
