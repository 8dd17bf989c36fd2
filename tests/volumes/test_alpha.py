"""Alpha channels of images: told, and never one of a network's channels without a word."""

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model
from unet_engine.volumes.formats import open_volume

tifffile = pytest.importorskip("tifffile")


@pytest.mark.parametrize(("kind", "said"), [("unassalpha", True), ("assocalpha", True), ("unspecified", False)])
def test_alpha_is_told_and_refused_where_it_is_one_channel_too_many(tmp_path, kind, said):
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
