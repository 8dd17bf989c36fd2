"""MONAI bundles that run on other voxels than the scan's, against MONAI's own transforms and predictor."""

import numpy as np
import pytest
import zarr

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
monai = pytest.importorskip("monai")

from monai import transforms as mt  # noqa: E402

from support import bundles  # noqa: E402
from support.command_line import cli  # noqa: E402
from support.shares import share  # noqa: E402
from support.volumes import make_volume  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.make import make  # noqa: E402
from unet_export.importers.monai.behind import behind_of  # noqa: E402
from unet_export.importers.monai.config import Config  # noqa: E402
from unet_export.importers.monai.importer import MonaiBundle, about_outside  # noqa: E402
from unet_export.importers.monai.transforms import before_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("exported_once", "cache_of_its_own")


INVERT = {
    "_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False,
    "to_tensor": True,
}  # fmt: skip


def scanned(folder, array, spacing, codes):
    """A NIfTI whose voxels x, y, z are `spacing` long and point to `codes`."""
    nibabel = pytest.importorskip("nibabel")
    affine = np.zeros((4, 4))
    for axis, code in enumerate(codes):
        world = next(w for w, both in enumerate(("LR", "PA", "IS")) if code in both)
        affine[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    affine[:, 3] = [3, -4, 5, 1]
    path = folder / f"{codes}.nii"
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


def labels_of(scan, folder):
    """Of a run that blends and pads as these bundles do, in order x, y, z."""
    said = cli(
        "run", "--in", scan, "--model", folder, "--out", "o.zarr", "--overlap", "0.25", "--blend", "constant",
        "--padding", "constant",
    )  # fmt: skip
    assert said.code == 0, said.err
    return zarr.open_group("o.zarr", mode="r")["0"][...].transpose(2, 1, 0)


@pytest.mark.parametrize(
    ("way", "codes"), share([("probabilities", "SLP"), ("outputs", "RAS"), ("labels", "LPS"), ("saved", "PSR")])
)
def test_a_scan_of_another_spacing_and_orientation_gives_monais_labels(tmp_path, way, codes):
    """Its transforms before and behind, on the file."""
    before = [
        bundles.LOAD, {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}, bundles.SPACED, bundles.RANGE,
    ]  # fmt: skip
    activate, discrete = bundles.SOFTMAX
    behind = {
        "probabilities": [activate, INVERT, discrete], "outputs": [INVERT, activate, discrete],
        "labels": [activate, discrete, INVERT | {"nearest_interp": True}],
        "saved": [activate, discrete, {"_target_": "SaveImaged", "keys": "pred"}],
    }[way]  # fmt: skip
    folder = bundles.bundle(tmp_path / "b", before=before, behind=behind)
    array = np.random.default_rng(3).normal(50, 60, (37, 41, 30)).astype(np.float32)
    for axis in range(3):
        array = array + np.roll(array, 1, axis)
    scan = scanned(tmp_path, array, (1.0, 1.3, 1.7), codes)
    loaded = mt.Compose([
        mt.LoadImaged("image"), mt.EnsureChannelFirstd("image"), mt.Orientationd("image", axcodes="RAS"),
        mt.Spacingd("image", pixdim=bundles.SPACED["pixdim"], mode="bilinear"),
        mt.ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
    ])  # fmt: skip
    data = loaded({"image": scan})
    with torch.inference_mode():
        made = monai.inferers.sliding_window_inference(data["image"][None], (24, 16, 32), 2, bundles.network(), 0.25)[0]
    data["pred"] = made
    linear, nearest = (
        mt.Invertd("pred", transform=loaded, orig_keys="image", nearest_interp=n, to_tensor=True) for n in (False, True)
    )
    steps = {
        "probabilities": [mt.Activationsd("pred", softmax=True), linear, mt.AsDiscreted("pred", argmax=True)],
        "outputs": [linear, mt.AsDiscreted("pred", argmax=True)],
        "labels": [mt.AsDiscreted("pred", argmax=True), nearest],
        "saved": [mt.AsDiscreted("pred", argmax=True), nearest],
    }[way]
    theirs = np.asarray(mt.Compose(steps)(data)["pred"])[0]
    ours = labels_of(scan, folder)
    assert ours.shape == theirs.shape
    assert len(np.unique(theirs)) > 1
    assert (ours == theirs).mean() >= (0.999 if way in ("probabilities", "outputs") else 0.98)


EDGED = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}


@pytest.mark.parametrize(("spaced", "margin"), share([(False, [4, 9, 2]), (True, 4), (False, 0), (True, 0)]))
def test_a_scan_that_is_cropped_to_what_is_above_a_value_gives_monais_labels(tmp_path, spaced, margin):
    """Air of 0 once voxels are scaled; what is measured is measured of the box, windows begin with it, 0 is outside.
    spaced: of voxels that were brought to the network's spacing. margin: by which the box is larger, as far as there are
    voxels, which ends before at one side at least."""
    before = [
        bundles.LOAD, {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}, *([bundles.SPACED] if spaced else []), bundles.RANGE,
        EDGED | {"margin": margin, "allow_smaller": True}, bundles.ZSCORE,
    ]  # fmt: skip
    activate, discrete = bundles.SOFTMAX
    folder = bundles.bundle(tmp_path / "b", before=before, behind=[activate, INVERT, discrete])
    rng = np.random.default_rng(3)
    array = rng.choice([-1000, -57], (47, 41, 50)).astype(np.float32)  # the lower end itself is air, too
    array[5:38, 7:30, 9:49] = rng.normal(50, 60, (33, 23, 40))
    scan = scanned(tmp_path, array, (1.0, 1.3, 1.7), "LPS")
    loaded = mt.Compose([
        mt.LoadImaged("image"), mt.EnsureChannelFirstd("image"), mt.Orientationd("image", axcodes="RAS"),
        *([mt.Spacingd("image", bundles.SPACED["pixdim"], mode="bilinear")] if spaced else []),
        mt.ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
        mt.CropForegroundd("image", "image", margin=margin, allow_smaller=True),
        mt.NormalizeIntensityd("image"),
    ])  # fmt: skip
    data = loaded({"image": scan})
    shapes = {True: (22, 29, 35), False: (33, 23, 40)}
    assert (data["image"].shape[1:] == shapes[spaced]) == (margin == 0)
    with torch.inference_mode():
        data["pred"] = monai.inferers.sliding_window_inference(
            data["image"][None], (24, 16, 32), 2, bundles.network(), 0.25
        )[0]
    inverted = mt.Invertd("pred", transform=loaded, orig_keys="image", nearest_interp=False, to_tensor=True)
    behind = mt.Compose([mt.Activationsd("pred", softmax=True), inverted, mt.AsDiscreted("pred", argmax=True)])
    theirs = np.asarray(behind(data)["pred"])[0]
    ours = labels_of(scan, folder)
    assert len(np.unique(theirs)) > 1
    assert (ours == theirs).mean() >= 0.9999


@pytest.mark.parametrize(
    ("listed", "crop"),
    [
        ([EDGED], 0.0), ([bundles.RANGE, EDGED], -57.0), ([bundles.ZSCORE, EDGED], None), ([EDGED, bundles.ZSCORE], 0.0),
        ([bundles.RANGE, EDGED | {"margin": 3}], None), ([EDGED | {"margin": 3, "allow_smaller": True}], 0.0),
        ([EDGED | {"margin": [2, 0, 0]}], None), ([bundles.RANGE, EDGED | {"k_divisible": [8, 8, 8]}], None),
        ([bundles.RANGE | {"b_min": 1, "b_max": 2}, EDGED], -float(np.finfo(np.float32).max)),  # all of it is
        ([bundles.RANGE | {"b_min": -2, "b_max": -1}, EDGED], None), ([EDGED | {"source_key": "label"}], None),
        ([EDGED, bundles.SPACED], None), ([bundles.SPACED, bundles.RANGE, EDGED], -57.0),
        ([EDGED | {"select_fn": "$lambda x: x > -500"}], -500.0), ([EDGED, EDGED], 0.0),
    ],
)  # fmt: skip
def test_what_a_volume_is_cropped_to(listed, crop):
    said = Config("b", {"x": listed}, trusted=False).value("x")
    found = before_of(said)
    assert found.crop == crop
    assert (crop is None or listed == [EDGED, EDGED]) == ("CropForeground" in str(found.other))


def test_a_sigmoid_of_the_0_around_what_was_cropped_is_told():
    cropped, each = before_of([EDGED]), {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
    half, more = ({"_target_": "AsDiscreted", "keys": "pred", "threshold": t} for t in (0.5, 0.6))
    assert "outside of what CropForeground takes" in str(about_outside(cropped, behind_of([INVERT, each, half])))
    assert not about_outside(cropped, behind_of([INVERT, each, more]))
    assert not about_outside(cropped, behind_of([each, INVERT, half]))
    assert not about_outside(before_of([bundles.RANGE]), behind_of([INVERT, each, half]))


@pytest.mark.slow
def test_its_predictor_takes_voxels_of_another_size(tmp_path):
    """As a run does, to the digit: what a certificate is made of."""
    folder = bundles.bundle(
        tmp_path / "b", before=[bundles.LOAD, bundles.SPACED, bundles.RANGE], behind=[INVERT, *bundles.SOFTMAX]
    )
    found = MonaiBundle().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None)
    volume = np.random.default_rng(3).normal(50, 60, (1, 30, 33, 40)).astype(np.float32)
    spacing = (1.6, 1.3, 1.1)
    theirs = found.predictor(volume, found.promised["window"], spacing)
    scan = make_volume(tmp_path / "v.zarr", volume[0], axes="zyx", ome="0.5", scale=spacing, unit="millimeter")
    said = cli("run", "--in", scan, "--model", folder, "--out", "o.zarr", "--overlap", "0.25", "--blend", "constant",
               "--padding", "constant", "--output", "logits")  # fmt: skip
    assert said.code == 0, said.err
    ours = zarr.open_group("o.zarr", mode="r")["0"][...]
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())


PADDED = bundles.INFERER | {"padding_mode": "replicate"}
CERTIFIED = [
    ("interpolated", [bundles.SPACED, bundles.RANGE], [INVERT, *bundles.SOFTMAX], bundles.INFERER),
    (
        "brought back nearest",
        [bundles.SPACED, bundles.RANGE],
        [*bundles.SOFTMAX, INVERT | {"nearest_interp": True}],
        PADDED,
    ),
    ("measured interpolated", [bundles.SPACED, bundles.ZSCORE], [INVERT, *bundles.SOFTMAX], bundles.INFERER),
    ("measured before", [bundles.ZSCORE, bundles.SPACED], [INVERT, *bundles.SOFTMAX], PADDED),
]


@pytest.mark.parametrize(
    ("before", "behind", "inferer"), share(c[1:] for c in CERTIFIED), ids=[c[0] for c in CERTIFIED]
)
def test_the_certificate_is_of_voxels_of_another_size_where_it_resamples(tmp_path, before, behind, inferer):
    """Images smaller than the window are padded as the bundle does, what is measured is measured where it does."""
    folder = bundles.bundle(tmp_path / "b", before=[bundles.LOAD, *before], behind=behind, inferer=inferer)
    made = make(MonaiBundle(), Wanted(checkpoint=str(folder), out=str(tmp_path / "net.onnx")), lambda _: None)
    (certificate,) = made["credit"]["certificate"]
    assert certificate["against"].endswith("of voxels of another size")
    assert certificate["shape"][1:] == [61, 21, 31]  # windows of 32, 16 and 24 voxels, 9/7 times finer
    assert certificate["equal_labels"] >= 0.9999
    assert certificate["largest_difference"] < 1e-5
