"""An input that goes away while it is read is told, never read as background; brought back, the run is resumed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.outputs import chunks
from support.volumes import fake_model, make_volume
from unet_engine.errors import InputError

SHAPE = (24, 24, 40)
OPTIONS = {"output": "logits", "dtype": "float32"}
IMAGE = np.random.default_rng(5).integers(1, 255, SHAPE, np.uint8)


def sparse():
    """Stored at both ends along x, and nothing between."""
    image = IMAGE.copy()
    image[:, :, 8:32] = 0
    return image


def gone(path):
    shutil.move(path, f"{path}.away")


def unmounted(path):
    gone(path)
    os.mkdir(path)  # noqa: PTH102


def without_metadata(path):
    Path(path, "zarr.json").rename(Path(path, "zarr.json.away"))


def brought_back(path):
    if Path(f"{path}.away").exists():
        shutil.rmtree(path, ignore_errors=True)
        shutil.move(f"{path}.away", path)
    else:
        Path(path, "zarr.json.away").rename(Path(path, "zarr.json"))


@pytest.mark.parametrize("lose", [gone, unmounted, without_metadata])
@pytest.mark.parametrize("empty", [None, [0.0]], ids=["every window", "empty windows skipped"])
@pytest.mark.parametrize("image", [IMAGE, sparse()], ids=["full", "sparse"])
def test_an_input_that_goes_away_is_told_and_the_run_resumed(tmp_path, meanwhile, lose, empty, image):
    volume = make_volume(tmp_path / "scan.zarr", image)
    model = fake_model(tmp_path, **({"empty": empty} if empty else {}))
    whole = chunks(unet_engine.run(volume, model=model, out=str(tmp_path / "whole.zarr"), **OPTIONS).out)
    out = str(tmp_path / "out.zarr")
    meanwhile(40, lambda: lose(volume))
    with pytest.raises(InputError, match=r"scan.zarr is gone while it was read.*--resume") as told:
        unet_engine.run(volume, model=model, out=out, **OPTIONS)
    assert "\n" not in str(told.value)
    header = Path(out, "zarr.json")  # nothing is left where nothing was committed yet
    assert not header.exists() or not json.loads(header.read_text())["attributes"]["unet_engine"]["complete"]
    brought_back(volume)
    unet_engine.run(volume, model=model, out=out, resume=True, **OPTIONS)
    assert chunks(out) == whole


def test_an_input_that_goes_away_after_its_last_block_was_read_is_told_too(tmp_path, monkeypatch):
    volume = make_volume(tmp_path / "scan.zarr", IMAGE)
    model = fake_model(tmp_path)
    from unet_engine.pipeline.worker import Worker

    commit = Worker.commit

    def last(self, task, core, halos):
        commit(self, task, core, halos)
        if self.tally.read().blocks == self.job.plan.block_count:
            gone(volume)

    monkeypatch.setattr(Worker, "commit", last)
    with pytest.raises(InputError, match="is gone"):
        unet_engine.run(volume, model=model, out=str(tmp_path / "out.zarr"), **OPTIONS)


def test_a_mask_that_goes_away_is_told(tmp_path, meanwhile):
    volume = make_volume(tmp_path / "scan.zarr", IMAGE)
    mask = make_volume(tmp_path / "mask.zarr", (sparse() > 0).astype(np.uint8))
    meanwhile(20, lambda: gone(mask))
    with pytest.raises(InputError, match=r"mask.zarr is gone"):
        unet_engine.run(
            volume, model=fake_model(tmp_path, empty=[0.0]), mask=mask, out=str(tmp_path / "out.zarr"), **OPTIONS
        )


def test_metadata_that_describe_another_array_end_the_run(tmp_path, meanwhile):
    """In one line, with the exit code of an input; attributes may be edited, and an array may grow."""
    volume = make_volume(tmp_path / "scan.zarr", IMAGE)
    place = Path(volume, "zarr.json")

    def rewrite(**changed):
        place.write_text(json.dumps({**json.loads(place.read_text()), **changed}))

    model = fake_model(tmp_path)
    for at, harmless in ((40, {"attributes": {"seen": "today"}}), (40, {"shape": [48, 24, 40]})):
        meanwhile(at, lambda harmless=harmless: rewrite(**harmless))
        unet_engine.run(volume, model=model, out=str(tmp_path / f"{next(iter(harmless))}.zarr"), **OPTIONS)
        rewrite(shape=list(SHAPE))
    for changed in ({"data_type": "int8"}, {"shape": [12, 24, 40]}):
        before = place.read_text()
        meanwhile(40, lambda changed=changed: rewrite(**changed))
        said = cli(
            "run", "--in", volume, "--model", model, "--out", tmp_path / "out.zarr", "--output", "logits", "--overwrite"
        )
        assert said.code == InputError.exit_code
        assert "was changed while it was read" in said.error
        place.write_text(before)


def test_a_disk_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    """What asks whether a chunk is there gets an error of the disk, not an answer."""
    volume = make_volume(tmp_path / "scan.zarr", IMAGE)
    model = fake_model(tmp_path, empty=[0.0])

    def failing(place):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("unet_engine.storage.stores.holds", failing)
    said = cli("run", "--in", volume, "--model", model, "--out", tmp_path / "out.zarr")
    assert said.code == 4
    assert "Input/output error" in said.error


@pytest.mark.slow
def test_workers_of_a_cluster_look_too(tmp_path):
    from support.command_line import begin
    from support.outputs import wait_for_blocks

    volume = make_volume(tmp_path / "scan.zarr", IMAGE)
    out = tmp_path / "out.zarr"
    model = fake_model(tmp_path, latency_ms=20)
    process = begin("run", "--in", volume, "--model", model, "--out", out, "--workers", "1", "--threads", "1")
    wait_for_blocks(out, process)
    gone(volume)
    said = process.communicate(timeout=120)[1].strip().splitlines()[-1]
    assert process.returncode == InputError.exit_code
    assert "scan.zarr is gone" in said
