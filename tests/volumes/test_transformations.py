"""OME-Zarr 0.6: axes of coordinate systems, and transformations that are sequences, matrices and rotations."""

import numpy as np
import pytest
import zarr

from support.command_line import cli
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.collection import levels_in, located
from unet_engine.volumes.formats import open_volume

SCAN = np.arange(2 * 4 * 6 * 8, dtype="u2").reshape(2, 4, 6, 8)
AXES = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "zyx")]


def image(path, *moves, output="physical", others=(), version="0.6"):
    """Two levels, the second half as fine in y and x."""
    root = zarr.create_group(str(path), zarr_format=3)
    said = []
    for level in (0, 1):
        root.create_array(str(level), data=SCAN[:, :, :: 1 + level, :: 1 + level], chunks=(1, 4, 4, 4))
        said.append({"path": str(level), "coordinateTransformations": [
            {**move, "input": {"path": str(level)}, "output": {"name": output}} for move in moves]})  # fmt: skip
    systems = [{"name": "other", "axes": AXES[::-1]}, {"name": "physical", "axes": AXES}]
    root.attrs["ome"] = {"version": version, "multiscales": [
        {"coordinateSystems": systems, "datasets": said, "coordinateTransformations": list(others)}]}  # fmt: skip
    return str(path)


def scaled(*scale):
    return {"type": "scale", "scale": [1.0, *scale]}


def moved(*translation):
    return {"type": "translation", "translation": [0.0, *translation]}


def test_a_sequence_of_scale_and_translation(tmp_path):
    steps = {"type": "sequence", "transformations": [scaled(2.0, 0.5, 0.5), moved(10.0, 1.0, -1.0)]}
    further = {"type": "scale", "scale": [1, 9, 9, 9], "input": {"name": "physical"}, "output": {"name": "other"}}
    volume = open_volume(image(tmp_path / "a.zarr", steps, others=[further]))
    assert (volume.axes, volume.spacing, volume.translation) == ("czyx", (2.0, 0.5, 0.5), (10.0, 1.0, -1.0))
    assert (volume.unit, volume.frame, volume.channels) == ("micrometer", None, 2)
    assert open_volume(f"{tmp_path}/a.zarr/1").spacing == (2.0, 0.5, 0.5)
    assert levels_in(f"{tmp_path}/a.zarr")[1]["x"] == (4, 0.5)


def of_axes(*parts):
    """Transformations of some axes each, by number as in 0.6, or by name as proposed before."""
    found = [{"transformation": move, "input_axes": axes, "output_axes": axes} if isinstance(axes[0], int)
             else {**move, "input": axes, "output": axes} for move, axes in parts]  # fmt: skip
    return {"type": "byDimension", "transformations": found}


@pytest.mark.parametrize("named", [False, True])
def test_transformations_of_some_axes_each(tmp_path, named):
    steps = {"type": "sequence", "transformations": [
        {"type": "scale", "scale": [2.0]}, {"type": "translation", "translation": [7.0]}]}  # fmt: skip
    plane = {"type": "affine", "affine": [[0.5, 0, 1], [0, 0.25, 2]]}
    axes = [["z"], ["c"], ["y", "x"]] if named else [[1], [0], [2, 3]]
    move = of_axes((steps, axes[0]), ({"type": "identity"}, axes[1]), (plane, axes[2]))
    volume = open_volume(image(tmp_path / "a.zarr", move))
    assert (volume.spacing, volume.translation, volume.channels) == ((2.0, 0.5, 0.25), (7.0, 1.0, 2.0), 2)


def test_an_axis_that_no_transformation_makes_is_refused(tmp_path):
    move = of_axes(({"type": "scale", "scale": [1.0, 2.0]}, [0, 1]), ({"type": "scale", "scale": [3.0]}, [2]))
    with pytest.raises(InputError, match="byDimension does not make each axis once"):
        open_volume(image(tmp_path / "a.zarr", move))


def test_a_voxel_that_is_moved_to_a_place_in_a_unit_is_one_of_it(tmp_path):
    assert open_volume(image(tmp_path / "a.zarr", {"type": "identity"})).spacing == (1, 1, 1)
    assert open_volume(image(tmp_path / "b.zarr", moved(1, 2, 3))).translation == (1, 2, 3)


def test_the_coordinate_system_may_be_called_by_text_or_not_at_all(tmp_path):
    path = image(tmp_path / "a.zarr", scaled(3, 2, 1), output="unknown")
    root = zarr.open_group(path, mode="r+")
    said = dict(root.attrs["ome"])
    scale = said["multiscales"][0]
    scale["coordinateSystems"].reverse()
    for one in scale["datasets"]:
        one["coordinateTransformations"][0]["output"] = "physical"
    root.attrs["ome"] = said
    assert open_volume(path).axes == "czyx"
    del scale["datasets"][0]["coordinateTransformations"][0]["output"]
    root.attrs["ome"] = said
    assert open_volume(path).spacing == (3, 2, 1)


TURN = [[1, 0, 0, 0, 0], [0, 2, 0, 0, 5], [0, 0, 0, -0.5, 6], [0, 0, 0.25, 0, 7]]


def test_a_matrix_is_a_frame(tmp_path):
    path = image(tmp_path / "a.zarr", {"type": "affine", "affine": TURN})
    frame = open_volume(path).frame
    matrix, origin = np.array(TURN)[1:, 1:4], np.array(TURN)[1:, 4]
    for voxel in ([0, 0, 0], [1, 2, 3], [3, 0, 5]):
        world = matrix @ voxel + origin
        assert np.allclose(np.array(frame.matrix) @ voxel + frame.origin, world[::-1])
    assert open_volume(path).spacing == pytest.approx((2, 0.25, 0.5))
    again = tmp_path / "b.zarr"
    assert cli("convert", path, again).code == 0
    assert open_volume(str(again)).frame.matrix == frame.matrix


def test_a_matrix_without_turns_is_scale_and_translation(tmp_path):
    straight = [[1, 0, 0, 0, 0], [0, 2, 0, 0, 5], [0, 0, 0.5, 0, 6], [0, 0, 0, 0.25, 7]]
    volume = open_volume(image(tmp_path / "a.zarr", {"type": "affine", "affine": straight}))
    assert (volume.spacing, volume.translation, volume.frame) == ((2, 0.5, 0.25), (5, 6, 7), None)


def test_axes_that_are_put_in_another_order_are_called_by_where_they_go(tmp_path):
    """The world lists x, y, z, and the array has its x last: it is no volume seen along x."""
    steps = {"type": "sequence", "transformations": [scaled(4, 2, 1), {"type": "mapAxis", "mapAxis": [0, 3, 2, 1]}]}
    path = image(tmp_path / "a.zarr", {**steps}, output="world")
    root = zarr.open_group(path, mode="r+")
    said = dict(root.attrs["ome"])
    said["multiscales"][0]["coordinateSystems"].append({"name": "world", "axes": [AXES[0], *AXES[:0:-1]]})
    root.attrs["ome"] = said
    volume = open_volume(path)
    assert (volume.axes, volume.shape, volume.spacing, volume.frame) == ("czyx", (4, 6, 8), (4, 2, 1), None)
    assert levels_in(path)[0]["z"] == (4, 4.0)


def test_levels_in_several_coordinate_systems_or_in_one_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"several coordinate systems \(physical, physical\)"):
        open_volume(image(tmp_path / "a.zarr", scaled(2, 1, 1), scaled(7, 7, 7)))
    with pytest.raises(InputError, match="'nowhere', and there are other, physical"):
        open_volume(image(tmp_path / "b.zarr", scaled(2, 1, 1), output="nowhere"))


@pytest.mark.parametrize(
    ("level", "told"),
    [(SCAN[:1, ::2, ::2, ::2], "channels number 1, of a pyramid of 2"), (SCAN.astype("f4") / 9, "float32")],
)
def test_a_level_of_other_channels_or_numbers_is_told(tmp_path, level, told):
    path = image(tmp_path / "a.zarr", scaled(2, 1, 1))
    root = zarr.open_group(path, mode="r+")
    root.attrs["ome"] = {**root.attrs["ome"], "omero": {"channels": [{"label": "a"}, {"label": "b"}]}}
    del root["1"]
    root.create_array("1", data=level, chunks=level.shape)
    volume = open_volume(located(path, None, 1))
    assert told in " ".join(volume.notes)
    assert volume.channel_names == (("a", "b") if len(level) == 2 else ()), "those of the level are not known"
    assert open_volume(located(path, None, 0)).notes == ()
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape)), level)


def test_steps_are_done_in_order(tmp_path):
    turn = {"type": "rotation", "rotation": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]]}
    steps = {"type": "sequence", "transformations": [scaled(2, 0.5, 0.25), turn, moved(1, 2, 3)]}
    frame = open_volume(image(tmp_path / "a.zarr", steps)).frame
    # z, y, x = 1, 2, 3 is scaled to 2, 1, 0.75, turned to 2, -0.75, 1 and moved
    assert np.allclose(np.array(frame.matrix) @ [1, 2, 3] + frame.origin, [4, 1.25, 3])


@pytest.mark.parametrize(
    ("move", "words"),
    [
        ({"type": "displacements", "path": "d"}, "displacements"), ({"type": "scale", "path": "s"}, "array of their own"),
        ({"type": "affine", "affine": [[1, 0], [0, 1]]}, "does not fit"),
        ({"type": "mapAxis", "mapAxis": [0, 0, 1, 2]}, "mapAxis"),
        ({"type": "affine", "affine": [[1, 1, 0, 0, 0], *TURN[1:]]}, "mixes"),
        ({"type": "sequence"}, "transformations"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(tmp_path, move, words):
    with pytest.raises(InputError, match=words):
        open_volume(image(tmp_path / "a.zarr", move))


def test_neither_pyramid_nor_labels_are_added_to_it(tmp_path):
    path = image(tmp_path / "a.zarr", scaled(1, 1, 1))
    said = cli("pyramid", path)
    assert (said.code, "0.6" in said.err) == (3, True)


def test_levels_of_an_output_have_its_frame(tmp_path):
    path = image(tmp_path / "a.zarr", {"type": "affine", "affine": TURN})
    out = tmp_path / "b.zarr"
    assert cli("convert", path, out, "--level", "0").code == 0
    full = open_volume(str(out)).frame
    assert cli("pyramid", out, "--by", "mean", "--levels", 3).code == 0
    for level in (1, 2):
        volume = open_volume(located(str(out), None, level))
        steps = np.array(volume.spacing) / np.array(full.spacing)
        assert np.allclose(np.array(volume.frame.matrix), np.array(full.matrix) * steps)
        voxel = np.array([1, 1, 1])
        covered = (voxel * steps) + (steps - 1) / 2
        assert np.allclose(
            np.array(volume.frame.matrix) @ voxel + volume.frame.origin, np.array(full.matrix) @ covered + full.origin
        )
