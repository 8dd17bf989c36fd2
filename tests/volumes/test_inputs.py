"""Every volume that can be read gives what it should: the identity network returns it, whatever its shape, type, layout
and format."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.volumes import fake_model, identity, make_volume, result_of
from unet_engine.errors import InputError
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick

RNG = np.random.default_rng(1)


def noise(shape, dtype="uint8"):
    if dtype == "bool":
        return RNG.integers(0, 2, shape).astype(bool)
    if np.dtype(dtype).kind == "f":
        return RNG.normal(0, 100, shape).astype(dtype)
    low = 0 if np.dtype(dtype).kind == "u" else -100
    return RNG.integers(low, 100, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 30, 5), (1, 1, 1), (1, 20, 9), (7, 1, 21), (13, 17, 19)])
def test_any_shape(tmp_path, shape):
    array = noise(shape)
    np.testing.assert_array_equal(identity(make_volume(tmp_path / "v.zarr", array), tmp_path)[0], array)


@pytest.mark.parametrize("padding", ["reflect", "constant", "edge"])
def test_padding_never_shows_in_a_pointwise_network(tmp_path, padding):
    array = noise((3, 9, 5))
    got = identity(make_volume(tmp_path / "v.zarr", array), tmp_path, padding=padding)
    np.testing.assert_array_equal(got[0], array)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"],
)
def test_every_number_type(tmp_path, dtype, zarr_format):
    array = noise((9, 10, 11), dtype)
    got = identity(make_volume(tmp_path / "v.zarr", array, zarr_format=zarr_format), tmp_path)
    np.testing.assert_array_equal(got[0], array.astype(np.float32))


@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_zarr_v2_big_endian_and_fortran_order(tmp_path, dtype, order):
    array = noise((9, 10, 11), dtype)
    path = make_volume(tmp_path / "v.zarr", array, zarr_format=2, order=order)
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array.astype(np.float32))


def test_zarr_v3_big_endian(tmp_path):
    array = noise((9, 10, 11), "uint16")
    path = make_volume(tmp_path / "v.zarr", array, serializer=zarr.codecs.BytesCodec(endian="big"))
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


def test_zarr_v2_fortran_order_little_endian(tmp_path):
    array = noise((9, 10, 11), "uint16")
    path = make_volume(tmp_path / "v.zarr", array, zarr_format=2, order="F")
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


def test_zarr_v2_with_slashes_and_without_fill_value(tmp_path):
    array = noise((9, 10, 11), "int16")
    path = make_volume(
        tmp_path / "v.zarr", array, zarr_format=2, fill_value=None, chunk_key_encoding={"name": "v2", "separator": "/"}
    )
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


def test_v2_codecs_that_only_python_has(tmp_path):
    import numcodecs

    array = noise((9, 10, 11), "int16")
    path = make_volume(
        tmp_path / "v.zarr", array, zarr_format=2, filters=[numcodecs.Delta("i2")], compressors=[numcodecs.LZMA()]
    )
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


def test_sharded(tmp_path):
    array = noise((20, 33, 17), "uint16")
    path = make_volume(tmp_path / "v.zarr", array, shards=(8, 16, 16), chunks=(4, 8, 8))
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_missing_chunks_read_as_the_fill_value(tmp_path, zarr_format):
    array = noise((20, 20, 20), "uint16") + 1
    path = make_volume(tmp_path / "v.zarr", array, zarr_format=zarr_format, fill_value=7)
    (tmp_path / "v.zarr" / ("1.0.1" if zarr_format == 2 else "c/1/0/1")).unlink()
    array[8:16, 0:8, 8:16] = 7
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


def test_no_chunk_at_all(tmp_path):
    path = make_volume(tmp_path / "v.zarr", np.full((9, 9, 9), 3, np.int16), fill_value=3)
    assert not [p for p in Path(path).rglob("*") if p.is_file() and p.name != "zarr.json"]
    np.testing.assert_array_equal(identity(path, tmp_path)[0], np.full((9, 9, 9), 3))


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yzx", "yxz"])
def test_spatial_axes_in_any_order_stay_in_it(tmp_path, axes):
    array = noise((9, 14, 20))
    path = make_volume(tmp_path / "v.zarr", array, axes=axes)
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)
    assert zarr.open_array(tmp_path / "out.zarr" / "0").metadata.dimension_names == ("c", *axes)


@pytest.mark.parametrize("axes", ["czyx", "zyxc", "xyzc", "zcyx"])
@pytest.mark.parametrize("output", ["labels", "logits"])
def test_channels_may_come_first_last_or_between(tmp_path, axes, output):
    array = noise((2, 9, 14, 11))  # as czyx
    model = fake_model(tmp_path, channels_in=2, channels_out=2)
    path = make_volume(tmp_path / "v.zarr", array.transpose(["czyx".index(a) for a in axes]), axes=axes)
    got = identity(path, tmp_path, model=model, output=output)
    spatial = axes.replace("c", "")
    wanted = array if output == "logits" else np.argmax(array, axis=0)[None]
    wanted = wanted.transpose([0, *("czyx".index(a) for a in spatial)])
    np.testing.assert_array_equal(got, wanted if output == "logits" else wanted[0])


@pytest.mark.parametrize(
    ("shape", "colours"), [((40, 50, 3), "yxc"), ((33, 40, 50, 4), "zyxc"), ((32, 32, 32, 32, 3), "tzyxc")]
)
def test_what_may_be_colours_is_asked_for_and_not_taken_for_planes(tmp_path, shape, colours):
    """A picture whose axes nobody names was a stack of planes that are three pixels wide, without a word."""
    path, plain = str(tmp_path / "picture.npy"), {3: "zyx", 4: "czyx", 5: "tczyx"}[len(shape)]
    np.save(path, np.ones(shape, np.uint8))
    with pytest.raises(InputError, match=f"may be colours; say --axes {colours}, or --axes {plain} where it is x"):
        open_volume(path)
    first = Pick(timepoint=0)
    assert open_volume(path, colours, first).channels == shape[-1]
    assert open_volume(path, plain, first).shape[-1] == shape[-1]


def test_axes_can_be_named_by_the_user(tmp_path):
    array = noise((9, 14, 20, 2))
    path = make_volume(tmp_path / "v.zarr", array)
    got = identity(path, tmp_path, axes="xyzc", model=fake_model(tmp_path, channels_in=2, channels_out=2))
    np.testing.assert_array_equal(got, np.moveaxis(array, -1, 0))


def test_one_time_point(tmp_path):
    array = noise((1, 1, 9, 14, 20))
    path = make_volume(tmp_path / "v.zarr", array, axes="tczyx", ome="0.5")
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array[0, 0])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_ome_zarr_keeps_scale_translation_and_unit(tmp_path, version, axes):
    array = noise((9, 14, 20))
    path = make_volume(
        tmp_path / "v.zarr",
        array,
        axes=axes,
        ome=version,
        scale=(2.0, 0.5, 0.25),
        translation=(10.0, 20.0, 30.0),
        unit="micrometer",
    )
    got = identity(path, tmp_path, roi="0:8,2:14,4:")
    names = [a["name"] for a in _ome(tmp_path)["axes"]]
    assert names == ["c", *axes]
    assert {a.get("unit") for a in _ome(tmp_path)["axes"][1:]} == {"micrometer"}
    scale, move = (t[t["type"]] for t in _ome(tmp_path)["datasets"][0]["coordinateTransformations"])
    assert scale == [1.0, 2.0, 0.5, 0.25]
    begin = {"zyx": (0, 2, 4), "xyz": (4, 2, 0)}[axes]  # --roi is in z, y, x
    stop = {"zyx": (8, 14, 20), "xyz": (9, 14, 8)}[axes]
    assert move == [0.0, *(t + b * s for t, b, s in zip((10.0, 20.0, 30.0), begin, (2.0, 0.5, 0.25), strict=True))]
    np.testing.assert_array_equal(got[0], array[tuple(map(slice, begin, stop))])


def _ome(folder):
    return zarr.open_group(folder / "out.zarr", mode="r").attrs["ome"]["multiscales"][0]


def test_scale_of_the_whole_multiscales_counts_too(tmp_path):
    path = make_volume(tmp_path / "v.zarr", noise((9, 9, 9)), axes="zyx", ome="0.5", scale=(1.0, 2.0, 3.0))
    group = zarr.open_group(path)
    ome = group.attrs["ome"]
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [2.0, 2.0, 2.0]}]
    group.attrs["ome"] = ome
    identity(path, tmp_path)
    assert _ome(tmp_path)["datasets"][0]["coordinateTransformations"][0]["scale"] == [1.0, 2.0, 4.0, 6.0]


def test_array_inside_an_ome_group_is_taken_by_name(tmp_path):
    array = noise((9, 9, 9))
    path = make_volume(tmp_path / "v.zarr", array, axes="zyx", ome="0.4")
    np.testing.assert_array_equal(identity(f"{path}/0", tmp_path)[0], array)


@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_2d_model_runs_plane_by_plane(tmp_path, axes):
    array = noise((5, 30, 21) if axes == "zyx" else (21, 30, 5))
    path = make_volume(tmp_path / "v.zarr", array, axes=axes)
    got = identity(path, tmp_path, model=fake_model(tmp_path, axes="yx"))
    np.testing.assert_array_equal(got[0], array)


def test_2d_volume(tmp_path):
    array = noise((33, 21))
    got = identity(make_volume(tmp_path / "v.zarr", array), tmp_path, model=fake_model(tmp_path, axes="yx"))
    np.testing.assert_array_equal(got[0], array)


def test_valid_network(tmp_path):
    array = noise((9, 17, 21))
    model = fake_model(tmp_path, margin=(2, 2, 2), window=(12, 12, 12))
    np.testing.assert_array_equal(identity(make_volume(tmp_path / "v.zarr", array), tmp_path, model=model)[0], array)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_overlapping_windows_add_up_to_the_input(tmp_path, blend):
    array = noise((13, 17, 40), "float32")
    got = identity(make_volume(tmp_path / "v.zarr", array), tmp_path, blend=blend, overlap=0.6)
    np.testing.assert_allclose(got[0], array, rtol=2e-6, atol=2e-4)


def test_nonfinite_voxels_are_replaced_when_asked(tmp_path):
    array = noise((9, 10, 21), "float32")
    array[2, 3, 4], array[8, 9, 20], array[0, 0, 0] = np.nan, np.inf, -np.inf
    got = identity(make_volume(tmp_path / "v.zarr", array), tmp_path, replace_nonfinite=-1.0)
    np.testing.assert_array_equal(got[0], np.where(np.isfinite(array), array, np.float32(-1)))


def test_fill_value_nan_is_replaced_when_asked(tmp_path):
    array = noise((16, 16, 16), "float32")
    path = make_volume(tmp_path / "v.zarr", array, fill_value=np.nan)
    (tmp_path / "v.zarr" / "c/1/0/1").unlink()
    array[8:, :8, 8:] = 0
    np.testing.assert_array_equal(identity(path, tmp_path, replace_nonfinite=0.0)[0], array)


def test_normalisation_is_that_of_the_whole_volume(tmp_path):
    array = noise((16, 16, 32), "uint16")
    got = identity(make_volume(tmp_path / "v.zarr", array), tmp_path, normalize="range:10,60")
    np.testing.assert_allclose(got[0], (array - 10.0) / 50, rtol=1e-6, atol=1e-7)
    got = identity(make_volume(tmp_path / "w.zarr", array), tmp_path, normalize="zscore", overwrite=True)
    np.testing.assert_allclose(got[0], (array - array.mean()) / array.std(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", ["{}/", "./{}", "link.zarr", "{}/../{}"])
def test_paths_in_any_spelling(tmp_path, spelling):
    array = noise((9, 9, 9))
    name = "a scan with spaces, ü.zarr"
    make_volume(tmp_path / name, array)
    (tmp_path / "link.zarr").symlink_to(tmp_path / name)
    got = identity(spelling.format(name, name), tmp_path)
    np.testing.assert_array_equal(got[0], array)


def test_parents_of_the_output_are_made(tmp_path):
    array = noise((9, 9, 9))
    got = identity(make_volume(tmp_path / "v.zarr", array), tmp_path, out=str(tmp_path / "a/b c/out.zarr/"))
    np.testing.assert_array_equal(got[0], array)


def test_output_lies_beside_the_input_by_default(tmp_path):
    path = make_volume(tmp_path / "scan.zarr", noise((9, 9, 9)), axes="zyx", ome="0.5")
    result = unet_engine.run(f"{path}/0", model=fake_model(tmp_path, name="cells"))
    assert result.out == str(tmp_path / "scan-cells.zarr")


def test_the_input_is_not_touched(tmp_path):
    path = make_volume(tmp_path / "v.zarr", noise((9, 9, 9)))
    shutil.copytree(path, tmp_path / "before.zarr")
    identity(path, tmp_path)
    files = {p.relative_to(path): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}
    assert files == {
        p.relative_to(tmp_path / "before.zarr"): p.read_bytes()
        for p in (tmp_path / "before.zarr").rglob("*")
        if p.is_file()
    }


def test_labels_of_one_channel(tmp_path):
    array = noise((9, 9, 9), "int16")
    path = make_volume(tmp_path / "v.zarr", array)
    result = unet_engine.run(path, model=fake_model(tmp_path, activation="sigmoid"), out="labels.zarr", blend="crop")
    np.testing.assert_array_equal(result_of(result.out), array > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2},
        {"zarr_format": 2, "order": "F", "dtype": ">u2"},
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"zarr_format": 3},
        {"zarr_format": 3, "chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"shards": (16, 16, 16), "chunks": (8, 8, 8)},
        {"axes": "xzy"},
    ],
)
def test_what_is_not_stored_is_not_inferred(tmp_path, options):
    """Missing chunks are found in every layout, and the result is the one of a volume full of zeros there."""
    array = np.zeros((50, 24, 20), "u2")
    array[:9, 3:9, 4:] = 5
    path = make_volume(tmp_path / "v.zarr", array, **options)
    model = fake_model(tmp_path, empty=[0.0])
    result = unet_engine.run(path, model=model, out=str(tmp_path / "out.zarr"), output="logits", blend="crop")
    np.testing.assert_array_equal(result_of(result.out)[0], array)
    assert result.windows_skipped > result.windows_planned / 2
    assert result.windows_skipped + result.windows_inferred == result.windows_planned
    assert result.bytes_read < array.nbytes
