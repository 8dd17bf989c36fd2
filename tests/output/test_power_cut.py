"""Whatever a power cut leaves of an output, a resume gives the bytes of an undisturbed run.

On a disk of our own that tells what it was told to keep, and when: see `support.recording_disk`.
"""

import random
import shutil

import numpy as np
import pytest

import unet_engine
from support.command_line import command
from support.outputs import chunks
from support.recording_disk import Cut, read_log, recording_disk
from support.volumes import fake_model, make_volume
from unet_engine.errors import UnetEngineError

SHAPE = (20, 36, 37)
OPTIONS = {"output": "logits", "dtype": "float32"}
FLAGS = [f for key, value in OPTIONS.items() for f in (f"--{key}", value)]
CUTS = 200


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power")
    image = np.random.default_rng(2).integers(1, 255, SHAPE, np.uint8)
    image[:, :, 18:] = 0
    volume = make_volume(folder / "scan.zarr", image)
    model = fake_model(folder, empty=[0.0])
    return volume, model, chunks(unet_engine.run(volume, model=model, out=str(folder / "whole.zarr"), **OPTIONS).out)


def recorded(case, folder, *runs):
    """What a disk is told in `runs`, each a list of further options, over one output on it."""
    mount, log = folder / "disk", folder / "log"
    mount.mkdir()
    try:
        with recording_disk(mount, log):
            for options in runs:
                said = command(
                    "run", "--in", case[0], "--model", case[1], "--out", mount / "out.zarr", *FLAGS, *options
                )
                assert said.code in (0, 6), said.err
    except OSError as error:
        pytest.skip(f"a file system of our own cannot be mounted here: {error}")
    return read_log(log)


def resumed(case, log, seed, folder):
    """Whether a resume after a cut gives the right bytes; what it says if it does not end well."""
    chance = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    Cut(log, chance.randrange(len(log) + 1), chance).build(folder)
    try:
        done = unet_engine.run(case[0], model=case[1], out=str(folder / "out.zarr"), resume=True, **OPTIONS)
    except UnetEngineError as error:
        return str(error)
    return done.complete and chunks(folder / "out.zarr") == case[2]


@pytest.mark.slow
def test_a_resume_after_any_power_cut_gives_the_bytes_of_an_undisturbed_run(tmp_path, case):
    log = recorded(case, tmp_path, [])
    assert sum(what == "sync" for what, *_ in log) > 10
    wrong = {seed: said for seed in range(CUTS) if (said := resumed(case, log, seed, tmp_path / "left")) is not True}
    assert not wrong


@pytest.mark.slow
def test_without_waiting_for_the_disk_cuts_do_harm(tmp_path, case):
    """What the test above shows is due to the flushes: without them it fails."""
    log = recorded(case, tmp_path, ["--durable", "no"])
    assert not any(what == "sync" for what, *_ in log)
    assert any(resumed(case, log, seed, tmp_path / "left") is not True for seed in range(CUTS))


def test_what_was_committed_is_kept_and_nothing_is_done_again(tmp_path, case):
    """Of a run that is cut right after its end, everything; before it says so, at least the marked blocks."""
    log = recorded(case, tmp_path, [])
    for seed in range(5):
        chance = random.Random(seed)
        Cut(log, len(log), chance).build(tmp_path / f"{seed}")
        out = tmp_path / f"{seed}" / "out.zarr"
        assert chunks(out) == case[2]
        done = unet_engine.run(case[0], model=case[1], out=str(out), resume=True, **OPTIONS)
        assert (done.windows_inferred, done.blocks_written) == (0, 0)


@pytest.mark.slow
def test_an_output_that_is_replaced_is_never_half_of_each(tmp_path, case):
    log = recorded(case, tmp_path, [], ["--overwrite"])
    wrong = {seed: said for seed in range(40) if (said := resumed(case, log, seed, tmp_path / "left")) is not True}
    assert not wrong
