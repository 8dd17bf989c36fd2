"""A model that takes the box of what is not 0 for the whole volume gives, inside of it, what it gives of that box
alone, and 0 outside: by every executor, for any region."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import unet_engine
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError, OutputError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.normalization import Normalization
from unet_engine.output.header import PROVENANCE
from unet_engine.plan.box import Box
from unet_engine.prepare.crop import in_chunks
from unet_engine.volumes.cropped import nonzero_box
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.samples import scaling_of

SHAPE = (37, 33, 41)
INSIDE = (slice(5, 29), slice(11, 31), slice(9, 36))
RNG = np.random.default_rng(13)


def scan_of(channels=1):
    """Noise in a box; zeros in it too, and its faces touched by single voxels."""
    values = np.zeros((channels, *SHAPE), np.float32)
    values[:, *INSIDE] = RNG.normal(size=(channels, *(s.stop - s.start for s in INSIDE)))
    values[:, 20:24, 15:20, 12:30] = 0
    return values


def model(folder, **spec):
    options = {"channels_out": 2, "activation": "softmax", "crop": "nonzero", "normalization": "zscore:whole"}
    return fake_model(folder, **{key: value for key, value in (options | spec).items() if value is not None})


@pytest.fixture
def both(tmp_path):
    """The scan, and the box alone."""
    values = scan_of()[0]
    return (
        make_volume(tmp_path / "scan.zarr", values, axes="zyx"),
        make_volume(tmp_path / "box.zarr", values[INSIDE], axes="zyx"),
    )


def run(path, folder, net, **options):
    out = str(folder / f"{len(list(folder.iterdir()))}.zarr")
    return unet_engine.run(path, **{"model": net, "out": out, "padding": "constant", **options})


def pasted(found):
    whole = np.zeros((*found.shape[:-3], *SHAPE), found.dtype)
    whole[..., *INSIDE] = found
    return whole


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("output", ["labels", "probabilities", "logits"])
@pytest.mark.parametrize("blend", ["nnunet", "monai"])
def test_inside_it_is_a_run_of_the_box_alone_and_outside_0(both, tmp_path, output, blend, device):
    """Of probabilities and labels no 0 is what the network would give: a sigmoid of nothing is a half."""
    net = model(tmp_path, activation="sigmoid", threshold=0.3)
    options = {"output": output, "blend": blend, "device": device}
    found, alone = (result_of(run(path, tmp_path, net, **options).out) for path in both)
    np.testing.assert_array_equal(found, pasted(alone))
    plain = model(tmp_path, name="plain", activation="sigmoid", threshold=0.3, crop=None)
    other = result_of(run(both[0], tmp_path, plain, **options).out)
    assert np.any(found[..., *INSIDE] != other[..., *INSIDE])
    assert np.any(other != 0, axis=tuple(range(other.ndim - 3)))[0, 0, 0] or output == "logits"


def test_regions_are_cut_out_of_the_whole_and_one_that_is_0_is_refused(both, tmp_path):
    net = model(tmp_path)
    whole = run(both[0], tmp_path, net, output="probabilities")
    assert whole.windows_inferred < 400
    for roi in ("0:37,0:33,0:41", "7:20,12:28,10:30", "3:20,2:33,0:12", "28:37,30:33,35:41"):
        found = result_of(run(both[0], tmp_path, net, output="probabilities", roi=roi).out)
        place = tuple(slice(*map(int, span.split(":"))) for span in roi.split(","))
        np.testing.assert_array_equal(found, result_of(whole.out)[:, *place])
    with pytest.raises(SettingsError, match="the model takes 5:29,11:31,9:36 alone"):
        run(both[0], tmp_path, net, roi="0:5,0:33,0:41")


def test_parts_and_devices_give_the_same_bytes(both, tmp_path):
    net = model(tmp_path)
    expected = result_of(run(both[0], tmp_path, net).out)
    np.testing.assert_array_equal(result_of(run(both[0], tmp_path, net, device="fake:0,fake:1").out), expected)
    out = str(tmp_path / "parts.zarr")
    for part in (3, 1, 2):
        run(both[0], tmp_path, net, part=f"{part}/3", out=out)
    np.testing.assert_array_equal(result_of(out), expected)


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_bytes(both, tmp_path):
    net, mask = model(tmp_path), np.ones(SHAPE, np.uint8)
    mask[:, 14:22, 20:] = 0
    mask = make_volume(tmp_path / "mask.zarr", mask, axes="zyx")
    expected = result_of(run(both[0], tmp_path, net, mask=mask).out)
    np.testing.assert_array_equal(result_of(run(both[0], tmp_path, net, mask=mask, workers=2).out), expected)


def test_a_resume_goes_on_and_another_box_is_another_run(both, tmp_path, monkeypatch):
    net = model(tmp_path)
    expected = result_of(run(both[0], tmp_path, net).out)
    out, start, calls = str(tmp_path / "resumed.zarr"), FakeBackend.start, []

    def failing(self, slot):
        calls.append(slot)
        if len(calls) > 120:
            raise BackendError("enough")
        start(self, slot)

    with monkeypatch.context() as patch:
        patch.setattr(FakeBackend, "start", failing)
        with pytest.raises(BackendError, match="enough"):
            run(both[0], tmp_path, net, out=out)
    assert Path(out).exists()
    stored = zarr.open_array(both[0])
    stored[36, 32, 40] = 1e-3
    with pytest.raises(OutputError, match="crop"):
        run(both[0], tmp_path, net, out=out, resume=True)
    stored[36, 32, 40] = 0
    run(both[0], tmp_path, net, out=out, resume=True)
    np.testing.assert_array_equal(result_of(out), expected)


def test_masks_lie_over_the_whole_volume(both, tmp_path):
    net, mask = model(tmp_path), np.ones(SHAPE, np.uint8)
    mask[:, 14:22, 20:] = 0
    path = make_volume(tmp_path / "mask.zarr", mask, axes="zyx")
    whole = result_of(run(both[0], tmp_path, net, output="probabilities").out)
    found = result_of(run(both[0], tmp_path, net, output="probabilities", mask=path, outside="7").out)
    inside = pasted(np.ones([s.stop - s.start for s in INSIDE], bool))
    np.testing.assert_array_equal(found, np.where(inside & (mask == 0), 7, whole))


@pytest.mark.parametrize("apart", [(1.5, 0.75, 1.25), (4.0, 0.8, 0.8)])
def test_resampling_is_of_the_box_and_the_result_on_the_grid_of_the_scan(tmp_path, apart):
    values = scan_of()[0]
    paths = [
        make_volume(tmp_path / f"{name}.zarr", v, axes="zyx", ome="0.5", scale=apart, unit="millimeter")
        for name, v in (("scan", values), ("box", values[INSIDE]))
    ]
    net = model(tmp_path, spacing=(1.0, 1.0, 1.0), spacing_unit="millimeter", resampling={"image": 3})
    found, alone = (result_of(run(path, tmp_path, net, output="logits").out) for path in paths)
    np.testing.assert_array_equal(found, pasted(alone))
    grids = [open_volume(run(path, tmp_path, net, grid="model").out) for path in paths]
    assert grids[0].shape == grids[1].shape
    np.testing.assert_array_equal(
        grids[0].read(Box.of_shape(grids[0].shape)), grids[1].read(Box.of_shape(grids[1].shape))
    )
    moved = [a - b for a, b in zip(grids[0].translation, grids[1].translation, strict=True)]
    np.testing.assert_allclose(moved, [s.start * a for s, a in zip(INSIDE, apart, strict=True)])


def test_the_box_is_told_and_kept_and_a_volume_without_an_edge_of_0_is_as_ever(both, tmp_path):
    net = model(tmp_path)
    found = run(both[0], tmp_path, net)
    assert any("0 outside of 24×20×27 of its 37×33×41 voxels" in note for note in found.notes)
    assert zarr.open_group(found.out).attrs[PROVENANCE]["identity"]["crop"][0] == "5:29,11:31,9:36"
    alone = run(both[1], tmp_path, net)
    assert "crop" not in zarr.open_group(alone.out).attrs[PROVENANCE]["identity"]
    plain = run(both[1], tmp_path, model(tmp_path, name="plain", crop=None))
    np.testing.assert_array_equal(result_of(alone.out), result_of(plain.out))


def test_arrays_are_cropped_too(tmp_path):
    values, net = scan_of()[0], model(tmp_path)
    found = unet_engine.predict(values, model=net, padding="constant")
    path = make_volume(tmp_path / "scan.zarr", values, axes="zyx")
    np.testing.assert_array_equal(found, result_of(run(path, tmp_path, net).out))


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_the_box_is_that_of_every_voxel_that_is_not_0(tmp_path_factory, data):
    shape = data.draw(st.tuples(*[st.integers(1, 13)] * 3))
    chunks = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    values = np.zeros((2, *shape), np.int16)
    for _ in range(data.draw(st.integers(0, 4))):
        at = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
        values[(data.draw(st.integers(0, 1)), *at)] = data.draw(st.sampled_from([-1, 300]))
    folder = tmp_path_factory.mktemp("box")
    volume = open_volume(make_volume(folder / "v.zarr", values, axes="czyx", chunks=(1, *chunks)))
    assert nonzero_box(volume) == box_of(values.any(0))
    above = data.draw(st.sampled_from([-2.0, -1.0, 0.0, 300.0]))
    assert nonzero_box(volume, above) == box_of((values > above).any(0))


def box_of(inside):
    where = np.nonzero(inside)
    found = Box(tuple(map(min, where)), tuple(max(w) + 1 for w in where)) if where[0].size else None
    return found or Box.of_shape(inside.shape)


def test_what_is_above_a_number_is_a_run_of_its_box_alone(both, tmp_path):
    """Air that is not 0, and is nowhere -100."""
    air = np.where(scan_of()[0] == 0, np.float32(-1000), 0)
    air[INSIDE] = result_of_box = scan_of()[0][INSIDE]
    path, box = (
        make_volume(tmp_path / f"{n}.zarr", v, axes="zyx") for n, v in (("air", air), ("inside", result_of_box))
    )
    net = model(tmp_path, crop=-100.0)
    found, alone = (result_of(run(p, tmp_path, net, output="probabilities").out) for p in (path, box))
    np.testing.assert_array_equal(found, pasted(alone))


def test_the_box_of_what_is_above_a_number_may_be_larger_by_a_margin_as_far_as_there_are_voxels(both, tmp_path):
    air = np.where(scan_of()[0] == 0, np.float32(-1000), 0)
    air[INSIDE] = scan_of()[0][INSIDE]
    larger = slice(3, 31), slice(11, 31), slice(0, 41)
    path, box = (make_volume(tmp_path / f"{n}.zarr", v, axes="zyx") for n, v in (("air", air), ("inside", air[larger])))
    net, plain = model(tmp_path, crop=-100.0, crop_margin=(2, 0, 9)), model(tmp_path, name="plain", crop=None)
    found, alone = (result_of(run(p, tmp_path, m, output="probabilities").out) for p, m in ((path, net), (box, plain)))
    expected = np.zeros_like(found)
    expected[(slice(None), *larger)] = alone
    np.testing.assert_array_equal(found, expected)


FINER = 0.4
"""Voxels of the scan along z to one of the network."""


def finer(values):
    """Along z, aligned by the first voxels, linear; without the engine."""
    at = np.arange(round((len(values) - 1) / FINER + 1)) * FINER
    low = np.minimum(at.astype(int), len(values) - 2)
    part = (at - low).astype(np.float32)[:, None, None]
    return values[low] * (1 - part) + values[low + 1] * part


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("chunks", [(64, 64, 64), (7, 9, 11)])
def test_a_volume_that_is_resampled_is_cropped_to_what_is_above_a_number_of_what_was_interpolated(
    tmp_path, device, chunks
):
    """Air of -1000: next to it what is interpolated is not above 0. On the network's grid it is a run of that box alone;
    on the scan's each voxel has what the nearest of the network's has, and 0 where that one was cut off."""
    air = np.full(SHAPE, -1000, np.float32)
    air[INSIDE] = np.abs(scan_of()[0][INSIDE]) + 1
    there = finer(air)
    box = tuple(slice(w.min(), w.max() + 1) for w in np.nonzero(there > 0))
    assert box[0].start > INSIDE[0].start / FINER - 1 > 0
    how = {"aligned": "first", "apart": "never", "image": 1, "output": 0, "first": "interpolated"}
    plain = model(tmp_path, crop=None, name="plain", activation="sigmoid", threshold=0.5)
    net = model(
        tmp_path,
        crop=0.0,
        activation="sigmoid",
        threshold=0.5,
        spacing=(FINER, 1.0, 1.0),
        spacing_unit="nm",
        resampling=how,
    )
    scale = {"ome": "0.5", "scale": (1.0, 1.0, 1.0), "unit": "nanometer"}
    path = make_volume(tmp_path / "scan.zarr", air, axes="zyx", chunks=chunks, **scale)
    alone = make_volume(tmp_path / "alone.zarr", there[box], axes="zyx")
    wanted = result_of(run(alone, tmp_path, plain).out)
    found = result_of(run(path, tmp_path, net, grid="model", device=device).out)
    assert (found != wanted).mean() < 1e-3  # rounding of what is interpolated
    whole = np.zeros(there.shape, found.dtype)
    whole[box] = found
    nearest = np.minimum((np.arange(SHAPE[0]) / FINER + 0.5).astype(int), len(there) - 1)
    labels = result_of(run(path, tmp_path, net, device=device).out)
    np.testing.assert_array_equal(labels, whole[nearest])
    assert 0 < labels.mean() < 1
    part = result_of(run(path, tmp_path, net, device=device, roi="3:20,0:33,5:30").out)
    np.testing.assert_array_equal(part, labels[3:20, :, 5:30])


def test_on_a_finer_grid_all_of_the_box_is_written(both, tmp_path):
    """It was 0 behind as many voxels as the scan has."""
    net = model(
        tmp_path, activation="sigmoid", threshold=0.3, spacing=(0.5, 1.0, 1.0), spacing_unit="nm", resampling={}
    )
    values = scan_of()[0]
    scale = {"ome": "0.5", "scale": (1.0, 1.0, 1.0), "unit": "nanometer"}
    paths = [
        make_volume(tmp_path / f"{n}.zarr", v, axes="zyx", **scale) for n, v in (("a", values), ("b", values[INSIDE]))
    ]
    found, alone = (result_of(run(p, tmp_path, net, grid="model", output="probabilities").out) for p in paths)
    np.testing.assert_array_equal(found, alone)


def test_of_a_volume_without_an_edge_of_0_the_faces_alone_are_read(tmp_path, monkeypatch):
    path = make_volume(tmp_path / "full.zarr", np.ones((40, 40, 40), np.uint8), axes="zyx", chunks=(8, 8, 8))
    volume, read = open_volume(path), []
    known = type(volume).read
    monkeypatch.setattr("unet_engine.volumes.pieces.PIECE", 512)
    monkeypatch.setattr(type(volume), "read", lambda self, box, *more: (read.append(box), known(self, box, *more))[1])
    assert nonzero_box(volume) == Box.of_shape((40, 40, 40))
    assert len(read) == 6


def test_chunks_are_counted_from_the_end_that_the_output_begins_at():
    asked = Box((-3, -7), (20, 19))
    for backwards in itertools.product((False, True), repeat=2):
        found = in_chunks(Box((2, 1), (9, 16)), asked, (4, 5), backwards)
        assert found.contains(Box((2, 1), (9, 16)))
        assert asked.contains(found)
        for a, back in enumerate(backwards):
            for edge in (found.lo[a], found.hi[a]):
                away = asked.hi[a] - edge if back else edge - asked.lo[a]
                assert away % (4, 5)[a] == 0 or edge in (asked.lo[a], asked.hi[a])


def test_bench_and_quantize_look_at_what_a_run_looks_at(both, tmp_path):
    """They took all of the scan, so a z-score of another mean, and windows of nothing."""
    from support.graphs import graph, node
    from unet_engine.commands.bench.command import Request, own_subject
    from unet_export.quantize.judging import Request as Judged
    from unet_export.quantize.quantize import _opened

    box = open_volume(both[1])
    for crop in ("nonzero", -9.0):
        net = model(tmp_path, crop=crop, channels_out=1, activation="sigmoid")
        found = own_subject(Request(net, both[0]), lambda _: None).volume
        inside = box.shape if crop == "nonzero" else SHAPE
        assert found.shape == inside
        onnx = graph(tmp_path / "net.onnx", [node("Relu", "x", "y")], shape=[1, 1, 8, 8, 8], spec=open_model(net).spec)
        _, volume, _, scale = _opened(Judged(onnx, both[0]), lambda _: None)
        assert volume.shape == inside
        whole = box if crop == "nonzero" else open_volume(both[0])
        assert scale == scaling_of(whole, Normalization.parse("zscore:whole"))
