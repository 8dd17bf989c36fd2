"""When time points were taken is read as each format says it, and written where the next one has a place for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
import zarr

import unet_engine
from support.volumes import fake_model
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.volumes.base import Timing
from unet_engine.volumes.collection import time_of
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.pick import Pick

h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
FILM = np.random.default_rng(4).integers(0, 200, (3, 4, 8, 9), np.uint8)
LPS = {"space": "left-posterior-superior", "space origin": [1, 2, 3]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))


def ome(path: str) -> None:
    tifffile.imwrite(path, FILM, ome=True, metadata={"axes": "TZYX", "TimeIncrement": 1.5, "TimeIncrementUnit": "min"})


def packed_ome(path: str) -> None:
    tifffile.imwrite(path, FILM, ome=True, compression="zlib", metadata={"axes": "TZYX", "TimeIncrement": 90})


def imagej(path: str) -> None:
    tifffile.imwrite(path, FILM, imagej=True, metadata={"axes": "TZYX", "finterval": 90, "tunit": "sec"})


def nifti(path: str) -> None:
    image = nibabel.Nifti1Image(FILM.T, np.eye(4))
    image.header["pixdim"][4] = 90_000
    image.header.set_xyzt_units("mm", "msec")
    nibabel.save(image, path)


def by_slicer(path: str) -> None:
    """A sequence: https://slicer.readthedocs.io, "NRRD file format", sequences."""
    directions = [[np.nan] * 3, *np.diag([2.0, 3, 4]).tolist()]
    header = {"kinds": ["list", "domain", "domain", "domain"], "space directions": directions, **LPS,
              "labels": ["frame", "", "", ""], "axis 0 index type": "numeric", "axis 0 index unit": "s",
              "axis 0 index values": "0 90 180", "DataNodeClassName": "vtkMRMLScalarVolumeNode"}  # fmt: skip
    nrrd.write(path, np.moveaxis(FILM.T, -1, 0), header)


def by_spacings(path: str) -> None:
    nrrd.write(path, FILM.T, {"spacings": [2.0, 3, 4, 1.5], "units": ["mm", "mm", "mm", "min"],
                              "kinds": ["space", "space", "space", "time"]})  # fmt: skip


def netcdf(path: str) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("film", data=FILM)
        for axis, name in enumerate(("time", "z", "y", "x")):
            scale = file.create_dataset(name, data=np.arange(FILM.shape[axis]) * 0.025)
            scale.make_scale(name)
            scale.attrs["units"] = "hours since 2000-01-01" if name == "time" else "m"
            data.dims[axis].attach_scale(scale)


def array(group: Any, name: str, values: Any, axes: list[str], **attributes: Any) -> None:
    group.create_array(name, data=np.asarray(values)).attrs.update(_ARRAY_DIMENSIONS=axes, **attributes)


def by_xarray(path: str) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=2)
    axes = ["time", "z", "y", "x"]
    array(group, "film", FILM, axes)
    for axis, count in zip(axes, FILM.shape, strict=True):
        said = {"units": "hours since 2000-01-01", "calendar": "proleptic_gregorian"} if axis == "time" else {}
        array(group, axis, np.arange(count) * 0.025, [axis], **said)


def ilastik(path: str) -> None:
    steps = {"t": (1.5, "min"), "z": (2, "um"), "y": (500, "nm"), "x": (500, "nm")}
    tags = [{"key": axis, "typeFlags": 2, "resolution": step, "description": ""} for axis, (step, _) in steps.items()]
    with h5py.File(path, "w") as file:
        data = file.create_dataset("film", data=FILM)
        data.attrs["axistags"] = json.dumps({"axes": tags})
        data.attrs["axis_units"] = json.dumps({axis: unit for axis, (_, unit) in steps.items()})


def nrrd_of_ours(path: str) -> None:
    """Of which another tool took our own key."""
    ome("a.ome.tif")
    convert("a.ome.tif", path)
    header, _, voxels = Path(path).read_bytes().partition(b"\n\n")
    lines = [line for line in header.split(b"\n") if not line.startswith(b"unet_engine")]
    Path(path).write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    said = nrrd.read_header(path)
    assert said["spacings"][3] == 1.5
    assert said["axis 3 index values"] == "0.0 1.5 3.0"


@pytest.mark.parametrize(("write", "name"), [
    (ome, "a.ome.tif"), (packed_ome, "a.ome.tif"), (imagej, "a.tif"), (nifti, "a.nii"), (by_slicer, "a.seq.nrrd"),
    (by_spacings, "a.nrrd"), (netcdf, "a.nc"), (by_xarray, "a.zarr"), (ilastik, "b.nc"), (nrrd_of_ours, "a.nrrd"),
])  # fmt: skip
def test_time_points_are_90_seconds_apart_in_each_format(write: Any, name: str) -> None:
    write(name)
    convert(f"{name}:/film" if name.endswith("nc") else name, "o.zarr")
    assert Timing(*time_of("o.zarr")).in_seconds().step == pytest.approx(90, rel=1e-6)
    assert Timing(*time_of("o.zarr")).in_seconds().unit == "second"
    volume = open_stored("o.zarr")
    for time, frame in enumerate(FILM):
        one = volume.picked(Pick(timepoint=time))
        np.testing.assert_array_equal(one.read(Box.of_shape(one.shape))[0], frame)


def test_the_voxel_size_of_axistags_is_in_one_unit() -> None:
    ilastik("a.h5")
    volume = open_stored("a.h5")
    assert (volume.axes, volume.spacing, volume.unit) == ("tzyx", (2000, 500, 500), "nanometer")


def test_coordinates_are_what_their_scale_and_offset_make_of_them() -> None:
    """As xarray and NetCDF's own tools take them."""
    axes = {"y": 50 - np.arange(8) * 0.5, "x": 5 + np.arange(9) * 0.25}
    said = {"scale_factor": 0.25, "add_offset": 10.0}
    group = zarr.open_group("a.zarr", mode="w", zarr_format=2)
    array(group, "scan", FILM[0, 0], list(axes))
    for axis, values in axes.items():
        array(group, axis, ((values - 10) / 0.25).astype("i2"), [axis], **said)
    with h5py.File("a.h5", "w") as file:
        data = file.create_dataset("scan", data=FILM[0, 0])
        for number, (axis, values) in enumerate(axes.items()):
            stored = file.create_dataset(axis, data=((values - 10) / 0.25).astype("i2"))
            stored.attrs.update(said)
            stored.make_scale(axis)
            data.dims[number].attach_scale(stored)
    for path in ("a.zarr", "a.h5:/scan"):
        volume = open_stored(path)
        assert (volume.spacing, volume.translation) == ((-0.5, 0.25), (50, 5))


def test_a_metaimage_has_a_step_without_a_unit_and_what_another_tool_wrote_goes_before_ours() -> None:
    ome("a.ome.tif")
    convert("a.ome.tif", "a.mha")
    convert("a.mha", "same.zarr")
    assert Timing(*time_of("same.zarr")).in_seconds() == Timing(90.0, 0.0, "second")
    image = SimpleITK.ReadImage("a.mha")
    image.SetSpacing((1, 1, 1, 7))
    SimpleITK.WriteImage(image, "b.mha")
    convert("b.mha", "b.zarr")
    assert time_of("b.zarr") == (7.0, 0.0, None)


@pytest.mark.parametrize("kind", ["list", "vector", "3-color"])
def test_a_list_that_is_no_sequence_is_one_of_channels(kind: str) -> None:
    """As layers of a segmentation are."""
    directions = [[np.nan] * 3, *np.diag([2.0, 3, 4]).tolist()]
    header = {"kinds": [kind, "domain", "domain", "domain"], "space directions": directions, **LPS}
    nrrd.write("a.nrrd", np.moveaxis(FILM.T, -1, 0), header)
    volume = open_stored("a.nrrd")
    assert volume.axes == "zyxc"
    assert volume.spacing == (4, 3, 2)
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape)), FILM)


def test_a_run_of_all_time_points_keeps_when_they_were(tmp_path: Path) -> None:
    tifffile.imwrite("a.ome.tif", FILM[:2], ome=True, metadata={"axes": "TZYX", "TimeIncrement": 90})
    model = fake_model(tmp_path, window=(4, 8, 8), activation="sigmoid")
    found = unet_engine.run("a.ome.tif", model, out="o.zarr", timepoint="all", blend="crop")
    assert time_of(str(found.out)) == (90.0, 0.0, "second")
