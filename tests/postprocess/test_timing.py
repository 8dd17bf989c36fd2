"""When time points were taken is read as each format says it, and written where the next one has a place for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK

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


@pytest.mark.parametrize(("write", "name"), [
    (ome, "a.ome.tif"), (packed_ome, "a.ome.tif"), (imagej, "a.tif"), (nifti, "a.nii"), (by_slicer, "a.seq.nrrd"),
    (by_spacings, "a.nrrd"), (netcdf, "a.nc"),
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
