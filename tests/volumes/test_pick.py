"""Which image, level, time point and channels are read: by name or number, and listed where nothing says it."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.shares import share
from support.volumes import fake_model, identity, make_volume, result_of
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.collection import located
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick

RNG = np.random.default_rng(7)
TCZYX = RNG.integers(1, 250, (3, 4, 9, 10, 12), np.uint8)
SHARED = Path(__file__).parents[2].parent / "shared"


def image(path, array, version="0.5", labels=(), levels=1):
    """An OME-Zarr image with `levels`, each half as wide as the last."""
    make_volume(
        path,
        array,
        ome=version,
        axes="tczyx"[-array.ndim :],
        scale=(1.0,) * array.ndim,
        chunks=(1,) * (array.ndim - 3) + (8,) * 3,
    )
    group = zarr.open_group(path, mode="r+")
    said = dict(group.attrs)
    ome = said.get("ome", said)
    for n in range(1, levels):
        smaller = array[..., :: 2**n]
        group.create_array(str(n), data=smaller)
        move = {"type": "scale", "scale": [*[1.0] * (array.ndim - 1), 2.0**n]}
        ome["multiscales"][0]["datasets"].append({"path": str(n), "coordinateTransformations": [move]})
    if labels:
        ome["omero"] = {"channels": [{"label": label} for label in labels]}
    group.attrs.put(said)
    return str(path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_time_points_and_channels(tmp_path, version):
    path = image(tmp_path / "a.zarr", TCZYX, version, labels=("DAPI", "GFP", "1", "GFP"))
    with pytest.raises(InputError, match=r"has 3 time points; name one, e\.g\. --timepoint 0"):
        open_volume(path)
    volume = open_volume(path, None, Pick(2, ("3", "DAPI", "1")))
    assert volume.channels == 3  # the channel that is called 1 is the third
    wanted = TCZYX[2][[3, 0, 2]]
    assert np.array_equal(volume.read(Box.of_shape((9, 10, 12))), wanted)
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).read(Box((2, 3, 4), (5, 6, 7))), wanted[:, 2:5, 3:6, 4:7])
    for pick, says in (
        (Pick(3), "--timepoint 3: .* has 3; count them from 0"),
        (Pick(0, ("GFP",)), "several are called so"),
        (Pick(0, ("RFP",)), "there is none in .*; it has 0 to 3, 'DAPI'"),
        (Pick(0, ("4",)), "there is none"),
    ):
        with pytest.raises(InputError, match=says):
            open_volume(path, None, pick)


@pytest.mark.parametrize("workers", share([None, 2]))
def test_a_run_on_a_time_point_and_a_channel(tmp_path, workers):
    path = image(tmp_path / "a.zarr", TCZYX, labels=("a", "b", "c", "d"))
    options = {"timepoint": 1, "input_channels": "c"}
    found = identity(path, tmp_path, **options, workers=workers)
    assert np.array_equal(found[0], TCZYX[1, 2])
    with pytest.raises(unet_engine.errors.ResumeError):
        identity(path, tmp_path, timepoint=2, input_channels="c", resume=True)


def test_only_what_is_read_counts_as_stored(tmp_path):
    path = image(tmp_path / "a.zarr", TCZYX)
    for t in (0, 2):
        shutil.rmtree(tmp_path / f"a.zarr/0/c/{t}", ignore_errors=True)
    box = Box.of_shape((9, 10, 12))
    assert [open_volume(path, None, Pick(t)).has_data(box) for t in range(3)] == [False, True, False]


def test_npy_and_other_files(tmp_path):
    np.save(tmp_path / "a.npy", TCZYX)
    volume = open_volume(str(tmp_path / "a.npy"), None, Pick(1, ("2", "0")))
    other = pickle.loads(pickle.dumps(volume))
    for one in (volume, other):
        assert np.array_equal(one.read(Box((0, 1, 2), (9, 8, 7))), TCZYX[1, [2, 0], :, 1:8, 2:7])


def test_levels(tmp_path):
    path = image(tmp_path / "a.zarr", TCZYX[0, 0], levels=3)
    model = fake_model(tmp_path)
    for level in range(3):
        out = str(tmp_path / f"{level}.zarr")
        unet_engine.run(path, model=model, level=level, output="logits", blend="crop", out=out)
        assert np.array_equal(result_of(out)[0], TCZYX[0, 0, :, :, :: 2**level])
        assert open_volume(out).spacing == (1, 1, 2**level)
    with pytest.raises(InputError, match=r"--level 3: .* has 3 levels \(0, 1, 2\)"):
        unet_engine.run(path, model=model, level=3)
    np.save(tmp_path / "a.npy", TCZYX[0, 0])
    with pytest.raises(InputError, match=r"--level: .* is no Zarr group"):
        unet_engine.run(str(tmp_path / "a.npy"), model=model, level=1)


def collection(path, kind, version):
    """Two images, and what says so."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    names = ["A/1/0", "B/2/0"] if kind == "plate" else ["0", "1"]
    for n, name in enumerate(names):
        image(f"{path}/{name}", TCZYX[0, n], version)
    if kind == "plate":
        said = {"plate": {"wells": [{"path": "A/1"}, {"path": "B/2"}, {"path": "C/3"}]}}
        for well in ("A/1", "B/2"):
            inner = {"well": {"images": [{"path": "0"}]}}
            zarr.open_group(f"{path}/{well}", mode="a", zarr_format=group.metadata.zarr_format).attrs.put(
                {"ome": inner} if version == "0.5" else inner
            )
    elif kind == "well":
        said = {"well": {"images": [{"path": "0"}, {"path": "1"}]}}
    else:
        said = {"bioformats2raw.layout": 3}
    group.attrs.put({"ome": said} if version == "0.5" else said)
    return str(path), names


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["plate", "well", "bioformats2raw"])
def test_images_of_a_collection(tmp_path, kind, version):
    path, names = collection(tmp_path / "a.zarr", kind, version)
    with pytest.raises(InputError, match=f"holds 2 images: {names[0]}, {names[1]}; name one, e.g. --image {names[0]}"):
        open_volume(path)
    model = fake_model(tmp_path)
    for given in ("1", names[1]):
        out = str(tmp_path / "out.zarr")
        options = {"level": 0} if given == "1" else {}
        unet_engine.run(
            path, model=model, image=given, output="logits", blend="crop", out=out, overwrite=True, **options
        )
        assert np.array_equal(result_of(out)[0], TCZYX[0, 1])
    with pytest.raises(InputError, match=f"--image 'no': .* has {names[0]}, {names[1]}"):
        unet_engine.run(path, model=model, image="no")
    with pytest.raises(InputError, match=f"--image all: {path} has 2 images, .* e.g. --image {names[0]}, from 0 by"):
        located(path, "all", None)


def test_the_only_image_needs_no_name(tmp_path):
    path, _ = collection(tmp_path / "a.zarr", "bioformats2raw", "0.5")
    shutil.rmtree(tmp_path / "a.zarr/1")
    volume = open_volume(path)
    assert (volume.axes, volume.spacing) == ("zyx", (1, 1, 1))
    assert np.array_equal(volume.read(Box.of_shape((9, 10, 12)))[0], TCZYX[0, 0])


def test_info_shows_time_points_and_names(tmp_path):
    path = image(tmp_path / "a.zarr", TCZYX, labels=("a", "b", "c", "d"))
    told = cli("info", path, "--json").json
    assert (told["timepoints"], told["channel_names"]) == (3, ["a", "b", "c", "d"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared files here")
def test_real_files():
    several = str(SHARED / "files/omezarr/bioformats2raw_testing/bf2raw_dataset_v5.ome.zarr")
    with pytest.raises(InputError, match="holds 2 images: 0, 1; name one"):
        open_volume(several)
    assert open_volume(located(several, "1", 0), None, Pick(0)).shape
    volume = open_volume(str(SHARED / "files/ngio/v04/images/test_image_tczyx.zarr"), None, Pick(0))
    assert volume.read(Box.of_shape(volume.shape)).shape == (volume.channels, *volume.shape)
