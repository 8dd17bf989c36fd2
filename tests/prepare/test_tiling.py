"""``--tiling``: windows spread evenly, named by hand or chosen by proof."""

from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of


@pytest.fixture
def plain(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 26, 30)).astype(np.float32)
    return make_volume(tmp_path / "scan.zarr", voxels), fake_model(tmp_path, activation="sigmoid")


# --- named by hand ---


def test_a_named_tiling_is_planned_as_it_says_and_is_part_of_the_identity(plain):
    plan = unet_engine.make_plan(plain[0], model=plain[1], tiling="8,12,16:4,4,4:crop")
    assert [[axis.start(k) for k in range(axis.count)] for axis in plan.axes] == [
        [0, 4, 8, 12], [0, 8, 14], [0, 8, 14],
    ]  # fmt: skip
    assert plan.identity["window"] == [8, 12, 16]
    assert plan.identity["shared"] == [4, 4, 4]
    others = [
        unet_engine.make_plan(plain[0], model=plain[1], **options).digest
        for options in ({}, {"tiling": "8,12,16:3,4,4:crop"}, {"tiling": "8,12,16:4,4,4:gaussian"})
    ]
    assert len({plan.digest, *others}) == 4


def test_parts_and_regions_of_a_named_tiling_give_the_bytes_of_the_whole(plain, tmp_path):
    options = {"model": plain[1], "tiling": "8,12,16:3,5,4:gaussian", "output": "logits"}
    whole = result_of(unet_engine.run(plain[0], out=str(tmp_path / "whole.zarr"), **options).out)
    region = unet_engine.run(plain[0], out=str(tmp_path / "roi.zarr"), roi="3:17,2:20,9:30", **options)
    np.testing.assert_array_equal(result_of(region.out), whole[..., 3:17, 2:20, 9:30])
    for part in ("2/3", "1/3", "3/3"):
        unet_engine.run(plain[0], out=str(tmp_path / "parts.zarr"), part=part, **options)
    np.testing.assert_array_equal(result_of(str(tmp_path / "parts.zarr")), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiling", "8,8,8"], "give window, voxels shared and blend"),
        (["--tiling", "8,8,8:2,2:crop"], "3 sizes and 2 that are shared"),
        (["--tiling", "8,8,8:8,2,2:crop"], "let them share less"),
        (["--tiling", "8,8,8:2,2,2:monai"], "give window, voxels shared and blend"),
        (["--tiling", "9,8,8:2,2,2:crop"], "takes 4 + k*4 voxels along z, not 9"),
        (["--tiling", "8,8,8:2,2,2:crop", "--overlap", "0.25"], "leave out --window, --overlap and --blend"),
        (["--tiling", "8,8,8:2,2,2:crop", "--window", "8,8,8"], "leave out --window, --overlap and --blend"),
        (["--tiling", "8,8,8:2,2,2:crop", "--blend", "crop"], "leave out --window, --overlap and --blend"),
    ],
)
def test_tilings_that_make_no_sense(plain, options, message):
    said = cli("run", "--in", plain[0], "--model", plain[1], "--out", "no.zarr", *options)
    assert said.code in (2, 5)
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert message in said.error
    assert not Path("no.zarr").exists()


def test_windows_that_lose_voxels_cannot_share_them(tmp_path):
    model = fake_model(tmp_path, margin=[1, 1, 1], activation="sigmoid")
    volume = make_volume(tmp_path / "v.zarr", np.ones((9, 9, 20), np.uint8))
    said = cli("plan", "--in", volume, "--model", model, "--tiling", "8,8,8:2,2,6:crop")
    assert said.code == 2
    assert "gives 6 voxels along x of windows of 8" in said.error
