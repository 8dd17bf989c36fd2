"""Alpha channels of images: where alpha is 0 nothing was measured, and alpha is none of a network's channels."""

import pickle

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_stored, open_volume
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.samples import measured

SIDE = (48, 40)
COLOURS = np.random.default_rng(0).integers(1, 255, (3, *SIDE), np.uint8)
NOWHERE = np.zeros(SIDE, bool)
NOWHERE[5:31, 3:22] = NOWHERE[40, 39] = True
ALPHA = np.where(NOWHERE, 0, np.random.default_rng(1).integers(1, 255, SIDE)).astype(np.uint8)
RGBA = np.concatenate([np.where(NOWHERE, 250, COLOURS), ALPHA[None]]).astype(np.uint8)
"""What lies under a transparent pixel is a bright value that must not count."""


def zarr_image(path, image=RGBA, names=("red", "green", "blue", "Alpha"), said="omero", axes="cyx", **options):
    made = make_volume(path, image, axes=axes, ome="0.4", **options)
    group = zarr.open_group(made, mode="r+")
    if said == "omero":
        group.attrs["omero"] = {"channels": [{"label": name} for name in names]}
    if said == "array":
        group["0"].attrs["color_interp"] = list(names)
    return made


def tiff_image(path, image=RGBA, *, planar=False, **options):
    tifffile = pytest.importorskip("tifffile")
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], **options}
    if not planar:
        image = np.moveaxis(image, -3, -1)
    tifffile.imwrite(path, image, planarconfig="separate" if planar else "contig", **options)
    return str(path)


def probabilities(folder, path, *more, name="out", channels=3):
    model = fake_model(folder, name=f"rgb{channels}", axes="yx", channels_in=channels, channels_out=channels)
    out = folder / f"{name}-out.zarr"
    arguments = ("--in", path, "--model", model, "--out", str(out), "--output", "logits", "--overwrite")
    ran = cli("run", *arguments, *more)
    assert ran.code == 0, ran.err
    return result_of(out), ran.err


WAYS = {
    "interleaved": tiff_image,
    "separate": lambda path: tiff_image(path, planar=True),
    "premultiplied": lambda path: tiff_image(path, extrasamples=["assocalpha"]),
    "packed": lambda path: tiff_image(path, compression="zlib", tile=(16, 16)),
    "wide": lambda path: tiff_image(path, RGBA.astype(np.uint16) * 257),
    "omero": lambda path: zarr_image(path.with_suffix(".zarr")),
    "one chunk": lambda path: zarr_image(path.with_suffix(".zarr"), chunks=RGBA.shape),
    "array": lambda path: zarr_image(path.with_suffix(".zarr"), said="array"),
    "alpha first": lambda path: zarr_image(
        path.with_suffix(".zarr"), np.roll(RGBA, 1, 0), ("alpha", "red", "green", "blue")
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_alpha_leaves_out_is_out_of_statistics_and_result(tmp_path, way):
    path = WAYS[way](tmp_path / "image.tif")
    volume = open_volume(path)
    assert volume.channels == 3
    wanted = np.where(NOWHERE, 250, COLOURS).astype(np.int64) * (257 if way == "wide" else 1)
    assert np.array_equal(volume.read(Box.of_shape(SIDE)), wanted)
    for channel, values in enumerate(measured(volume)):
        assert np.array_equal(np.sort(values), np.sort(wanted[channel][~NOWHERE]))
    found, told = probabilities(tmp_path, path, "--outside", "-7")
    assert np.array_equal(found == -7, np.broadcast_to(NOWHERE, found.shape))
    assert np.allclose(found[:, ~NOWHERE], wanted[:, ~NOWHERE], rtol=1e-6)
    assert told.count("is alpha and not read; where it is 0, nothing was measured (--nodata none: all was)") == 1


def test_statistics_of_a_z_score_and_of_percentiles_leave_it_out(tmp_path):
    path = tiff_image(tmp_path / "image.tif")
    for normalize, wanted in (
        ("zscore", lambda c: (c - c[~NOWHERE].mean()) / c[~NOWHERE].std()),
        ("percentile:1,99", None),
    ):
        found, _ = probabilities(tmp_path, path, "--normalize", normalize)
        bare = tiff_image(tmp_path / "bare.tif", np.where(NOWHERE, 0, RGBA), extrasamples=["unspecified"])
        twin, _ = probabilities(
            tmp_path, bare, "--normalize", normalize, "--nodata", "0", "--input-channels", "0,1,2", name="twin"
        )
        assert np.array_equal(found, twin)  # the same voxels left out by a value
        if wanted:
            colours = COLOURS.astype(np.float64)
            for channel in range(3):
                inside = found[channel][~NOWHERE]
                assert np.allclose(inside, wanted(colours[channel])[~NOWHERE], atol=1e-3)


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_opaque_alpha_changes_no_byte_and_none_is_taken_for_measured_where_asked(tmp_path, kind):
    opaque = np.concatenate([COLOURS, np.full((1, *SIDE), 255, np.uint8)])
    make = tiff_image if kind == "tiff" else lambda path, image: zarr_image(path.with_suffix(".zarr"), image)
    plain, _ = probabilities(tmp_path, make_volume(tmp_path / "plain.zarr", COLOURS, axes="cyx"), name="plain")
    found, _ = probabilities(tmp_path, make(tmp_path / "opaque.tif", opaque))
    assert np.array_equal(found, plain)
    whole, _ = probabilities(tmp_path, make(tmp_path / "image.tif", RGBA), "--nodata", "none", name="whole")
    assert np.allclose(whole, RGBA[:3], rtol=1e-6)


def pages_image(folder):
    """Two planes, the second with its alpha upside down; and where they were not measured."""
    tifffile = pytest.importorskip("tifffile")
    pages = np.stack([RGBA, np.concatenate([COLOURS, ALPHA[None, ::-1]])])
    path, options = str(folder / "pages.ome.tif"), {"photometric": "rgb", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(path, np.moveaxis(pages, 1, -1), metadata={"axes": "ZYXS"}, **options)
    return path, np.stack([NOWHERE, NOWHERE[::-1]]), pages


def test_pages_time_points_and_masks_besides(tmp_path):
    path, nowhere, pages = pages_image(tmp_path)
    tissue = np.zeros((2, *SIDE), np.uint8)
    tissue[:, 10:, 10:] = 1
    mask = make_volume(tmp_path / "tissue.zarr", tissue)
    for more in ((), ("--mask", mask)):
        found, _ = probabilities(tmp_path, path, "--outside", "-7", *more)
        wanted = nowhere | (tissue == 0) if more else nowhere
        assert np.array_equal(found == -7, np.broadcast_to(wanted, found.shape)), more
    scans = zarr_image(tmp_path / "t.zarr", pages, axes="tcyx")
    found, _ = probabilities(tmp_path, scans, "--timepoint", "1", "--outside", "-7")
    assert np.array_equal(found[0] == -7, NOWHERE[::-1])


@pytest.mark.parametrize("grid", ["scan", "model"])
def test_on_the_grid_of_the_network_it_is_left_out_before_interpolating(tmp_path, grid):
    path = zarr_image(tmp_path / "scan.zarr", scale=(1, 1, 1), unit="micrometer")
    spec = {"axes": "yx", "channels_in": 3, "channels_out": 3, "spacing": [2.0, 2.0], "spacing_unit": "micrometer"}
    how = {"image": 1, "output": 1, "apart": "never"}
    model, out = fake_model(tmp_path, name="net", **spec, resampling=how), str(tmp_path / "o.zarr")
    options = ("--output", "logits", "--outside", "-700", "--normalize", "fixed:mean=100,std=1", "--grid", grid)
    ran = cli("run", "--in", path, "--model", model, "--out", out, *options)
    assert ran.code == 0, ran.err
    found = result_of(out)
    # the bright pixels under it are 150 once they are normalised, colours -99 to 154; what is void is 0
    step = 1 if grid == "scan" else 2
    assert found.shape == (3, *(n // step for n in SIDE))
    if grid == "scan":
        assert np.array_equal(found == -700, np.broadcast_to(NOWHERE, found.shape))
    bare = np.where(NOWHERE, 100, COLOURS).astype(np.uint8)
    twin = cli(
        "run", "--in", make_volume(tmp_path / "b.zarr", bare, axes="cyx", ome="0.4", scale=(1, 1, 1), unit="micrometer"),
        "--model", model, "--out", str(tmp_path / "t.zarr"), "--output", "logits", *options[4:],
    )  # fmt: skip
    assert twin.code == 0, twin.err
    kept = found != -700
    assert np.allclose(found[kept], result_of(tmp_path / "t.zarr")[kept], atol=1e-3)


@pytest.mark.slow
def test_workers_leave_out_the_same(tmp_path):
    path, nowhere, _ = pages_image(tmp_path)
    found, _ = probabilities(tmp_path, path, "--outside", "-7", "--workers", "2")
    assert np.array_equal(found == -7, np.broadcast_to(nowhere, found.shape))


def test_an_image_of_nothing_but_transparent_pixels_is_all_outside(tmp_path):
    path = tiff_image(tmp_path / "image.tif", np.concatenate([COLOURS, np.zeros((1, *SIDE), np.uint8)]))
    found, _ = probabilities(tmp_path, path, "--outside", "9")
    assert (found == 9).all()


def test_a_network_of_as_many_channels_reads_alpha_like_the_others(tmp_path):
    for path in (tiff_image(tmp_path / "image.tif"), zarr_image(tmp_path / "image.zarr")):
        found, told = probabilities(tmp_path, path, channels=4)
        assert np.allclose(found, RGBA, rtol=1e-6)
        assert "channel 3 is alpha, as the file says, and is read like the others" in told
        asked, _ = probabilities(tmp_path, path, "--input-channels", "3,0,1", name="asked")
        assert np.allclose(asked, RGBA[[3, 0, 1]], rtol=1e-6)
        two, _ = probabilities(tmp_path, path, "--input-channels", "2,0", "--outside", "-7", name="two", channels=2)
        assert np.array_equal(two[0] == -7, NOWHERE)


@pytest.mark.parametrize("names", [("red", "green", "blue", "alpha tubulin"), ("DAPI", "alpha-SMA", "GFP", "x"), None])
def test_what_does_not_say_alpha_is_none_and_one_channel_too_many_is_asked_for(tmp_path, names):
    path = zarr_image(tmp_path / "image.zarr", names=names, said="omero" if names else "nothing")
    assert (open_volume(path).alpha, open_volume(path).channels) == (None, 4)
    colours = fake_model(tmp_path, name="rgb", axes="yx", channels_in=3)
    refused = cli("run", "--in", path, "--model", colours)
    assert (refused.code, "leave it out with --input-channels 0,1,2;" in refused.error) == (3, True)
    assert cli("run", "--in", path, "--input-channels", "0,1,2", "--model", colours).code == 0


def test_samples_without_a_kind_are_asked_for(tmp_path):
    path = tiff_image(tmp_path / "image.tif", extrasamples=["unspecified"])
    refused = cli("run", "--in", path, "--model", fake_model(tmp_path, name="rgb", axes="yx", channels_in=3))
    assert (refused.code, "has 4 channels" in refused.error) == (3, True)
    assert "if the last one is alpha, leave it out with --input-channels 0,1,2;" in refused.error


def test_two_alphas_settle_nothing(tmp_path):
    image = np.concatenate([RGBA, ALPHA[None]])
    path = tiff_image(tmp_path / "image.tif", image, extrasamples=["assocalpha", "unassalpha"])
    volume = open_volume(path)
    assert (volume.alpha, volume.channels) == (None, 5)
    assert any("makes 3 and 4 alpha" in note for note in volume.notes)


def test_other_processes_read_the_same_channels_and_what_is_stored_keeps_alpha(tmp_path):
    path = tiff_image(tmp_path / "image.tif", compression="zlib")
    volume = open_volume(path, pick=Pick(channels=("2", 0)))
    other = pickle.loads(pickle.dumps(volume))
    box = Box((0, 0), SIDE)
    assert np.array_equal(other.read(box), RGBA[[2, 0]])
    assert np.array_equal(other.validity.read(box)[0], ALPHA)
    assert pickle.loads(pickle.dumps(volume.taken_whole())).validity is None
    assert open_stored(path).channels == 4
    out = str(tmp_path / "copy.zarr")
    assert cli("convert", path, out).code == 0
    assert open_stored(out).channels == 4
