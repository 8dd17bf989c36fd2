"""Bands in arrays of their own, as `xarray.Dataset.to_zarr` and the Zarr of Sentinel-2 have them, are the channels of
one volume, in the order of their names or that which is asked for."""

import pickle

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, identity
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.validity import unmeasured

RNG = np.random.default_rng(11)
BANDS = {name: RNG.integers(0, 4000, (40, 56)).astype("u2") for name in ("B2", "B8A", "B10", "B8")}
ORDER = ["B2", "B8", "B8A", "B10"]


def group(path, arrays, *, dims=("y", "x"), version=3, **attributes):
    """attributes: by array"""
    root = zarr.create_group(path, zarr_format=version)
    coordinates = {"y": 5e6 - 10 * np.arange(40.0), "x": 6e5 + 10 * np.arange(56.0)}
    for name, values in (arrays | coordinates).items():
        names = [name] if name in coordinates else list(dims)[-values.ndim :]
        by = {"dimension_names": names} if version == 3 else {}
        array = root.create_array(name, data=values, chunks=(32,) * values.ndim, **by)
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = names
        array.attrs.update(attributes.get(name, {}))
    return str(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_dataset_is_a_volume_of_its_bands(tmp_path, version):
    path = group(tmp_path / "a.zarr", BANDS, version=version)
    volume = open_volume(path)
    assert (volume.axes, volume.shape, volume.channel_names) == ("cyx", (40, 56), tuple(ORDER))
    assert (volume.spacing, volume.translation) == ((-10, 10), (5e6, 6e5))
    assert any("B2, B8, B8A, B10 are taken as channels" in note for note in volume.notes)
    box = Box((3, 30), (40, 41))
    assert np.array_equal(volume.read(box), [BANDS[name][3:, 30:41] for name in ORDER])
    some = pickle.loads(pickle.dumps(open_volume(path, None, Pick(channels=("B10", "B2")))))
    assert np.array_equal(some.read(box), [BANDS[name][3:, 30:41] for name in ("B10", "B2")])


def test_what_xarray_writes(tmp_path):
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset({name: (("y", "x"), values) for name, values in BANDS.items()})
    data = data.assign_coords(y=np.arange(40.0), x=np.arange(56.0), lat=(("y", "x"), RNG.random((40, 56))))
    data["mask"] = (("y", "x"), np.zeros((40, 56), "u1"))
    data.to_zarr(tmp_path / "a.zarr", consolidated=False)
    volume = open_volume(str(tmp_path / "a.zarr"))
    theirs = xarray.open_zarr(tmp_path / "a.zarr", consolidated=False)
    assert np.array_equal(volume.read(Box.of_shape((40, 56))), [theirs[name] for name in ORDER])
    assert any("mask (40×56, uint8)" in note and "left out" in note for note in volume.notes)


def test_a_run_of_some_bands(tmp_path):
    model = fake_model(tmp_path, axes="yx", channels_in=2, channels_out=2)
    found = identity(group(tmp_path / "a.zarr", BANDS), tmp_path, model=model, input_channels="B8A,B2")
    assert np.array_equal(found, np.stack([BANDS["B8A"], BANDS["B2"]]).astype("f4"))


def test_packed_bands_and_several_times(tmp_path):
    films = {name: RNG.integers(0, 99, (3, 40, 56)).astype("u2") for name in ("b03", "b02")}
    packed = {"scale_factor": 0.5, "add_offset": -10.0, "_FillValue": 0}
    path = group(tmp_path / "a.zarr", films, dims=("time", "y", "x"), b02=packed, b03=packed)
    volume = open_volume(path, None, Pick(timepoint=2))
    wanted = np.stack([films["b02"][2], films["b03"][2]]) * 0.5 - 10
    assert np.array_equal(volume.read(Box.of_shape((40, 56))), wanted)
    assert (volume.nodata, volume.timepoints, volume.dtype) == ((-10.0,), 3, np.float32)
    assert sum("is packed" in note for note in volume.notes) == 1


def test_what_is_no_set_of_bands_is_asked_about(tmp_path):
    other = {name: np.zeros((20, 28), "u1") for name in ("m1", "m2", "m3", "m4")}
    with pytest.raises(InputError, match=r"arrays of 2 kinds: B2 \(40×56, uint16\)"):
        open_volume(group(tmp_path / "a.zarr", BANDS | other))
    path = group(tmp_path / "b.zarr", BANDS)
    with pytest.raises(InputError, match="--axes that begin with c"):
        open_volume(path, "yx")
    said = cli("info", str(tmp_path / "b.zarr"), "--json")
    assert said.json["channel_names"] == ORDER
    with pytest.raises(InputError, match="there is none"):
        open_volume(path, None, Pick(channels=("B4",)))


def test_a_band_that_is_damaged_is_named(tmp_path):
    path = group(tmp_path / "a.zarr", BANDS)
    (tmp_path / "a.zarr/B8/c/0/0").write_bytes(b"no chunk")
    with pytest.raises(InputError, match="B8: chunk y=0 x=0"):
        open_volume(path).read(Box.of_shape((40, 56)))
    assert open_volume(path, None, Pick(channels=("B2",))).read(Box.of_shape((40, 56))).any()


def test_each_band_has_its_own_fill_value(tmp_path):
    """As xarray writes them, each with its own encoding."""
    group = zarr.create_group(tmp_path / "s.zarr")
    stored = np.array([[0, 5, 7], [9, 0, 7]], "i2")
    for name, fill in (("B02", 0), ("B03", 9), ("B04", None)):
        attributes = {} if fill is None else {"_FillValue": fill}
        band = group.create_array(name, shape=(2, 3), dtype="i2", dimension_names=["y", "x"], attributes=attributes)
        band[...] = stored
    volume = open_volume(str(tmp_path / "s.zarr"))
    box = Box.of_shape((2, 3))
    wanted = [stored == 0, stored == 9, np.zeros((2, 3), bool)]
    assert np.array_equal(unmeasured(volume, box, volume.read(box)), wanted)
    assert np.array_equal(
        unmeasured(volume.picked(Pick(channels=("B03", "B02"))), box, np.stack([stored] * 2)), wanted[1::-1]
    )
