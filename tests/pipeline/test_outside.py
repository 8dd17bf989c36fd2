"""What is written outside the mask and where nothing was measured: exact per voxel, the same from every executor."""

import base64
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

import unet_engine
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError, InputError, OutputError, SettingsError
from unet_engine.plan.box import Box
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.volumes import nodata
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.mask import open_mask

SHAPE = (24, 30, 28)
RNG = np.random.default_rng(8)


def ball(shape=SHAPE):
    """A ball, and one voxel far from it."""
    z, y, x = np.indices(shape)
    inside = (z - 8) ** 2 + (y - 9) ** 2 + (x - 9) ** 2 < 49
    inside[20, 26, 25] = True
    return inside


@pytest.fixture
def scan(tmp_path):
    image = RNG.normal(size=SHAPE).astype(np.float32)
    return make_volume(tmp_path / "scan.zarr", image, axes="zyx")


@pytest.fixture
def mask(tmp_path):
    return make_volume(tmp_path / "mask.zarr", ball().astype(np.uint8), axes="zyx")


def model(folder, **spec):
    return fake_model(folder, **{"channels_out": 2, "activation": "softmax", **spec})


class Runs:
    """Runs of one volume, each to a place of its own."""

    def __init__(self, folder, volume):
        self.folder, self.volume, self.count = folder, volume, 0

    def result(self, **options):
        self.count += 1
        options = {"out": str(self.folder / f"{self.count}.zarr"), **options}
        if "model" not in options:
            options["model"] = model(self.folder)
        return unet_engine.run(self.volume, **options)

    def __call__(self, **options):
        return result_of(self.result(**options).out)


@pytest.fixture
def run(tmp_path, scan):
    return Runs(tmp_path, scan)


@pytest.mark.parametrize(
    ("margin", "blend", "device"),
    share(
        [
            (0, "gaussian", "cpu"), (2, "gaussian", "simulated"), (0, "crop", "simulated"), (2, "crop", "cpu"),
            (0, "gaussian", "simulated"), (2, "crop", "simulated"), (2, "gaussian", "cpu"), (0, "crop", "cpu"),
        ], quick=3,
    ),
)  # fmt: skip
def test_voxels_inside_are_those_of_a_run_without_mask_and_the_others_are_background(run, mask, device, blend, margin):
    """Any model: its spec names nothing for empty windows. The identity's two channels give 0; a sigmoid gives 1."""
    net = model(run.folder, channels_out=1, activation="sigmoid", margin=(margin,) * 3)
    options = {"model": net, "device": device, "blend": blend}
    for output, outside in (("labels", 0), ("probabilities", 0), ("logits", 0)):
        whole = run(output=output, **options)
        found = run(output=output, mask=mask, **options)
        np.testing.assert_array_equal(found[..., ball()], whole[..., ball()])
        assert np.all(found[..., ~ball()] == outside)
        assert np.any(whole[..., ~ball()] != outside)


def test_windows_that_reach_no_voxel_inside_are_not_inferred(run, mask):
    whole, found = run.result(), run.result(mask=mask)
    assert found.windows_inferred < whole.windows_inferred / 3
    assert found.windows_inferred + found.windows_skipped == found.windows_planned
    assert found.bytes_read < whole.bytes_read


@pytest.mark.parametrize(
    ("options", "value", "stored"),
    [
        ({"output": "labels"}, 255, 255),
        ({"output": "labels"}, 300, 300),
        ({"output": "probabilities"}, 128, 128),
        ({"output": "probabilities", "dtype": "float32"}, -1, -1),
        ({"output": "logits"}, -7.5, -7.5),
        ({"output": "logits", "dtype": "float16"}, "nan", np.nan),
    ],
)
def test_the_value_is_the_users(run, mask, options, value, stored):
    found, whole = run(mask=mask, outside=value, **options), run(**options)
    np.testing.assert_array_equal(found[..., ball()], whole[..., ball()])
    np.testing.assert_array_equal(np.unique(found[..., ~ball()]), [stored])


def test_the_default_is_what_the_model_names_for_empty_windows(run, mask):
    net = model(run.folder, empty=[-2.0, 3.0])
    assert np.all(run(model=net, mask=mask)[~ball()] == 1)
    found = run(model=net, mask=mask, output="logits")
    np.testing.assert_array_equal(found[:, ~ball()].T, [[-2, 3]] * np.count_nonzero(~ball()))
    kept = run(model=net, mask=mask, outside="keep", output="logits")
    np.testing.assert_array_equal(found[:, ball()], kept[:, ball()])
    assert len(np.unique(kept[:, ~ball()])) > 100


@pytest.mark.slow
def test_all_executors_parts_and_resumes_give_the_same_bytes(run, mask, monkeypatch):
    net = model(run.folder, empty=[1.0, -1.0])
    options = {"model": net, "mask": mask, "output": "probabilities", "outside": 9, "nodata": "0.5"}
    expected = run(**options)
    assert np.all(expected[:, ~ball()] == 9)
    for more in ({"device": "simulated", "batch": 3}, {"device": "fake:0,fake:1"}, {"workers": 2}):
        np.testing.assert_array_equal(run(**options, **more), expected)
    out = str(run.folder / "parts.zarr")
    for part in (3, 1, 2):
        run.result(**options, part=f"{part}/3", out=out)
    np.testing.assert_array_equal(result_of(out), expected)
    roi = run(**options, roi="3:21,2:28,5:27")
    np.testing.assert_array_equal(roi, expected[:, 3:21, 2:28, 5:27])
    resumed, start, calls = str(run.folder / "resumed.zarr"), FakeBackend.start, []

    def failing(self, slot):
        calls.append(slot)
        if len(calls) > 12:
            raise BackendError("enough")
        start(self, slot)

    with monkeypatch.context() as patch:
        patch.setattr(FakeBackend, "start", failing)
        with pytest.raises(BackendError, match="enough"):
            run.result(**options, out=resumed)
    run.result(**options, out=resumed, resume=True)
    np.testing.assert_array_equal(result_of(resumed), expected)
    with pytest.raises(OutputError, match="outside"):
        run.result(**{**options, "outside": 8}, out=resumed, resume=True)


def test_planes_of_a_volume_are_masked_too(run, mask):
    net = model(run.folder, axes="yx")
    found, whole = run(model=net, mask=mask, output="logits"), run(model=net, output="logits")
    np.testing.assert_array_equal(found, np.where(ball(), whole, 0))


# --- masks of another resolution ---


def nearest(mask, shape):
    """By the middles of voxels, each axis on its own."""
    taken = [
        np.minimum(((np.arange(n) + 0.5) * max(1, round(m / n)) / max(1, round(n / m))).astype(int), m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    ]
    return mask[np.ix_(*taken)]


@pytest.mark.parametrize(
    "stored", [(12, 15, 14), (24, 10, 7), (6, 8, 7), (5, 30, 28), (48, 30, 28), (72, 15, 57), (1, 1, 1)]
)
def test_masks_of_another_resolution_are_taken_at_the_nearest_voxel(run, stored):
    coarse = RNG.integers(0, 2, stored).astype(np.uint8)
    coarse.flat[0] = 1
    path = make_volume(run.folder / "coarse.zarr", coarse, axes="zyx")
    found, whole = run(mask=path, output="logits"), run(output="logits")
    inside = nearest(coarse, SHAPE).astype(bool)
    np.testing.assert_array_equal(found, np.where(inside, whole, 0))
    roi = run(mask=path, output="logits", roi="5:20,7:29,3:26")
    np.testing.assert_array_equal(roi, found[:, 5:20, 7:29, 3:26])


@pytest.mark.parametrize("stored", [(24, 30, 27), (24, 30), (16, 30, 28), (2, 24, 30, 28), (10, 30, 28)])
def test_masks_that_lie_over_nothing_are_refused(run, stored):
    axes = "czyx"[-len(stored) :]
    path = make_volume(run.folder / "mask.zarr", np.ones(stored, np.uint8), axes=axes)
    with pytest.raises(InputError, match="--mask"):
        run(mask=path)


def test_what_a_coarse_mask_may_hold_is_told_by_its_chunks(run):
    path = run.folder / "coarse.zarr"
    stored = zarr.create_array(
        path, shape=(12, 15, 14), chunks=(4, 4, 4), dtype="u1", config={"write_empty_chunks": False}
    )
    stored[:4, :4, :4] = 1
    mask = open_mask(str(path), SimpleNamespace(shape=SHAPE, frame=None, spatial="zyx", stored_spatial="zyx"))
    box = Box
    assert mask.may_hold(box((0, 0, 0), (1, 1, 1)))
    assert mask.may_hold(box((7, 7, 7), (9, 9, 9)))
    assert not mask.may_hold(box((8, 0, 0), (24, 30, 28)))


# --- not measured ---


def holes():
    """A corner, a stripe and single voxels."""
    found = RNG.random(SHAPE) < 0.01
    found[:10, :12, :11] = True
    found[:, 20:22] = True
    return found


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        ("i2", -9999, {"_FillValue": -9999}),
        ("f4", np.nan, {"missing_value": "NaN"}),
        ("f4", -3.4e38, {"nodata": -3.4e38}),
        ("u1", 255, {"nodatavals": [255, 255]}),
        ("f8", -1.5, {"_FillValue": base64.b64encode(struct.pack("<d", -1.5)).decode()}),
    ],
)
def test_what_was_not_measured_is_left_out_of_statistics_and_result(tmp_path, device, dtype, value, said):
    image, absent = RNG.integers(10, 100, SHAPE).astype(dtype), holes()
    image[absent] = value
    path = make_volume(tmp_path / "scan.zarr", image, axes="zyx", attributes=said)
    run = Runs(tmp_path, path)
    options = {"normalize": "zscore", "output": "logits", "blend": "crop", "device": device}
    asked = Settings.of(input=path, model=model(tmp_path))
    assert any("--nodata none" in note for note in survey(asked).notes)
    result = run.result(**options, outside=-50)
    measured = image[~absent].astype(np.float64)
    expected = np.where(absent, -50, (np.where(absent, 0, image) - measured.mean()) / measured.std())
    np.testing.assert_allclose(result_of(result.out)[0], expected, atol=1e-4)
    seen = run(**options, outside="keep")[0]
    np.testing.assert_allclose(seen[absent], 0, atol=0.03)  # whole numbers are rounded


def test_the_option_names_what_was_not_measured_or_that_all_was(tmp_path):
    image, absent = RNG.integers(10, 100, SHAPE).astype(np.int16), holes()
    image[absent] = 0
    run = Runs(tmp_path, make_volume(tmp_path / "scan.zarr", image, axes="zyx", attributes={"_FillValue": 0}))
    options = {"output": "logits", "normalize": "minmax", "blend": "crop"}
    np.testing.assert_allclose(run(**options, nodata="none")[0], image / image.max(), atol=1e-6)
    found = run(**options, nodata="0,99", outside=7)[0]
    absent |= image == 99
    expected = np.where(absent, 7, (image - 10.0) / 88)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    of = zarr.open_group(str(tmp_path / "2.zarr")).attrs["unet_engine"]
    assert of["identity"]["nodata"] == ["0.0", "99.0"]
    assert of["identity"]["outside"] == ["7.0", "7.0"]
    assert "nodata" not in zarr.open_group(str(tmp_path / "1.zarr")).attrs["unet_engine"]["identity"]


def test_a_voxel_is_outside_where_no_channel_was_measured(tmp_path):
    image = RNG.integers(10, 100, (2, *SHAPE)).astype(np.int16)
    absent = np.stack([holes(), holes()])
    image[absent] = -1
    run = Runs(tmp_path, make_volume(tmp_path / "scan.zarr", image, axes="czyx"))
    net = model(tmp_path, channels_in=2)
    found = run(model=net, nodata=-1, output="logits", normalize="range:20,120", blend="crop", outside=-3)
    expected = (np.where(absent, 20, image) - 20) / 100
    np.testing.assert_allclose(found, np.where(absent.all(0), -3, expected), atol=1e-6)


def test_chunks_that_are_not_stored_are_not_read(tmp_path):
    path = tmp_path / "scan.zarr"
    stored = zarr.create_array(
        path, shape=(64, 64, 64), chunks=(16, 16, 16), dtype="i2", fill_value=-9999, attributes={"_FillValue": -9999},
        dimension_names=list("zyx"), config={"write_empty_chunks": False},
    )  # fmt: skip
    stored[:16, :16, :16] = RNG.integers(1, 99, (16, 16, 16))
    result = Runs(tmp_path, str(path)).result(outside=5)
    found = result_of(result.out)
    assert np.all(found[16:] == 5)
    assert np.all(found[:16, :16, :16] == 0)
    assert result.bytes_read < stored.nbytes / 4
    assert result.windows_inferred < result.windows_planned / 8


def test_values_in_attributes():
    def said(attributes, dtype="f4"):
        return nodata.said(attributes, np.dtype(dtype))

    assert said({}) == ()
    assert said({"_FillValue": 1e20, "missing_value": 1e20}) == (1e20,)
    assert said({"_FillValue": -1, "missing_value": [-2, -3]}) == (-1, -2, -3)
    assert said({"_FillValue": -1, "nodata": 0.5, "GDAL_NODATA": "7"}, "u1") == (7,)
    assert np.isnan(said({"_FillValue": "AAAAAAAA+H8="})[0])
    assert said({"_FillValue": "words", "nodata": None, "nodatavals": [None, True, {}]}) == ()
    assert said({"_FillValue": 1e300}) == ()
    assert said({"NoData": -1, "NODATA_VALUE": -2, "no_data": -3}) == (-1, -3, -2)


def test_a_value_far_from_all_others_is_told(tmp_path):
    """Nothing says that it is none, so it is taken as a voxel, but not without a word."""
    image, absent = RNG.integers(10, 100, SHAPE).astype(np.int16), holes()
    image[absent] = -9999
    run = Runs(tmp_path, make_volume(tmp_path / "scan.zarr", image, axes="zyx"))
    words = "voxels of -9999 lie far from all others"
    assert any(words in note and "--nodata -9999 leaves them out" in note for note in run.result().plan_notes)
    for more in ({"nodata": "-9999"}, {"nodata": "none"}):
        assert not any("far from all others" in note for note in run.result(**more).plan_notes)


def test_what_looks_like_a_mark():
    voxels = RNG.normal(100, 10, 5000).astype(np.float32)
    few = np.where(np.arange(5000) < 100, 1, 0).astype(bool)
    for mark in (-9999, -32768, 1e20, -3.4e38, 600):
        assert nodata.suspected(np.where(few, mark, voxels).astype(np.float32)) == np.float32(mark)
    for mark in (0, 200, -100, np.nan):
        assert nodata.suspected(np.where(few, mark, voxels).astype(np.float32)) is None
    assert nodata.suspected(np.where(np.arange(5000) < 2, -9999, voxels)) is None  # an outlier
    for labels in (few * 255, np.where(few, 200, 1), np.full(50, -9999), np.zeros(0)):
        assert nodata.suspected(labels) is None


def test_the_array_itself_says_nothing_by_its_fill_value(tmp_path):
    path = make_volume(tmp_path / "v.zarr", np.ones((4, 4, 4), np.uint8), zarr_format=2, fill_value=1)
    assert open_volume(path).nodata == ()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"outside": 3}, "nothing is outside"),
        ({"outside": "void", "nodata": 1}, "give a finite number, nan, or keep"),
        ({"outside": "inf", "nodata": 1}, "finite"),
        ({"outside": -1, "nodata": 1}, "0 to 65535"),
        ({"outside": 0.5, "nodata": 1, "output": "probabilities"}, "--dtype float32"),
        ({"outside": "nan", "nodata": 1}, "whole numbers"),
        ({"outside": 1e5, "nodata": 1, "output": "logits", "dtype": "float16"}, "float16"),
        ({"nodata": "x"}, "give a number"),
        ({"nodata": "1e300"}, "no voxel of"),
    ],
)
def test_values_that_cannot_be_are_refused_in_one_line(run, options, why):
    with pytest.raises(SettingsError) as error:
        run(**options)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
