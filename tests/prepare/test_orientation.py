"""A scan that lies otherwise than those of training is seen turned, which is told."""

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import ModelError
from unet_engine.model.file import open_model


def scan(folder, x, y):
    """A MetaImage whose x and y point left and posterior, or backwards where these are -1."""
    path = folder / "v.mha"
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 9 9 9\n"
        f"ElementSpacing = 1 1 1\nTransformMatrix = {x} 0 0 0 {y} 0 0 0 1\nElementType = MET_UCHAR\n"
        "ElementDataFile = LOCAL\n"
    )
    path.write_bytes(head.encode() + bytes(9**3))
    return str(path)


def test_another_orientation_is_turned_and_told_unless_it_is_ignored(tmp_path):
    path, model = scan(tmp_path, 1, 1), fake_model(tmp_path, orientation="SAR")
    asked = "run", "--in", path, "--model", model, "--out", "o.zarr"
    said = cli(*asked, "--strict")
    assert said.code == 0, said.err
    assert "point to SPL, id was trained on SAR: windows are cut turned" in said.err
    said = cli(*asked, "--ignore-spacing", "--strict", "--overwrite")
    assert said.code == 0, said.err
    assert "ignored, as --ignore-spacing says" in said.err
    said = cli(*asked, "--resume")
    assert (said.code, "another turn" in said.error) == (9, True), said.err


def test_the_same_is_taken_without_a_word(tmp_path):
    said = cli("plan", "--in", scan(tmp_path, -1, -1), "--model", fake_model(tmp_path, orientation="SAR"))
    assert (said.code, "trained on" in said.err) == (0, False), said.err


def test_a_volume_that_does_not_say_it_is_told(tmp_path):
    path = make_volume(tmp_path / "v.zarr", np.ones((9, 9, 9), np.uint8), axes="zyx")
    said = cli("plan", "--in", path, "--model", fake_model(tmp_path, orientation="SAR"))
    assert said.code == 0, said.err
    assert "does not say where its z, y and x point; id was trained on SAR" in said.err


@pytest.mark.parametrize("text", ["RAR", "XYZ", "SA", "sar"])
def test_what_is_none_is_named(tmp_path, text):
    with pytest.raises(ModelError, match="name where z, y and x point"):
        open_model(fake_model(tmp_path, orientation=text))
