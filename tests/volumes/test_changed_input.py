"""An input that is rewritten while it is read, or between a run and its resume: noticed by the times that a disk keeps,
told, and an error under --strict."""

import json
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.outputs import chunks
from support.volumes import fake_model, make_volume
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError, InputError
from unet_engine.volumes.witness import changed_since

SHAPE = (24, 24, 40)
OPTIONS = {"output": "logits", "dtype": "float32", "threads": 1}
IMAGE = np.random.default_rng(5).integers(1, 255, SHAPE, np.uint8)
LAST = Path("c", "2", "2", "4")


@pytest.fixture
def case(tmp_path):
    """A volume that was written some time ago, and a model."""
    volume = make_volume(tmp_path / "scan.zarr", IMAGE)
    time.sleep(0.02)  # times of files are those of the last tick
    return volume, fake_model(tmp_path), str(tmp_path / "out.zarr")


def rewritten(place):
    place.write_bytes(place.read_bytes())


def replaced_by_an_older_file(place):
    """As archives and rsync do: with the time of modification of the original."""
    other = place.with_name("other")
    shutil.copy(place, other)
    os.utime(other, (1, 1))
    other.replace(place)


def taken_away(place):
    place.unlink()


@pytest.mark.parametrize("change", [rewritten, replaced_by_an_older_file, taken_away])
def test_a_chunk_that_is_changed_meanwhile_is_told(case, meanwhile, change):
    volume, model, out = case
    meanwhile(10, lambda: change(Path(volume, LAST)))
    result = unet_engine.run(volume, model=model, out=out, **OPTIONS)
    assert len(result.notes) == 1
    assert f"chunk {LAST} of {volume}" in result.notes[0]
    header = json.loads(Path(out, "zarr.json").read_text())["attributes"]["unet_engine"]
    assert header["summary"]["notes"] == list(result.notes)


def test_of_what_is_held_it_is_told_that_all_of_it_is_from_before(case, meanwhile, monkeypatch):
    volume, model, out = case
    before = chunks(unet_engine.run(volume, model=model, out=out, **OPTIONS).out)
    meanwhile(10, lambda: taken_away(Path(volume, LAST)))
    held = unet_engine.run(volume, model=model, out=out, overwrite=True, **OPTIONS)
    assert chunks(out) == before
    assert "all of which had been read before that" in held.notes[0]
    monkeypatch.setattr("unet_engine.volumes.zarr_volume.ZarrVolume.hold", lambda self, most: None)
    shutil.rmtree(volume)
    make_volume(volume, IMAGE)
    time.sleep(0.02)
    meanwhile(10, lambda: taken_away(Path(volume, LAST)))
    by_block = unet_engine.run(volume, model=model, out=out, overwrite=True, **OPTIONS)
    assert chunks(out) != before
    assert "all of which" not in by_block.notes[0]


@pytest.mark.parametrize("change", [rewritten, replaced_by_an_older_file, taken_away])
def test_under_strict_it_is_an_error(case, meanwhile, change):
    volume, model, out = case
    meanwhile(10, lambda: change(Path(volume, LAST)))
    said = cli("run", "--in", volume, "--model", model, "--out", out, "--strict", "--threads", "1")
    assert said.code == InputError.exit_code
    assert f"chunk {LAST}" in said.error
    assert "--overwrite" in said.error


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_is_said_where_nothing_was_changed(case, strict):
    volume, model, out = case
    assert unet_engine.run(volume, model=model, out=out, strict=strict, **OPTIONS).notes == ()


def test_a_mask_is_watched_too(tmp_path, case, meanwhile):
    volume, _, out = case
    mask = make_volume(tmp_path / "mask.zarr", np.ones(SHAPE, np.uint8))
    time.sleep(0.02)
    meanwhile(10, lambda: rewritten(Path(mask, LAST)))
    model = fake_model(tmp_path, name="masked", empty=[0.0])
    assert "mask.zarr" in unet_engine.run(volume, model=model, mask=mask, out=out, **OPTIONS).notes[0]


def test_an_array_that_grows_meanwhile_is_told(case, meanwhile):
    volume, model, out = case
    place = Path(volume, "zarr.json")
    meanwhile(10, lambda: place.write_text(json.dumps({**json.loads(place.read_text()), "shape": [48, 24, 40]})))
    assert "the shape of" in unet_engine.run(volume, model=model, out=out, **OPTIONS).notes[0]


def failing(monkeypatch, at):
    """The network fails at window number `at`."""
    windows, start = [], FakeBackend.start

    def starting(self, slot):
        windows.append(slot)
        if len(windows) == at:
            raise BackendError("enough")
        start(self, slot)

    monkeypatch.setattr(FakeBackend, "start", starting)


def test_what_is_changed_between_a_run_and_its_resume_is_told(case, monkeypatch):
    volume, model, out = case
    with monkeypatch.context() as patch:
        failing(patch, 150)
        with pytest.raises(BackendError):
            unet_engine.run(volume, model=model, out=out, **OPTIONS)
    rewritten(Path(volume, LAST))
    result = unet_engine.run(volume, model=model, out=out, resume=True, **OPTIONS)
    assert f"chunk {LAST}" in result.notes[-1]


@pytest.mark.parametrize("when", ["meanwhile", "before the resume"])
def test_a_zip_that_is_replaced_is_told(case, monkeypatch, meanwhile, when):
    folder, model, out = case
    archive, other = zipped(folder, "scan.zip"), zipped(folder, "other.zip")
    time.sleep(0.02)
    if when == "meanwhile":
        meanwhile(10, lambda: Path(other).replace(archive))
    else:
        with monkeypatch.context() as patch:
            failing(patch, 150)
            with pytest.raises(BackendError):
                unet_engine.run(archive, model=model, out=out, **OPTIONS)
        Path(other).replace(archive)
    result = unet_engine.run(archive, model=model, out=out, resume=when != "meanwhile", **OPTIONS)
    assert "scan.zip" in result.notes[-1]
    assert "changed" in result.notes[-1]


def zipped(folder, name):
    archive = Path(folder).with_name(name)
    with zipfile.ZipFile(archive, "w") as opened:
        for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
            opened.write(file, file.relative_to(folder))
    return str(archive)


def test_chunks_that_are_deleted_before_the_volume_is_leave_nothing_wrong_behind(
    case, monkeypatch, meanwhile, tmp_path
):
    """`rm -r` takes the chunks first, while the metadata are still there: what was computed meanwhile from nothing is
    computed again once the volume is back."""
    volume, model, out = case
    whole = chunks(unet_engine.run(volume, model=model, out=str(tmp_path / "whole.zarr"), **OPTIONS).out)
    away = tmp_path / "away"
    with monkeypatch.context() as patch:
        windows, start = [], FakeBackend.start

        def starting(self, slot):
            windows.append(slot)
            if len(windows) == 10:
                Path(volume, "c").rename(away)
            if len(windows) == 200:
                Path(volume, "zarr.json").rename(tmp_path / "zarr.json")
            start(self, slot)

        patch.setattr(FakeBackend, "start", starting)
        with pytest.raises(InputError, match="is gone"):
            unet_engine.run(volume, model=model, out=out, **OPTIONS)
    away.rename(Path(volume, "c"))
    (tmp_path / "zarr.json").rename(Path(volume, "zarr.json"))
    result = unet_engine.run(volume, model=model, out=out, resume=True, **OPTIONS)
    assert chunks(out) == whole
    assert any("computed again" in note for note in result.notes)


def test_times_to_come_are_nobodys(tmp_path):
    place = tmp_path / "0"
    place.write_bytes(b"x")
    at = place.stat().st_ctime
    assert changed_since(str(tmp_path), ["0"], at - 1) == "0"
    assert changed_since(str(tmp_path), ["0"], at) is None
    os.utime(tmp_path, (at + 1000, at + 1000))
    assert changed_since(str(tmp_path), ["1", "a/b/2"], at - 1) is None
    os.utime(tmp_path, (at, at))
    assert changed_since(str(tmp_path), ["a/b/2"], at - 1) == "a/b/2"
