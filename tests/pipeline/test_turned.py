"""A scan that lies otherwise than the network wants it gives, voxel for voxel, what it gives once it was turned
first."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.volumes import fake_model, make_volume, result_of
from unet_engine.output.header import PROVENANCE
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.frame import Frame
from unet_engine.volumes.turn import Turn

SHAPE = (19, 23, 31)
WANTED = "SAR"
OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
LYING = ["IRP", "RAS", "PIL", "SAL", "IPL", "ASR"]
SPACINGS = (2.0, 1.0, 1.5)
"""Along S, A and R."""


def seen_as(lying: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    order = tuple(next(i for i, name in enumerate(lying) if name in (w, OPPOSITE[w])) for w in WANTED)
    return order, tuple(lying[i] != w for i, w in zip(order, WANTED, strict=True))


def laid(upright: np.ndarray, lying: str) -> np.ndarray:
    """`upright`, which points to WANTED, so that its axes point to `lying`."""
    order, backwards = seen_as(lying)
    flipped = upright[tuple(slice(None, None, -1 if b else 1) for b in backwards)]
    return np.ascontiguousarray(flipped.transpose(np.argsort(order)))


def metaimage(folder: Path, array: np.ndarray, lying: str) -> str:
    """Voxels along z, y, x that point to `lying`, in the space of ITK, LPS."""
    columns, size = np.zeros((3, 3)), np.zeros(3)
    for axis, name in enumerate(lying):
        world = next(w for w, both in enumerate(("LR", "PA", "SI")) if name in both)
        columns[world, axis] = 1 if name in "LPS" else -1
        size[axis] = SPACINGS[next(i for i, w in enumerate(WANTED) if name in (w, OPPOSITE[w]))]
    turned = " ".join(f"{v:g}" for axis in (2, 1, 0) for v in columns[:, axis])
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"DimSize = {' '.join(map(str, array.shape[::-1]))}\nOffset = 5 -7 11\n"
        f"ElementSpacing = {' '.join(f'{s:g}' for s in size[::-1])}\nTransformMatrix = {turned}\n"
        "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    path = folder / f"{lying}.mha"
    path.write_bytes(head.encode() + array.astype("<f4").tobytes())
    return str(path)


@pytest.fixture(scope="module")
def upright() -> np.ndarray:
    return np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)


def model(folder, **spec):
    # windows as long along no two axes, and a network whose answers hang on where its windows lie
    values = {"window": (8, 12, 16), "orientation": WANTED, "channels_out": 3, "activation": "softmax", **spec}
    return fake_model(folder, **values)


def run(folder, scan, network, **options):
    out = str(folder / f"{Path(scan).stem}-{len(list(folder.iterdir()))}.zarr")
    unet_engine.run(scan, model=network, out=out, **options)
    return out


@pytest.mark.parametrize("lying", LYING[:4])
@pytest.mark.parametrize(
    "options",
    [
        {"output": "logits"},
        {"output": "labels", "device": "simulated"},
        {"output": "logits", "roi": True, "blend": "monai"},
        {"output": "probabilities", "tta": "mirror:zx", "memory": "4GiB"},
    ],
    ids=["logits", "device", "region", "mirrors"],
)
def test_the_same_as_of_the_scan_that_was_turned_first(tmp_path, upright, lying, options):
    network = model(tmp_path)
    options, box = dict(options), tuple(slice(0, n) for n in SHAPE)
    stored = laid(upright, lying)
    theirs = dict(options)
    if options.pop("roi", None):
        order, backwards = seen_as(lying)
        turn = Turn(order, backwards, stored.shape)
        box = (slice(3, 16), slice(0, 17), slice(9, 31))
        lo, hi = tuple(s.start for s in box), tuple(s.stop for s in box)
        mine = turn.stored_box(unet_engine.plan.box.Box(lo, hi))
        options["roi"] = ",".join(f"{l}:{h}" for l, h in zip(mine.lo, mine.hi, strict=True))
        theirs["roi"] = ",".join(f"{l}:{h}" for l, h in zip(lo, hi, strict=True))
    expected = result_of(run(tmp_path, metaimage(tmp_path, upright, WANTED), network, **theirs))
    found = result_of(run(tmp_path, metaimage(tmp_path, stored, lying), network, **options))
    expected = np.stack([laid(c, lying) for c in expected]) if expected.ndim == 4 else laid(expected, lying)
    np.testing.assert_array_equal(found, expected)


RESAMPLED = {"spacing": [1.5, 1.25, 1.0], "spacing_unit": "millimeter", "resampling": {"image": 3, "output": 1}}


@pytest.mark.parametrize("lying", LYING[:3])
@pytest.mark.parametrize("grid", ["scan", "model"])
def test_together_with_another_spacing(tmp_path, upright, lying, grid):
    network = model(tmp_path, **RESAMPLED)
    options = {"output": "logits", "grid": grid}
    expected = result_of(run(tmp_path, metaimage(tmp_path, upright, WANTED), network, **options))
    scan = metaimage(tmp_path, laid(upright, lying), lying)
    out = run(tmp_path, scan, network, **options)
    np.testing.assert_array_equal(result_of(out), np.stack([laid(c, lying) for c in expected]))
    if grid == "scan":
        assert unet_engine.run(scan, model=network, out=out, resume=True, **options).blocks_written == 0


@pytest.mark.parametrize("resampled", [{}, RESAMPLED], ids=["as it is", "resampled"])
@pytest.mark.parametrize("lying", LYING[:3])
def test_together_with_an_edge_of_0_that_is_left_out(tmp_path, upright, lying, resampled):
    bordered = np.zeros_like(upright)
    bordered[4:17, 1:22, 6:30] = upright[4:17, 1:22, 6:30]
    network = model(tmp_path, crop="nonzero", **resampled)
    expected = result_of(run(tmp_path, metaimage(tmp_path, bordered, WANTED), network, output="probabilities"))
    assert not expected[:, :4].any()
    assert expected[:, 4:17].any()
    scan = metaimage(tmp_path, laid(bordered, lying), lying)
    found = run(tmp_path, scan, network, output="probabilities")
    np.testing.assert_array_equal(result_of(found), np.stack([laid(c, lying) for c in expected]))
    mine, theirs = open_volume(found, None), open_volume(scan, None)
    assert (mine.frame, mine.spacing, mine.translation) == (theirs.frame, theirs.spacing, theirs.translation)


def corners(frame: Frame, shape) -> np.ndarray:
    ends = np.array([[-0.5, n - 0.5] for n in shape])
    found = [np.array(frame.origin) + np.array(frame.matrix) @ np.array(c) for c in itertools.product(*ends)]
    return np.array(sorted(map(tuple, np.round(found, 6))))


@pytest.mark.parametrize("roi", [None, "2:15,4:19,1:17"])
@pytest.mark.parametrize("grid", ["scan", "model"])
@pytest.mark.parametrize("lying", LYING[-3:])
def test_the_result_lies_where_the_scan_does(tmp_path, upright, lying, grid, roi):
    scan = metaimage(tmp_path, laid(upright, lying), lying)
    out = run(tmp_path, scan, model(tmp_path, **RESAMPLED), grid=grid, roi=roi)
    theirs, mine = open_volume(scan, None), open_volume(out, None)
    frame = Frame.from_facts(unet_engine_attributes(out)["frame"])
    assert frame.orientation == lying
    if grid == "scan":
        lo = [int(part.split(":")[0]) for part in roi.split(",")] if roi else [0, 0, 0]
        assert frame == theirs.frame.moved(lo)
        assert mine.spacing == theirs.spacing
    elif roi is None:
        np.testing.assert_allclose(corners(frame, mine.shape), corners(theirs.frame, theirs.shape), atol=1e-5)


def unet_engine_attributes(out):
    import zarr

    return zarr.open_group(out, mode="r").attrs[PROVENANCE]


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("lying", ["IRP", "PIL"])
def test_a_mask_lies_as_the_scan_does(tmp_path, upright, lying, ratio):
    stored = laid(upright, lying)
    mask = np.random.default_rng(1).random([-(-n // ratio) for n in stored.shape]) > 0.6
    asked = {"output": "logits", "outside": "7"}
    path = make_volume(tmp_path / "mask.zarr", mask.astype(np.uint8), axes="zyx")
    scan, network = metaimage(tmp_path, stored, lying), model(tmp_path)
    found = result_of(run(tmp_path, scan, network, mask=path, **asked))
    whole = result_of(run(tmp_path, scan, network, output="logits"))
    inside = mask[np.ix_(*(np.arange(n) // ratio for n in stored.shape))]
    np.testing.assert_array_equal(found, np.where(inside, whole, np.float32(7)))


@pytest.mark.slow
def test_parts_workers_and_what_is_done_again_change_no_byte(tmp_path, upright):
    scan, network = metaimage(tmp_path, laid(upright, "IRP"), "IRP"), model(tmp_path)
    whole = run(tmp_path, scan, network, output="logits")
    parts = str(tmp_path / "parts.zarr")
    for i in (2, 3, 1):
        unet_engine.run(scan, model=network, out=parts, output="logits", part=f"{i}/3")
    np.testing.assert_array_equal(result_of(parts), result_of(whole))
    workers = run(tmp_path, scan, network, output="logits", workers=2)
    np.testing.assert_array_equal(result_of(workers), result_of(whole))
    failing = fake_model(tmp_path, name="id", fail_at=20, window=(8, 12, 16), orientation=WANTED, channels_out=3,
                         activation="softmax")  # fmt: skip
    again = str(tmp_path / "again.zarr")
    with pytest.raises(unet_engine.errors.BackendError):
        unet_engine.run(scan, model=failing, out=again, output="logits")
    before = len(list(Path(again).glob("0/c/*/*/*/*")))
    unet_engine.run(scan, model=model(tmp_path), out=again, output="logits", resume=True)
    np.testing.assert_array_equal(result_of(again), result_of(whole))
    assert before < len(list(Path(again).glob("0/c/*/*/*/*")))


@pytest.mark.parametrize("spec", [{}, RESAMPLED], ids=["as it is", "resampled"])
def test_a_voxel_that_is_no_number_is_named_where_it_is_stored(tmp_path, upright, spec):
    stored = laid(upright, "IRP").copy()
    stored[3, 20, 5] = np.nan
    with pytest.raises(unet_engine.errors.DataError, match="z=3 y=20 x=5"):
        run(tmp_path, metaimage(tmp_path, stored, "IRP"), model(tmp_path, **spec))


def test_planes_are_those_of_the_network(tmp_path, upright):
    network = fake_model(tmp_path, axes="yx", window=(8, 12), orientation=WANTED)
    expected = result_of(run(tmp_path, metaimage(tmp_path, upright, WANTED), network, output="logits"))
    found = result_of(run(tmp_path, metaimage(tmp_path, laid(upright, "RIP"), "RIP"), network, output="logits"))
    np.testing.assert_array_equal(found[0], laid(expected[0], "RIP"))


@pytest.mark.parametrize("seed", range(40))
def test_an_oblique_scan_is_taken_for_the_axes_that_nibabel_takes_it_for(seed):
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turned * rng.uniform(0.3, 4, 3) + rng.normal(size=(3, 3)) * 0.1
    frame = Frame.of(affine[:3], "RAS")
    assert frame.orientation == "".join(nibabel.aff2axcodes(affine))[::-1]


def test_an_oblique_scan_is_told(tmp_path, upright):
    path = Path(metaimage(tmp_path, upright, WANTED))
    c, s = np.cos(0.4), np.sin(0.4)
    path.write_bytes(
        path.read_bytes().replace(b"TransformMatrix = -1 0 0 0 -1 0 0 0 1", f"TransformMatrix = {-c} {-s} 0 {s} {-c} 0 0 0 1".encode())
    )  # fmt: skip
    notes = unet_engine.prepare.survey.survey(
        unet_engine.settings.settings.Settings.of(input=str(path), model=model(tmp_path), out=str(tmp_path / "o.zarr"))
    ).notes
    assert any("lies obliquely, 23 degrees from SAR" in note for note in notes), notes
