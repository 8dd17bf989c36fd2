"""Alpha channels of images: told, and never one of a network's channels without a word."""

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model
from unet_engine.volumes.formats import open_volume


@pytest.mark.parametrize("said", ["omero", "array", "nothing"])
def test_alpha_of_a_zarr_is_told_by_what_its_channels_are_called(tmp_path, said):
    names = ["red", "green", "blue", "Alpha"]
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
    image = np.random.default_rng(0).integers(0, 255, (4, 32, 40), np.uint8)
    array = group.create_array("0", data=image)
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    if said == "omero":
        group.attrs["omero"] = {"channels": [{"label": name} for name in names]}
    if said == "array":
        array.attrs["color_interp"] = names
    path = str(tmp_path / "image.zarr")
    notes = [note for note in open_volume(path).notes if "is alpha" in note]
    assert [note.split(":")[1][:17] for note in notes] == ([] if said == "nothing" else [" channel 3 is alp"])
    colours = fake_model(tmp_path, name="rgb", axes="yx", channels_in=3)
    refused = cli("run", "--in", path, "--model", colours)
    assert (refused.code, "leave it out with --input-channels 0,1,2;" in refused.error) == (3, True)
    assert cli("run", "--in", path, "--input-channels", "0,1,2", "--model", colours).code == 0


@pytest.mark.parametrize(("kind", "said"), [("unassalpha", True), ("assocalpha", True), ("unspecified", False)])
def test_alpha_is_told_and_refused_where_it_is_one_channel_too_many(tmp_path, kind, said):
    tifffile = pytest.importorskip("tifffile")
    image = np.random.default_rng(0).integers(0, 255, (32, 40, 4), np.uint8)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image, photometric="rgb", extrasamples=[kind])
    assert any("channel 4 is alpha" in note for note in open_volume(str(path)).notes) == said
    colours = fake_model(tmp_path, name="rgb", axes="yx", channels_in=3)
    refused = cli("run", "--in", path, "--model", colours)
    assert refused.code == 3
    assert "has 4 channels" in refused.error
    assert "if the last one is alpha, leave it out with --input-channels 0,1,2;" in refused.error
    assert cli("run", "--in", path, "--input-channels", "0,1,2", "--model", colours).code == 0
    told = cli("run", "--in", path, "--model", fake_model(tmp_path, name="four", axes="yx", channels_in=4))
    assert told.code == 0, told.err
    assert ("channel 4 is alpha" in told.err) == said
