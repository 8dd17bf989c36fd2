"""Channels that lie in files of their own are the channels of one volume, in the order in which they are named."""

import pickle

import numpy as np
import pytest
import zarr

from support.volumes import make_volume
from unet_engine.endings import together
from unet_engine.errors import InputError
from unet_engine.paths import absolute, parts, plain, unusable
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import located, open_stored, open_volume
from unet_engine.volumes.pick import Pick

RNG = np.random.default_rng(3)
VOXELS = RNG.integers(0, 200, (3, 6, 20, 24)).astype("u1")
BOX = Box((0, 3, 5), (6, 20, 21))
INSIDE = (slice(None), *BOX.slices())


def files(folder, arrays=VOXELS, **more):
    return [
        make_volume(folder / f"t_{name}.zarr", a, ome="0.5", axes="zyx", **more)
        for name, a in zip("ab", arrays, strict=False)
    ]


def test_files_are_channels_in_their_order(tmp_path):
    paths = files(tmp_path, scale=(2, 1, 1), unit="micrometer")
    volume = open_volume("+".join(reversed(paths)))
    assert (volume.axes, volume.channel_names, volume.spacing) == ("czyx", ("b", "a"), (2, 1, 1))
    assert np.array_equal(volume.read(BOX), VOXELS[[1, 0]][INSIDE])
    assert "t_b.zarr (b), t_a.zarr (a)" in volume.notes[0]
    assert volume.facts()["joined"] == paths[::-1]
    some = pickle.loads(pickle.dumps(open_volume("+".join(paths), None, Pick(channels=("b",)))))
    assert np.array_equal(some.read(BOX), VOXELS[[1]][INSIDE])


def test_a_file_of_several_channels_keeps_them(tmp_path):
    np.save(tmp_path / "rgb.npy", VOXELS)
    np.save(tmp_path / "height.npy", VOXELS[0].astype("f4") / 8)
    path = f"{tmp_path}/rgb.npy+{tmp_path}/height.npy"
    volume = open_stored(path, "czyx")
    assert (volume.channels, volume.dtype) == (4, np.float32)
    every = np.stack([*VOXELS, VOXELS[0] / np.float32(8)])
    assert np.array_equal(volume.read(BOX), every[INSIDE])
    assert np.array_equal(volume.picked(Pick(channels=(3, 1))).read(BOX), every[[3, 1]][INSIDE])
    assert np.array_equal(volume.stored((slice(1, 4), *BOX.slices())), every[1:][INSIDE])
    assert any("are read as float32" in note for note in volume.notes)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"scale": (3, 1, 1)}, r"has voxels of 3×1×1 micrometer, unlike the 2×1×1 micrometer of"),
    ({"translation": (0, 5, 0)}, "does not lie where"),
    ({"arrays": VOXELS[:, :5]}, "is 5×20×24, unlike the 6×20×24 of"),
])  # fmt: skip
def test_other_voxels_are_no_channel(tmp_path, wrong, said):
    said_of = {"scale": (2, 1, 1), "unit": "micrometer"}
    (tmp_path / "o").mkdir()
    paths = [files(tmp_path, **said_of)[0], files(tmp_path / "o", **{**said_of, **wrong})[1]]
    with pytest.raises(InputError, match=said):
        open_volume("+".join(paths))


def test_types_that_none_holds_are_refused(tmp_path):
    paths = files(tmp_path, [VOXELS[0].astype("i8"), VOXELS[1].astype("f4")])
    with pytest.raises(InputError, match="no type holds the numbers of both"):
        open_volume("+".join(paths))


def test_a_file_that_says_nothing_lies_where_the_others_do(tmp_path):
    np.save(tmp_path / "b.npy", VOXELS[1])
    volume = open_volume(f"{tmp_path}/b.npy+{files(tmp_path, scale=(2, 1, 1))[0]}")
    assert volume.spacing == (2, 1, 1)
    assert any("does not say where it lies" in note for note in volume.notes)


def test_what_a_plus_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b+c.npy", "d"):
        (tmp_path / name).touch()
    assert parts("b+c.npy") == ("b+c.npy",)
    assert parts("a.npy+b+c.npy+e.npy") == ("a.npy", "b+c.npy", "e.npy")
    assert parts("x.npy+y.npy") == ("x.npy+y.npy",)
    assert parts("s3://b/a+1.zarr+s3://b/b.zarr+a.npy+d") == ("s3://b/a+1.zarr", "s3://b/b.zarr+a.npy+d")
    assert parts("a.npy+https://h/b.tif") == ("a.npy", "https://h/b.tif")
    assert plain("file:///x/a%2B.npy+file:///x/b.npy") == "/x/a+.npy+/x/b.npy"
    assert located("a.npy+d", None, None) == "a.npy+d"
    assert not unusable("+".join(["a.npy", *["d"] * 200]))
    assert absolute("x+y.zarr") == f"{tmp_path}/x+y.zarr"


@pytest.mark.parametrize(("paths", "called", "names"), [
    (["x/case_0000.nii.gz", "x/case_0001.nii.gz"], "x/case.nii.gz", ("0000", "0001")),
    (["T32_B02_10m.jp2", "T32_B8A_10m.jp2"], "T32_10m.jp2", ("B02", "B8A")),
    (["red_t1.tif", "nir_t1.tif"], "t1.tif", ("red", "nir")),
    (["scan.tif", "scan_dem.tif"], "scan.tif", ("scan", "scan_dem")),
    (["r/a.tif", "g/a.tif"], "r/a.tif", ("r", "g")),
    (["a.h5:/raw/c1", "a.h5:/raw/c2"], "a.h5", ("raw/c1", "raw/c2")),
])  # fmt: skip
def test_what_they_are_called_together(paths, called, names):
    assert together(paths) == (called, names)


def test_both_masks_say_what_was_measured(tmp_path):
    layers = np.full((2, 2, 5, 6), 255, "u1")
    layers[0, 1, 0], layers[1, 1, :, 0] = 0, 0
    paths = []
    for name, layer in zip("ab", layers, strict=True):
        paths.append(make_volume(tmp_path / f"{name}.zarr", layer, axes="cyx"))
        zarr.open_array(paths[-1], mode="a").attrs["band_names"] = ["gray", "alpha"]
    volume = open_volume("+".join(paths))
    assert volume.channels == 2
    measured = volume.validity.read(Box.of_shape((5, 6)))[0]
    assert np.array_equal(measured, (layers[:, 1] > 0).all(axis=0))
    assert volume.taken_whole().validity is None
