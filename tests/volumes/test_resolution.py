"""Where an array lies in space and what its axes are: from the group that names it, else from its own attributes."""

import json

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, identity, make_volume
from unet_engine.errors import InputError
from unet_engine.volumes.formats import open_volume

NANOMETERS = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]


def pyramid(
    path, version, *, names=("0", "1", "2"), axes=NANOMETERS, scale=(40.0, 4.0, 4.0), whole=None, shape=(16,) * 3
):
    """An OME-Zarr group of resolutions, each half the size of the one before. Returns its path as text."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    levels = []
    for i, name in enumerate(names):
        f = 2**i
        array = group.create_array(name, shape=tuple(n // f for n in shape), chunks=(4,) * len(shape), dtype="u1")
        array[...] = i + 1
        moves = [
            {"type": "scale", "scale": [s * f for s in scale]},
            {"type": "translation", "translation": [100.0, *(10.0 * f,) * (len(shape) - 1)]},
        ]
        levels.append({"path": name, "coordinateTransformations": moves})
    image = {"name": "x", "axes": axes, "datasets": levels}
    if whole:
        image["coordinateTransformations"] = whole
    of = {"multiscales": [{**image, "version": "0.4"}]}
    group.attrs.update(of if version == "0.4" else {"ome": {"version": "0.5", "multiscales": [image]}})
    return str(path)


def place(path, axes=None):
    volume = open_volume(path, axes)
    return volume.spacing, volume.translation, volume.unit


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("names", [("0", "1", "2"), ("scale0/image", "scale1/image", "scale2/image")])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_by_its_path_is_where_the_group_says(tmp_path, version, names, level):
    path, f = pyramid(tmp_path / "a.zarr", version, names=names), 2**level
    expected = ((40.0 * f, 4.0 * f, 4.0 * f), (100.0, 10.0 * f, 10.0 * f), "nanometer")
    assert place(f"{path}/{names[level]}") == expected
    assert place(f"{path}/{names[level]}/") == expected
    if not level:
        assert place(path) == expected


def test_it_is_found_from_inside_the_group_and_through_a_link(tmp_path, monkeypatch):
    path = pyramid(tmp_path / "a.zarr", "0.5")
    expected = place(f"{path}/1")
    (tmp_path / "link").symlink_to(f"{path}/1")
    assert place(str(tmp_path / "link")) == expected
    monkeypatch.chdir(path)
    assert place("1") == expected
    assert place("../a.zarr/./1") == expected


def test_behind_a_url(tmp_path):
    path = pyramid(tmp_path / "a.zarr", "0.5")
    assert place(f"file://{path}/1") == place(f"{path}/1") == ((80.0, 8.0, 8.0), (100.0, 20.0, 20.0), "nanometer")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_transformations_of_the_whole_come_after_those_of_the_level(tmp_path, version):
    whole = [{"type": "scale", "scale": [2.0, 3.0, 5.0]}, {"type": "translation", "translation": [1.0, 2.0, 3.0]}]
    path = pyramid(tmp_path / "a.zarr", version, whole=whole)
    assert place(f"{path}/1") == ((160.0, 24.0, 40.0), (201.0, 62.0, 103.0), "nanometer")


@pytest.mark.parametrize("level", ["", "/0", "/1"])
def test_the_output_lies_where_the_level_does(tmp_path, level):
    path = pyramid(tmp_path / "a.zarr", "0.4")
    identity(path + level, tmp_path, roi="2:6,:,3:8")
    image = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs["ome"]["multiscales"][0]
    assert [a.get("unit") for a in image["axes"][1:]] == ["nanometer"] * 3
    scale, move = (t[t["type"]][1:] for t in image["datasets"][0]["coordinateTransformations"])
    f = 2 if level == "/1" else 1
    assert scale == [40.0 * f, 4.0 * f, 4.0 * f]
    assert move == [100.0 + 2 * 40 * f, 10.0 * f, 10.0 * f + 3 * 4 * f]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("names", ["cyx", "xyz", "yxc", "tzyx"])
def test_axes_are_those_of_the_group(tmp_path, version, names):
    shape, scale = tuple({"t": 1, "c": 3}.get(a, 8) for a in names), tuple(float(i + 2) for i in range(len(names)))
    axes = [{"name": a, "type": {"t": "time", "c": "channel"}.get(a, "space")} for a in names]
    path = pyramid(tmp_path / "a.zarr", version, names=("0",), axes=axes, shape=shape, scale=scale)
    volume = open_volume(f"{path}/0")
    assert volume.axes == names
    assert volume.spacing == tuple(scale[names.index(a)] for a in "zyx" if a in names)


def test_an_array_that_no_group_names_keeps_what_it_says(tmp_path):
    path = pyramid(tmp_path / "a.zarr", "0.5")
    zarr.open_group(path).create_array("other", shape=(8, 8, 8), dtype="u1", dimension_names=["x", "y", "z"])
    volume = open_volume(f"{path}/other")
    assert (volume.axes, volume.spacing, volume.unit, volume.notes) == ("xyz", None, None, ())


def test_the_nearest_group_that_names_it_counts(tmp_path):
    outer = pyramid(tmp_path / "a.zarr", "0.5")
    inner = pyramid(tmp_path / "a.zarr/labels/cells", "0.5", scale=(7.0, 7.0, 7.0))
    assert place(f"{inner}/0")[0] == (7.0, 7.0, 7.0)
    assert place(f"{outer}/0")[0] == (40.0, 4.0, 4.0)


@pytest.mark.parametrize("second", [{"name": "y", "type": "space"}, {"name": "y", "type": "space", "unit": "parsec"}])
def test_units_that_differ_are_brought_to_one_or_said(tmp_path, second):
    axes = [{"name": "z", "type": "space", "unit": "micrometer"}, *NANOMETERS[1:]]
    path = pyramid(tmp_path / "a.zarr", "0.5", axes=axes, scale=(0.04, 4.0, 4.0))
    assert place(path) == place(f"{path}/0") == ((40.0, 4.0, 4.0), (100000.0, 10.0, 10.0), "nanometer")
    path = pyramid(tmp_path / "b.zarr", "0.5", axes=[NANOMETERS[0], second, NANOMETERS[2]])
    volume = open_volume(f"{path}/0")
    assert volume.unit is None
    assert any("different units" in note for note in volume.notes)


def test_multiscales_that_are_not_valid_leave_the_array_with_a_note(tmp_path):
    path = pyramid(tmp_path / "a.zarr", "0.5", whole=[{"type": "affine", "affine": [[1]]}])
    said = cli("info", path)
    assert said.code == InputError.exit_code
    assert "'affine' is not understood" in said.error
    assert "name the array itself" in said.error
    model = fake_model(tmp_path)
    said = cli("run", "--in", f"{path}/0", "--model", model, "--out", str(tmp_path / "o.zarr"))
    assert said.code == 0
    assert "affine" in said.err
    assert "not taken from them" in said.err


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("level", ["", "/0"])
def test_a_scale_that_is_no_distance_is_refused(tmp_path, value, level):
    path = pyramid(tmp_path / "a.zarr", "0.4", scale=(40.0, value, 4.0))
    said = cli("info", path + level)
    assert said.code == InputError.exit_code
    assert "along y" in said.error
    assert "correct" in said.error


def test_a_negative_scale_is_kept_and_said(tmp_path):
    """Voxel i of the output lies where voxel i + 3 of the input does: the world runs backwards in both."""
    path = pyramid(tmp_path / "a.zarr", "0.5", scale=(40.0, -4.0, 4.0))
    model = fake_model(tmp_path, spacing=(0.04, 0.004, 0.004))
    out = tmp_path / "o.zarr"
    said = cli("run", "--in", f"{path}/0", "--model", model, "--out", out, "--roi", ":,3:,:")
    assert said.code == 0, said.err
    assert "backwards along y" in said.err
    assert place(str(out)) == ((40.0, -4.0, 4.0), (100.0, 10.0 - 3 * 4, 10.0), "nanometer")


# --- attributes of the array itself ---


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("key", ["resolution", "voxel_size"])
@pytest.mark.parametrize("units", [["nm"] * 3, "nanometers", ["nm", "nm", "nanometer"]])
def test_resolution_offset_and_units(tmp_path, zarr_format, key, units):
    path = make_volume(tmp_path / "a.zarr", np.ones((8, 9, 10), "u1"), zarr_format=zarr_format)
    zarr.open_array(path).attrs.update({key: [40, 4, 4], "offset": [400, 40, 40], "units": units})
    assert place(path) == ((40.0, 4.0, 4.0), (400.0, 40.0, 40.0), "nanometer")


def test_they_may_be_of_the_spatial_axes_alone(tmp_path):
    path = make_volume(tmp_path / "a.zarr", np.ones((2, 8, 9, 10), "u1"))
    zarr.open_array(path).attrs.update({"voxel_size": [40, 8, 4], "offset": [1, 2, 3], "units": ["", "um", "um", "um"]})
    assert place(path) == ((40.0, 8.0, 4.0), (1.0, 2.0, 3.0), "micrometer")
    zarr.open_array(path).attrs.update({"voxel_size": [9, 40, 8, 4], "offset": [0, 1, 2, 3]})
    assert place(path)[:2] == ((40.0, 8.0, 4.0), (1.0, 2.0, 3.0))


def test_without_units_none_is_known(tmp_path):
    path = make_volume(tmp_path / "a.zarr", np.ones((8, 9, 10), "u1"))
    zarr.open_array(path).attrs["resolution"] = [40, 4, 4]
    assert place(path) == ((40.0, 4.0, 4.0), (0.0, 0.0, 0.0), None)


@pytest.mark.parametrize("value", [[40, 4], "10m", [[1], [2], [3]], 5])
def test_a_resolution_that_is_none_is_left_out_with_a_note(tmp_path, value):
    path = make_volume(tmp_path / "a.zarr", np.ones((8, 9, 10), "u1"))
    zarr.open_array(path).attrs["resolution"] = value
    volume = open_volume(path)
    assert volume.spacing is None
    assert any("resolution" in note for note in volume.notes)


def test_the_group_counts_before_the_array(tmp_path):
    path = pyramid(tmp_path / "a.zarr", "0.4")
    zarr.open_array(f"{path}/0").attrs.update({"resolution": [1, 1, 1], "units": "mm"})
    assert place(f"{path}/0")[0] == place(path)[0] == (40.0, 4.0, 4.0)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_axes_of_more_than_one_letter_are_asked_for(tmp_path, zarr_format):
    path = str(tmp_path / "geo.zarr")
    named = {"dimension_names": ["scene", "y", "x"]} if zarr_format == 3 else {}
    array = zarr.create_array(path, shape=(3, 8, 8), dtype="u1", zarr_format=zarr_format, **named)
    if zarr_format == 2:
        array.attrs["_ARRAY_DIMENSIONS"] = ["scene", "y", "x"]
    said = cli("info", path)
    assert said.code == InputError.exit_code
    assert "'scene'" in said.error
    assert "--axes" in said.error
    assert json.loads(cli("info", path, "--axes", "cyx", "--json").out)["channels"] == 3


@pytest.mark.parametrize("names", [["dim_0", "dim_1", "dim_2"], [None, None, None]])
def test_names_that_mean_nothing_are_none(tmp_path, names):
    zarr.create_array(tmp_path / "a.zarr", shape=(8, 8, 8), dtype="u1", dimension_names=names)
    assert open_volume(str(tmp_path / "a.zarr")).axes == "zyx"
