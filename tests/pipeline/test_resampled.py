"""A volume of another spacing than the network's: brought to it block by block, and the result back onto the scan's
grid. The reference does both with SciPy on whole volumes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import unet_engine
import unet_engine.prepare.prepare as prepare_module
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.fake import FakeBackend
from unet_engine.commands.report import plan_facts
from unet_engine.errors import BackendError, DataError, ResumeError
from unet_engine.execution.choose import team
from unet_engine.model.file import open_model
from unet_engine.model.spec import ModelSpec, Resampling
from unet_engine.plan.box import Box
from unet_engine.plan.memory import cut_columns
from unet_engine.prepare.resampling import grids, seen
from unet_engine.settings.settings import Settings
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.samples import scaling_of
from unet_engine.volumes.windows import cut

pytestmark = pytest.mark.long

ndimage = pytest.importorskip("scipy.ndimage")
NEAR = 2e-5


@dataclass(frozen=True)
class Case:
    """A scan, the shape that the network's spacing gives it, and orders."""

    shape: tuple[int, ...]
    new: tuple[int, ...]
    image: int = 3
    output: int = 1
    channels: int = 2
    classes: int = 3
    window: tuple[int, ...] | None = None
    overlap: float = 0.5

    @property
    def axes(self) -> str:
        return "zyx"[-len(self.shape) :]

    def scan(self, folder: str, array: Any, **options: Any) -> str:
        # spacings in ratio of the shapes, so that rounding gives `new` back
        return make_volume(
            f"{folder}/v.zarr", array, axes="c" + self.axes, ome="0.5", unit="millimeter",
            scale=(1.0, *(1.0 for _ in self.shape)), chunks=(1, *(min(7, n) for n in self.shape)), **options,
        )  # fmt: skip

    def model(self, folder: str, **spec: Any) -> str:
        n = len(self.shape)
        window = self.window or (8,) * n
        return fake_model(
            folder, axes=self.axes, channels_in=self.channels, channels_out=self.classes, window=window,
            window_min=window, window_step=(0,) * n, activation=spec.pop("activation", "softmax"),
            spacing=[a / b for a, b in zip(self.shape, self.new, strict=True)], spacing_unit="millimeter",
            resampling={"image": self.image, "output": self.output, "apart": "never"}, **spec,
        )  # fmt: skip

    def run(self, folder: str, model: str, out: str = "o.zarr", **options: Any) -> unet_engine.Result:
        options = {"overlap": self.overlap, **options}
        return unet_engine.run(f"{folder}/v.zarr", model=model, out=f"{folder}/{out}", **options)


def zoomed(channels: Any, shape: tuple[int, ...], order: int) -> Any:
    found = []
    for channel in np.asarray(channels, np.float64):
        same = channel.shape == shape
        zoom = [n / s for n, s in zip(shape, channel.shape, strict=True)]
        found.append(channel if same else ndimage.zoom(channel, zoom, order=order, mode="nearest", grid_mode=True))
    return np.stack(found)


def fed(case: Case, array: Any) -> Any:
    """What the identity network gives on its own grid."""
    there = zoomed(array, case.new, case.image)
    return np.stack([there[k % case.channels] for k in range(case.classes)])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(2, 3))
    most = 24 if n == 3 else 40
    shape = tuple(draw(st.integers(2, most)) for _ in range(n))
    new = tuple(draw(st.integers(max(1, s // 3), min(most, 3 * s))) for s in shape)
    return Case(
        shape, new, draw(st.sampled_from((0, 1, 3))), draw(st.sampled_from((0, 1, 3))), draw(st.integers(1, 2)),
        draw(st.integers(2, 4)), tuple(draw(st.integers(4, 9)) for _ in range(n)),
        draw(st.sampled_from((0.0, 0.3, 0.5, 0.75))),
    )  # fmt: skip


def noise(case: Case, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((case.channels, *case.shape)).astype(np.float32)


@given(cases(), st.booleans())
@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_geometry_is_as_scipy_resamples_it(case: Case, scan: bool) -> None:  # noqa: FBT001
    array = noise(case)
    expected = fed(case, array)
    with tempfile.TemporaryDirectory() as folder:
        case.scan(folder, array)
        result = case.run(folder, case.model(folder), grid="scan" if scan else "model", output="logits")
        got = result_of(result.out)
    if scan and case.shape != case.new:
        expected = zoomed(expected, case.shape, case.output)
    np.testing.assert_allclose(got, expected, atol=NEAR)


CASE = Case((20, 27, 24), (13, 18, 33), window=(8, 8, 8))
"""Coarser along two axes, finer along one, in many blocks."""


def smooth(case: Case, seed: int = 0) -> Any:
    """Noise of a few voxels, so that classes have regions."""
    found = ndimage.gaussian_filter(noise(case, seed), (0, *(1.5,) * len(case.shape)))
    return np.ascontiguousarray(found / found.std(), np.float32)


def test_labels_and_probabilities_are_those_of_interpolated_logits(blocks: Any, tmp_path: Any) -> None:
    array = smooth(CASE)
    CASE.scan(str(tmp_path), array)
    model = CASE.model(str(tmp_path))
    blocks((1, 2, 1))
    logits = zoomed(fed(CASE, array), CASE.shape, 1)
    ranked = np.sort(logits, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4  # channels 0 and 2 are the same one
    labels = result_of(CASE.run(str(tmp_path), model, "l.zarr").out)
    expected = logits.argmax(0)
    assert clear.mean() > 0.3
    assert (labels == expected)[clear].all()
    assert set(np.unique(labels)) <= {0, 1}
    probabilities = result_of(CASE.run(str(tmp_path), model, "p.zarr", output="probabilities").out)
    e = np.exp(logits - logits.max(0))
    assert np.abs(probabilities - 255 * e / e.sum(0)).max() <= 0.51


def test_the_result_says_where_it_lies(tmp_path: Any) -> None:
    """On the scan's grid as the scan does; on the model's so that the volume keeps its ends."""
    array = noise(CASE)
    CASE.scan(str(tmp_path), array, translation=(0.0, 5.0, 6.0, 7.0))
    model = CASE.model(str(tmp_path))
    for grid, shape in (("scan", CASE.shape), ("model", CASE.new)):
        out = CASE.run(str(tmp_path), model, f"{grid}.zarr", grid=grid).out
        group = zarr.open_group(out, mode="r")
        moves = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]  # type: ignore[index,call-overload]
        scale, at = (np.array(list(m.values())[1]) for m in moves)  # type: ignore[union-attr]
        assert group["0"].shape == shape  # type: ignore[union-attr]
        np.testing.assert_allclose(at - scale / 2, np.array([5.0, 6.0, 7.0]) - 0.5)
        np.testing.assert_allclose(at + scale * (np.array(shape) - 0.5), np.array([5.0, 6.0, 7.0]) + CASE.shape - 0.5)
        assert group.attrs["unet_engine"]["resampling"]["written_on"] == grid  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("grid", "kind"), share([("scan", "labels"), ("scan", "logits"), ("model", "labels"), ("model", "logits")])
)
def test_bytes_are_the_same_however_it_is_run(blocks: Any, tmp_path: Any, grid: str, kind: str) -> None:
    folder, options = str(tmp_path), {"grid": grid, "output": kind}
    CASE.scan(folder, smooth(CASE))
    model = CASE.model(folder)
    blocks((1, 1, 1))
    whole = CASE.run(folder, model, **options)
    expected = result_of(whole.out)
    assert whole.blocks_planned > 10

    def same(out: str, **more: Any) -> None:
        result = CASE.run(folder, model, out, **options, **more)
        assert result.digest == whole.digest
        if result.complete:
            np.testing.assert_array_equal(result_of(result.out), expected)

    same("threads.zarr", threads=3)
    for part in (2, 3, 1):
        same("parts.zarr", part=f"{part}/3")
    with pytest.MonkeyPatch.context() as patch:
        fit = prepare_module.fit
        patch.setattr(prepare_module, "fit", lambda *a, **k: cut_columns(fit(*a, **k), (2, 2, 2)))
        same("columns.zarr")
    calls: list[int] = []
    start = FakeBackend.start
    with pytest.MonkeyPatch.context() as patch:

        def failing(self: Any, slot: int) -> None:
            calls.append(slot)
            if len(calls) > 40:
                raise BackendError("enough")
            start(self, slot)

        patch.setattr(FakeBackend, "start", failing)
        with pytest.raises(BackendError, match="enough"):
            CASE.run(folder, model, "resumed.zarr", **options)
    same("resumed.zarr", resume=True)


@pytest.mark.parametrize("roi", ["3:17,5:27,2:23", "0:1,0:1,0:1", "19:20,26:27,10:24", "7:8,0:27,0:24"])
def test_a_region_has_the_bytes_of_the_whole(blocks: Any, tmp_path: Any, roi: str) -> None:
    folder = str(tmp_path)
    CASE.scan(folder, smooth(CASE))
    model = CASE.model(folder)
    blocks((1, 2, 1))
    expected = result_of(CASE.run(folder, model, output="logits").out)
    got = result_of(CASE.run(folder, model, "roi.zarr", output="logits", roi=roi).out)
    spans = [slice(*map(int, part.split(":"))) for part in roi.split(",")]
    np.testing.assert_array_equal(got, expected[(slice(None), *spans)])


@pytest.mark.slow
def test_workers_and_the_gpu_pipeline_give_the_same_bytes(blocks: Any, tmp_path: Any) -> None:
    folder = str(tmp_path)
    CASE.scan(folder, smooth(CASE))
    model = CASE.model(folder)
    expected = result_of(CASE.run(folder, model, output="logits").out)
    workers = CASE.run(folder, model, "w.zarr", output="logits", workers=2)
    np.testing.assert_array_equal(result_of(workers.out), expected)
    simulated = CASE.run(folder, model, "s.zarr", output="logits", device="simulated", batch=1)
    np.testing.assert_allclose(result_of(simulated.out), expected, atol=1e-6)


# --- what voxels become before they are interpolated ------------------------------------------------------------------


@pytest.mark.parametrize(
    "normalize", ["range:-0.5,0.7,clip", "fixed:mean=1/2,std=3/4,clip=-0.5:0.5/-1:1", "zscore:foreground=0.2"]
)
def test_voxels_are_normalised_on_the_scans_grid(tmp_path: Any, normalize: str) -> None:
    """Clipping and leaving out the background do not commute with interpolating."""
    array = noise(CASE)
    CASE.scan(str(tmp_path), array)
    model = CASE.model(str(tmp_path), background=0.3)
    result = CASE.run(str(tmp_path), model, grid="model", output="logits", normalize=normalize)
    x = np.asarray(array, np.float64)
    if normalize.startswith("range"):
        normal, ends = (np.clip(x, -0.5, 0.7) + 0.5) / 1.2, [(0, 1)] * 2
    elif normalize.startswith("fixed"):
        normal = np.stack([(np.clip(x[0], -0.5, 0.5) - 1) / 3, (np.clip(x[1], -1, 1) - 2) / 4])
        ends = [(-0.5, -1 / 6), (-0.75, -0.25)]
    else:
        inside = x > np.float32(0.2)
        normal = np.stack([(c - c[i].mean()) / c[i].std() for c, i in zip(x, inside, strict=True)])
        normal[~inside] = 0
        ends = [(-np.inf, np.inf)] * 2
    there = zoomed(normal, CASE.new, 3)
    there = np.stack([np.clip(c, *e) for c, e in zip(there, ends, strict=True)])
    got = result_of(result.out)
    np.testing.assert_allclose(got[:2], there, atol=NEAR)


@pytest.mark.parametrize("normalize", ["none", "fixed:mean=7,std=3"])
def test_windows_of_background_are_left_out(tmp_path: Any, normalize: str) -> None:
    """Also where background is no 0, and not stored."""
    case = Case((32, 32, 64), (16, 16, 32), channels=1)
    array = np.full((1, *case.shape), 5, np.float32)
    array[..., 50:] = noise(case)[..., 50:]
    case.scan(str(tmp_path), array, fill_value=5)
    given = {"empty": (9.0, 1.0, 1.0), "background": 5.0}
    model = case.model(str(tmp_path), **given)
    result = case.run(str(tmp_path), model, overlap=0.0, normalize=normalize, output="logits")
    assert result.windows_skipped == 8
    assert result.windows_inferred == 8
    got = result_of(result.out)
    assert (got[0, :, :, :30] == 9).all()


def test_a_mask_and_what_was_not_measured_decide_on_the_grid_of_the_output(tmp_path: Any) -> None:
    case = Case((20, 24, 22), (11, 16, 30), image=1, channels=1)
    array = smooth(case)
    array[:, 4:9, 3:11] = -9999.0
    case.scan(str(tmp_path), array)
    mask = np.zeros(case.shape, np.uint8)
    mask[:15] = 1
    path = make_volume(tmp_path / "mask.zarr", mask)
    model = case.model(str(tmp_path))
    absent = (mask == 0) | (array[0] == -9999.0)
    measured = np.where(array == -9999.0, 0, array)
    options = {"mask": path, "nodata": "-9999", "outside": "77", "output": "logits"}
    got = result_of(case.run(str(tmp_path), model, "scan.zarr", **options).out)
    assert (got[:, absent] == 77).all()
    expected = zoomed(fed(case, measured), case.shape, 1)
    np.testing.assert_allclose(got[:, ~absent], expected[:, ~absent], atol=NEAR)
    got = result_of(case.run(str(tmp_path), model, "model.zarr", grid="model", **options).out)
    there = zoomed(absent[None].astype(float), case.new, 0)[0] > 0.5
    assert (got[:, there] == 77).all()
    np.testing.assert_allclose(got[:, ~there], fed(case, measured)[:, ~there], atol=NEAR)


FINER, COARSER = (33, 40, 36), (11, 12, 14)


@pytest.mark.parametrize("grid", ["scan", "model"])
@pytest.mark.parametrize(
    ("new", "order"),
    share([*((COARSER, order) for order in (0, 1, 3)), (FINER, 3), (FINER, 0), (FINER, 1)], quick=3),
)
def test_voxels_inside_a_mask_are_those_of_a_run_without_it(tmp_path: Any, new: Any, order: Any, grid: str) -> None:
    """Also next to its border, where they are interpolated from what windows give outside."""
    case = Case((20, 24, 22), new, channels=1, window=(4, 4, 4), image=0, output=order)
    case.scan(str(tmp_path), noise(case))
    model = case.model(str(tmp_path))
    mask = np.zeros(case.shape, np.uint8)
    mask[7:12, 8:13, 9:14] = mask[2, 3, 18] = 1
    path = make_volume(tmp_path / "mask.zarr", mask)
    whole = case.run(str(tmp_path), model, output="logits", grid=grid)
    masked = case.run(str(tmp_path), model, "m.zarr", output="logits", grid=grid, mask=path)
    inside = mask > 0 if grid == "scan" else zoomed(mask[None], new, 0)[0] > 0.5
    expected, got = result_of(whole.out), result_of(masked.out)
    np.testing.assert_array_equal(got[:, inside], expected[:, inside])
    assert (got[:, ~inside] == 0).all()
    if order < 3 or grid == "model":
        assert masked.windows_inferred < whole.windows_inferred / 2


@pytest.mark.slow
def test_voxels_beside_chunks_that_were_not_measured_do_not_hang_on_what_is_stored(blocks: Any, tmp_path: Any) -> None:
    """Their last voxels are made of what the window that begins in such chunks gives, too."""
    case = Case((21, 21, 28), (21, 21, 12), channels=1, window=(4, 4, 4), image=0, output=1)
    blocks((1, 1, 1))
    array = noise(case)
    array[..., 14:] = -9
    options = {"output": "logits", "nodata": "-9"}
    model = case.model(str(tmp_path), empty=(3.0, 3.0, 3.0), background=1.0)  # nothing here is background
    case.scan(str(tmp_path), array)
    whole = case.run(str(tmp_path), model, **options)
    folder = tmp_path / "sparse"
    folder.mkdir()
    case.scan(str(folder), array, fill_value=-9)
    sparse = case.run(str(folder), model, **options)
    np.testing.assert_array_equal(result_of(sparse.out), result_of(whole.out))
    assert sparse.windows_inferred < whole.windows_inferred
    assert (result_of(sparse.out)[..., 14:] == 3).all()


def test_nan_is_named_where_it_is_stored_or_replaced_before(tmp_path: Any) -> None:
    case = Case((10, 12, 70), (8, 9, 60))
    array = noise(case)
    array[1, 5, 7, 60] = np.nan
    case.scan(str(tmp_path), array)
    model = case.model(str(tmp_path))
    with pytest.raises(DataError, match="z=5 y=7 x=60"):
        case.run(str(tmp_path), model)
    assert case.run(str(tmp_path), model, "roi.zarr", roi="0:1,0:1,0:1").complete  # far from it
    result = case.run(str(tmp_path), model, "r.zarr", replace_nonfinite=2.0, output="logits", grid="model")
    array[1, 5, 7, 60] = 2.0
    np.testing.assert_allclose(result_of(result.out), fed(case, array), atol=NEAR)


# --- when it is done --------------------------------------------------------------------------------------------------


def test_orders_and_shapes_are_those_of_nnunet() -> None:
    peer = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    rng = np.random.default_rng(3)
    for _ in range(300):
        own, new = (tuple(np.round(rng.choice([0.3, 0.8, 1.0, 2.5, 3.7, 5.0], 3) * f, 4)) for f in (1, 1.13))
        shape = tuple(int(n) for n in rng.integers(1, 90, 3))
        spec = _Spec(spacing=new, resampling=Resampling(image=3, image_apart=0, output=1, output_apart=0))
        found = grids(_Volume(shape, own), spec, [], ignore=False)  # type: ignore[arg-type]
        expected = tuple(int(n) for n in np.maximum(1, peer.compute_new_shape(shape, own, new)))
        if found is None:
            assert expected == shape
            continue
        assert tuple(axis.target for axis in found.image) == expected
        for axes, current, to, order in ((found.image, own, new, 3), (found.back, new, own, 1)):
            apart, axis = peer.determine_do_sep_z_and_axis(None, current, to)
            assert [a.order for a in axes] == [0 if apart and i == axis else order for i in range(3)]


@dataclass(frozen=True)
class _Spec:
    spacing: tuple[float, ...]
    resampling: Resampling
    name: str = "net"
    axes: str = "zyx"
    spacing_unit: str = "millimeter"


@dataclass(frozen=True)
class _Volume:
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str = "millimeter"
    path: str = "scan"


def test_planes_of_a_2d_network_stay_as_many(tmp_path: Any) -> None:
    """Along z nothing is known of the network's spacing."""
    array = noise(Case((5, 20, 30), (5, 20, 30), channels=1))
    make_volume(
        tmp_path / "v.zarr", array[0], axes="zyx", ome="0.5", unit="millimeter", scale=(9.0, 1.0, 1.0), chunks=(1, 8, 8)
    )
    model = fake_model(
        tmp_path, axes="yx", channels_out=2, activation="softmax", spacing=(2.0, 1.5), spacing_unit="millimeter",
        resampling={"image": 3},
    )  # fmt: skip
    out = unet_engine.run(str(tmp_path / "v.zarr"), model=model, out=str(tmp_path / "o.zarr"), output="logits").out
    there = np.stack([zoomed(plane[None], (10, 20), 3)[0] for plane in array[0]])
    back = np.stack([zoomed(plane[None], (20, 30), 1)[0] for plane in there])
    np.testing.assert_allclose(result_of(out)[0], back, atol=NEAR)


def test_voxels_of_the_networks_size_are_taken_as_they_are_and_ignoring_means_it(tmp_path: Any) -> None:
    case = Case((12, 12, 12), (12, 12, 12))
    case.scan(str(tmp_path), noise(case))
    result = case.run(str(tmp_path), case.model(str(tmp_path)), output="logits")
    np.testing.assert_array_equal(result_of(result.out).shape[1:], case.shape)
    assert "resampling" not in zarr.open_group(result.out).attrs["unet_engine"]  # type: ignore[operator]
    other = Case((12, 12, 12), (6, 6, 6))
    model = other.model(str(tmp_path))
    result = other.run(str(tmp_path), model, "i.zarr", output="logits", ignore_spacing=True)
    assert "resampling" not in zarr.open_group(result.out).attrs["unet_engine"]  # type: ignore[operator]


def test_another_grid_is_another_run(tmp_path: Any) -> None:
    CASE.scan(str(tmp_path), noise(CASE))
    model = CASE.model(str(tmp_path))
    CASE.run(str(tmp_path), model)
    with pytest.raises(ResumeError, match="resampling"):
        CASE.run(str(tmp_path), model, grid="model", resume=True)


def test_a_spec_that_resamples_to_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs the spacing"):
        ModelSpec(
            name="n", axes="yx", channels_in=1, channels_out=2, window=(8, 8), window_min=(8, 8), window_step=(0, 0),
            margin=(0, 0), resampling=Resampling(),
        )  # fmt: skip


def test_a_frame_keeps_the_ends_of_the_volume() -> None:
    """Turned and flipped: the outer corners of 8 voxels of one grid are those of 4 of the other."""
    frame = Frame(((0.0, 0.1, -0.9), (0.2, -1.1, 0.0), (3.0, 0.0, 0.1)), (7.0, -8.0, 9.0), "RAS")
    half = frame.resampled([8 / 4, 8 / 16, 1])
    for corner in ([0, 0, 0], [1, 0, 1], [1, 1, 1]):
        ends = [
            np.array(f.origin) + np.array(f.matrix) @ (np.array(corner) * shape - 0.5)
            for f, shape in ((frame, (8, 8, 5)), (half, (4, 16, 5)))
        ]
        np.testing.assert_allclose(*ends)


def test_windows_that_are_tried_beforehand_are_those_that_are_run(tmp_path: Any) -> None:
    """Those of warming up, of a search for overlaps, of judging precision: normalised once, with background that is no
    0."""
    array = noise(CASE)
    path = CASE.scan(str(tmp_path), array)
    spec = open_model(
        CASE.model(str(tmp_path), background=0.25, normalization={"mode": "fixed", "mean": 1, "std": 2})
    ).spec
    scan = open_volume(path)
    volume = seen(scan, grids(scan, spec, [], ignore=False), spec)
    scale = scaling_of(scan, spec.normalization)
    box = Box((2, 3, 4), (10, 11, 12))
    expected = zoomed((array - 1) / 2, CASE.new, 3)[(slice(None), *box.slices())]
    np.testing.assert_allclose(cut(volume, scale, box, (8, 8, 8)), expected, atol=NEAR)
    assert seen(scan, grids(scan, spec, [], ignore=True), spec) is scan


def test_what_is_planned_to_be_read_is_of_the_scan(blocks: Any, tmp_path: Any) -> None:
    array = noise(CASE)
    path = CASE.scan(str(tmp_path), array)
    blocks((9, 9, 9))
    options = {"model": CASE.model(str(tmp_path)), "out": str(tmp_path / "o.zarr")}
    with team(Settings.of(input=path, **options)) as crew:
        facts = plan_facts(crew.prepare())
    assert facts["bytes_read"] == array.nbytes
    assert facts["read_factor"] == 1
    assert unet_engine.run(path, **options).bytes_read == array.nbytes


def test_an_overlap_is_chosen_on_the_grid_of_windows(tmp_path: Any) -> None:
    """Its regions are boxes there, while the region of interest is one of the scan."""
    case = Case((40, 44, 48), (20, 22, 24), channels=3)
    case.scan(str(tmp_path), smooth(case))
    model, options = case.model(str(tmp_path)), {"roi": "0:30,4:40,0:48"}
    auto = case.run(str(tmp_path), model, "a.zarr", overlap="auto", **options)
    assert auto.overlap_choice is not None
    chosen = auto.overlap_choice["chosen"]
    same = case.run(str(tmp_path), model, "b.zarr", overlap=chosen["overlap"], blend=chosen["blend"], **options)
    np.testing.assert_array_equal(result_of(auto.out), result_of(same.out))
