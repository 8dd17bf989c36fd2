"""MONAI bundles, from folder or zip to what a run writes, against MONAI's own sliding window."""

import json
import re
import shutil

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
from support.importing import imported, refusal  # noqa: E402
from support.shares import share  # noqa: E402
from support.volumes import make_volume  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_engine.model.normalization import Normalization  # noqa: E402
from unet_engine.model.spec import ModelSpec  # noqa: E402
from unet_engine.volumes.normalize import scaling  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.certificate import label_of  # noqa: E402
from unet_export.importers.files import Files  # noqa: E402
from unet_export.importers.intensity import NotPossible  # noqa: E402
from unet_export.importers.monai.behind import behind_of, numbers_above  # noqa: E402
from unet_export.importers.monai.importer import MonaiBundle, _Reader  # noqa: E402
from unet_export.importers.monai.networks import decided  # noqa: E402
from unet_export.importers.monai.objects import about_objects  # noqa: E402
from unet_export.importers.monai.pads import about_pads  # noqa: E402
from unet_export.importers.monai.transforms import before_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("exported_once", "cache_of_its_own")


def test_a_bundle_keeps_what_its_configuration_says(tmp_path):
    said, model = imported(bundles.bundle(tmp_path / "b"))
    spec = model.spec
    assert (spec.name, spec.axes, spec.channels_in, spec.channels_out) == ("Spleen", "zyx", 1, 3)
    assert spec.window == (32, 16, 24)  # the network has x first
    assert spec.classes == ("background", "spleen", "tumour")
    assert (spec.activation, spec.channels) == ("softmax", "classes")
    assert all(spec.window_step)
    credit = model.credit
    assert (credit.version, credit.authors, credit.licence) == (
        "0.3.1", ("MONAI team",), "Apache License Version 2.0, January 2004"
    )  # fmt: skip
    assert credit.citation == ("Xia et al. 2018",)
    # which names no padding: MONAI's own is zeros
    assert credit.inference == {"overlap": "0.25", "blend": "constant", "padding": "constant"}
    (certificate,) = credit.certificate
    assert certificate.against == "MONAI's sliding_window_inference"
    assert certificate.largest_difference < 1e-3
    assert certificate.equal_labels is None or certificate.equal_labels >= 0.999
    assert "monai" in certificate.versions
    assert "--blend constant" in cli("info", "net.onnx").out
    assert "certificate" in said.err


@pytest.mark.parametrize("mode", share(["constant", "gaussian"]))
def test_a_run_gives_what_monai_gives_over_a_whole_volume(tmp_path, mode):
    folder = bundles.bundle(tmp_path / "b", inferer=bundles.INFERER | {"mode": mode})
    volume = np.random.default_rng(1).normal(50, 90, (1, 40, 33, 50)).astype(np.float32)
    tensor = mt.ScaleIntensityRange(-57, 164, 0, 1, clip=True)(torch.from_numpy(volume.transpose(0, 3, 2, 1).copy()))
    with torch.inference_mode():
        expected = monai.inferers.sliding_window_inference(
            tensor[None], (24, 16, 32), 2, bundles.network(), overlap=0.25, mode=mode
        )[0]
    path = make_volume(tmp_path / "v.zarr", volume[0], axes="zyx")
    blend = "monai" if mode == "gaussian" else "constant"
    said = cli(
        "run", "--in", path, "--model", folder, "--out", "o.zarr", "--overlap", "0.25", "--blend", blend,
        "--output", "logits", "--padding", "constant",
    )  # fmt: skip
    assert said.code == 0, said.err
    found = zarr.open_group("o.zarr", mode="r")["0"][...]
    np.testing.assert_allclose(found.transpose(0, 3, 2, 1), expected, atol=2e-4 * np.abs(expected.numpy()).max())


@pytest.mark.parametrize("form", share(["zip", "yaml"]))
def test_a_zip_and_yaml_are_the_same(tmp_path, form):
    folder = bundles.bundle(tmp_path / "b")
    _, first = imported(folder)
    if form == "zip":
        source = shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path, "b")
    else:
        yaml = pytest.importorskip("yaml")
        config = folder / "configs" / "inference.json"
        (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(json.loads(config.read_text())))
        config.unlink()
        source = folder
    assert imported(source)[1].spec == first.spec


@pytest.mark.parametrize(
    "said",
    share([
        {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2],
         "norm": "$monai.networks.layers.Norm.BATCH"},
        {"_target_": "monai.networks.nets.DynUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
         "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "deep_supervision": True, "filters": [4, 8, 8]},
        {"_target_": "BasicUNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 2, "features": [4, 4, 8, 8, 8, 4]},
        # which gives a list of one output
        {"_target_": "BasicUNetPlusPlus", "spatial_dims": 2, "in_channels": 3, "out_channels": 2, "features": [4] * 6},
    ]),
)  # fmt: skip
def test_networks_by_name(tmp_path, said):
    plain = {k: ("batch" if str(v).startswith("$") else v) for k, v in said.items()}
    plain["_target_"] = plain["_target_"].rpartition(".")[2]
    dims = said["spatial_dims"]
    behind = bundles.SOFTMAX if said["out_channels"] > 1 else [{"_target_": "Activationsd", "sigmoid": True}]
    folder = bundles.bundle(
        tmp_path / "b",
        said=plain,
        behind=behind,
        inferer=bundles.INFERER | {"roi_size": [48, 32] if dims == 2 else [32] * 3},
    )
    config = folder / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"network_def": said}))
    _, model = imported(folder)
    assert model.spec.axes == ("yx" if dims == 2 else "zyx")
    assert model.credit.certificate[0].largest_difference < 1e-3
    if dims == 2:
        assert model.spec.window == (32, 48)


# --- intensity ---

RAW = np.random.default_rng(4).gamma(2.0, 90.0, (2, 9, 10, 11)).astype(np.float32) - 40
RAW[RAW < 0] = 0
INTENSITY = {
    "range": [("ScaleIntensityRange", {"a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0, "clip": True})],
    "range, open": [("ScaleIntensityRange", {"a_min": 0, "a_max": 200, "b_min": -1.0, "b_max": 1.0})],
    "percentiles": [
        ("ScaleIntensityRangePercentiles", {"lower": 2, "upper": 98, "b_min": 0.0, "b_max": 1.0, "clip": True})
    ],
    "percentiles, to": [
        ("ScaleIntensityRangePercentiles", {"lower": 2, "upper": 98, "b_min": -2.0, "b_max": 3.0, "channel_wise": True})
    ],
    "percentiles, relative": [
        ("ScaleIntensityRangePercentiles", {"lower": 5, "upper": 95, "b_min": 0.0, "b_max": 10.0, "relative": True})
    ],
    "percentiles, relative, cut off at their own ends": [
        (
            "ScaleIntensityRangePercentiles",
            {"lower": 5, "upper": 90, "b_min": 0.0, "b_max": 2.0, "relative": True, "clip": True},
        )
    ],
    "scale": [("ScaleIntensity", {})],
    "scale of channels": [("ScaleIntensity", {"minv": -1.0, "maxv": 1.0, "channel_wise": True})],
    "factor": [("ScaleIntensity", {"minv": None, "maxv": None, "factor": 0.5})],
    "zscore": [("NormalizeIntensity", {})],
    "zscore of channels": [("NormalizeIntensity", {"channel_wise": True})],
    "zscore of what is not 0": [("NormalizeIntensity", {"nonzero": True, "channel_wise": True})],
    "fixed": [("NormalizeIntensity", {"subtrahend": [99.0, 40.0], "divisor": [39.0, 11.0], "channel_wise": True})],
    "clip, then zscore": [
        ("ScaleIntensityRange", {"a_min": 10, "a_max": 300, "b_min": 0.0, "b_max": 1.0, "clip": True}),
        ("NormalizeIntensity", {"channel_wise": True}),
    ],
    "percentiles are cut off": [("ClipIntensityPercentiles", {"lower": 5, "upper": 95, "channel_wise": True})],
    "percentiles of all channels are cut off": [("ClipIntensityPercentiles", {"lower": 5, "upper": 95})],
    "from above alone": [("ClipIntensityPercentiles", {"lower": None, "upper": 90, "channel_wise": True})],
    "cut off together, then each measured": [
        ("ClipIntensityPercentiles", {"lower": 5, "upper": 95}),
        ("NormalizeIntensity", {"channel_wise": True}),
    ],
    "each cut off, then measured together": [
        ("ClipIntensityPercentiles", {"lower": 5, "upper": 95, "channel_wise": True}),
        ("NormalizeIntensity", {}),
    ],
    "each cut off, then the ends of all": [
        ("ClipIntensityPercentiles", {"lower": 5, "upper": 95, "channel_wise": True}),
        ("ScaleIntensity", {}),
    ],
    "percentiles of what was cut off": [
        ("ClipIntensityPercentiles", {"lower": 5, "upper": 80}),
        (
            "ScaleIntensityRangePercentiles",
            {"lower": 10, "upper": 99, "b_min": 0.0, "b_max": 1.0, "channel_wise": True, "clip": True},
        ),
    ],
    "measured, then cut off": [
        ("NormalizeIntensity", {"channel_wise": True}),
        ("ClipIntensityPercentiles", {"lower": 5, "upper": 95, "channel_wise": True}),
    ],
    "cut off at values and percentiles, then measured": [
        ("ThresholdIntensity", {"threshold": 20.0, "cval": 20.0}),
        ("ClipIntensityPercentiles", {"lower": None, "upper": 95}),
        ("NormalizeIntensity", {"channel_wise": True}),
    ],
    "cut off together at the ends, then each measured": [
        ("ScaleIntensityRangePercentiles", {"lower": 2, "upper": 98, "b_min": 0.0, "b_max": 1.0, "clip": True}),
        ("NormalizeIntensity", {"channel_wise": True}),
    ],
    "from below": [("ThresholdIntensity", {"threshold": 20.0, "above": True, "cval": 20.0})],
}


@pytest.mark.parametrize("name", INTENSITY)
def test_what_the_network_is_fed_is_what_monai_feeds(name):
    listed = [{"_target_": f"{cls}d", "keys": ["image"], **kwargs} for cls, kwargs in INTENSITY[name]]
    found = before_of(listed)
    expected = torch.from_numpy(RAW.copy())
    for cls, kwargs in INTENSITY[name]:
        expected = getattr(mt, cls)(**kwargs)(expected)
    scale = scaling(Normalization.model_validate(found.intensity.normalization()), list(RAW))
    got = torch.from_numpy(np.stack([scale.normalised(v, c) for c, v in enumerate(RAW)])[None])
    for step in found.intensity.steps:
        got = step.on_torch(got)
    expected = np.asarray(expected)
    np.testing.assert_allclose(got[0].numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "said",
    [
        {"_target_": "Resized", "keys": "image", "spatial_size": [96, 96, 96]},
        {"_target_": "Lambdad", "keys": "image"},
        {"_target_": "ScaleIntensityRangePercentilesd"},
        {"_target_": "my.own.Thing"},
    ],
)
def test_transforms_without_a_counterpart_are_named(tmp_path, said):
    folder = bundles.bundle(tmp_path / "b", before=[bundles.LOAD, said])
    name = said["_target_"].rpartition(".")[2].removesuffix("d")
    assert name in refusal(folder) or "lower" in refusal(folder)


def of_image(name, **kwargs):
    return {"_target_": f"{name}d", "keys": "image", **kwargs}


CUT = {"lower": 2, "upper": 98, "b_min": 0.0, "b_max": 1.0, "clip": True}
CANNOT_FOLLOW = [
    [bundles.RANGE, of_image("NormalizeIntensity", nonzero=True)],
    [of_image("NormalizeIntensity", nonzero=True), of_image("ScaleIntensity")],
    [of_image("NormalizeIntensity", channel_wise=True), of_image("ScaleIntensity")],
    [
        of_image("ClipIntensityPercentiles", lower=2, upper=98),
        of_image("ClipIntensityPercentiles", lower=5, upper=95, channel_wise=True),
    ],
    [of_image("ScaleIntensityRangePercentiles", **CUT), of_image("ClipIntensityPercentiles", lower=5, upper=95)],
    [
        of_image("ClipIntensityPercentiles", lower=2, upper=98, channel_wise=True),
        of_image("ScaleIntensityRangePercentiles", **CUT),
    ],
    [of_image("ClipIntensityPercentiles", lower=2, upper=98, sharpness_factor=5.0)],
]


@pytest.mark.parametrize("listed", CANNOT_FOLLOW)
def test_statistics_of_what_was_normalised_are_refused(listed):
    """Where what was done before is no shift and scale of all that is measured."""
    with pytest.raises(NotPossible, match=listed[-1]["_target_"][:-1]):
        before_of(listed)


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("NormalizeIntensity", {"channel_wise": True}),
        ("NormalizeIntensity", {"channel_wise": True, "nonzero": True}),
        ("ScaleIntensity", {"channel_wise": True, "maxv": 2.0}),
    ],
)
def test_a_channel_whose_voxels_are_all_alike_is_fed_as_monai_feeds_it(name, kwargs, value):
    raw = RAW.copy()
    raw[1] = value
    expected = np.asarray(getattr(mt, name)(**kwargs)(torch.from_numpy(raw.copy())))
    scale = scaling(Normalization.model_validate(before_of([of_image(name, **kwargs)]).intensity.normalization()), raw)
    got = np.stack([scale.normalised(channel, c) for c, channel in enumerate(raw)])
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_channels_that_are_read_apart_and_joined():
    """Nothing that is done to them before is lost, and nothing is done to one alone."""
    read = {"_target_": "LoadImaged", "keys": ["t1", "flair"]}
    each = {"_target_": "NormalizeIntensityd", "keys": ["t1", "flair"]}
    joined = {"_target_": "ConcatItemsd", "keys": ["t1", "flair"], "name": "image"}
    found = before_of([read, each, joined])
    said = found.intensity.normalization()
    assert (said["mode"], "together" in said) == ("zscore", False)
    assert found.x_first
    assert "t1, flair, in this order" in found.left_out[0]
    with pytest.raises(NotPossible, match="NormalizeIntensity changes some of the channels alone"):
        before_of([read, each | {"keys": "t1"}, joined])


def test_the_key_of_the_image_is_the_one_that_is_read():
    listed = [{"_target_": "LoadImaged", "keys": "img"}, bundles.RANGE | {"keys": "img"}]
    assert before_of(listed).intensity.clip
    with pytest.raises(NotPossible, match="a, b"):
        before_of([{"_target_": "LoadImaged", "keys": ["a", "b"]}])


FLAT = bundles.NETWORK | {"spatial_dims": 2}


@pytest.mark.parametrize("across", share([0, 1, 2]))
def test_planes_across_any_axis_give_what_monai_gives(tmp_path, across):
    """Its axes are x, y, z; across z a plane of ours is a window, across others a window is one voxel thick."""
    inferer = {"_target_": "SliceInferer", "roi_size": [16, 24], "spatial_dim": across, "overlap": 0.25}
    folder = bundles.bundle(tmp_path / "b", said=FLAT, inferer=inferer)
    volume = np.random.default_rng(1).normal(50, 90, (1, 27, 33, 30)).astype(np.float32)
    tensor = mt.ScaleIntensityRange(-57, 164, 0, 1, clip=True)(torch.from_numpy(volume.transpose(0, 3, 2, 1).copy()))
    slices = monai.inferers.SliceInferer(across, roi_size=(16, 24), overlap=0.25)
    with torch.inference_mode():
        expected = slices(tensor[None], bundles.network(FLAT))[0].numpy()
    path = make_volume(tmp_path / "v.zarr", volume[0], axes="zyx")
    said = cli("run", "--in", path, "--model", folder, "--out", "o.zarr", "--overlap", "0.25", "--blend", "constant",
               "--padding", "constant", "--output", "logits")  # fmt: skip
    assert said.code == 0, said.err
    found = zarr.open_group("o.zarr", mode="r")["0"][...].transpose(0, 3, 2, 1)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("across", "axis"), [(0, "x"), (1, "y"), (2, "z")])
def test_planes_of_a_volume_that_is_turned_and_interpolated(tmp_path, across, axis):
    """They are windows of one voxel of it: a picture's spec has no orientation that its planes could be turned to."""
    inferer = {"_target_": "SliceInferer", "roi_size": [16, 24], "spatial_dim": across}
    before = [
        bundles.LOAD,
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        bundles.SPACED,
        bundles.RANGE,
    ]
    folder = bundles.bundle(tmp_path / "b", said=FLAT, before=before, inferer=inferer)
    said = MonaiBundle().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None).promised
    assert said["orientation"] == "SAR"
    assert said["spacing"] == (2.0, 1.1, 1.5)
    assert "resampling" in said
    assert said["window"]["zyx".index(axis)] == 1


@pytest.mark.parametrize("across", [3, -1, "z"])
def test_planes_across_no_axis_are_named(tmp_path, across):
    folder = bundles.bundle(tmp_path / "b", said=FLAT, inferer={"_target_": "SliceInferer", "spatial_dim": across})
    assert "it is 0, 1 or 2" in refusal(folder)


def test_geometry_and_what_is_left_out_are_told(tmp_path):
    before = [
        bundles.LOAD, {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.0, 2.0]}, bundles.RANGE,
        {"_target_": "CropForegroundd", "keys": "image"},
    ]  # fmt: skip
    behind = [*bundles.SOFTMAX, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}]
    folder = bundles.bundle(tmp_path / "b", before=before, behind=behind)
    assert "labels would be others" in (why := refusal(folder))
    assert "components LABELS OUT --values labels --largest 1 --connectivity 26 does it" in why
    said, model = imported(folder, "--uncertified")
    assert model.spec.spacing == (2.0, 1.0, 1.5)
    assert model.spec.spacing_unit == "millimeter"
    assert model.spec.orientation == "SAR"
    left_out = " ".join(model.credit.left_out)
    assert model.spec.crop == -57
    for word in ("KeepLargestConnectedComponent", "Orientation(RAS)"):
        assert word in left_out
        assert word in said.err


KEEP, SMALL, HOLES = "KeepLargestConnectedComponent", "RemoveSmallObjects", "FillHoles"


@pytest.mark.parametrize(
    ("name", "said", "dims", "labels", "words"),
    [
        (KEEP, {"applied_labels": [1, 3], "num_components": 2, "connectivity": 1}, 3, 3,
         "--largest 2 --connectivity 6 --classes 1,3 "),
        (KEEP, {"applied_labels": [1, 2], "independent": False}, 3, 2, "joins objects of several labels"),
        (KEEP, {"applied_labels": [0, 1]}, 3, 1, "background"), (KEEP, {}, 3, None, "may overlap"),
        (KEEP, {"before": "Invert"}, 3, 1, "before Invert"), (KEEP, {"connectivity": 4}, 3, 1, "not understood"),
        (SMALL, {}, 2, 1, "--min-size 64 --connectivity 4 "), (SMALL, {"min_size": 9}, 3, 2, "several labels"),
        (SMALL, {"by_measure": True}, 3, 1, "unit of the scan"), (HOLES, {"connectivity": 1}, 3, 1, "--fill-holes "),
        (HOLES, {}, 3, 1, "by faces"), (HOLES, {"connectivity": 1}, 3, 2, "several labels"),
    ],
)  # fmt: skip
def test_what_does_the_same_to_objects_is_named_where_something_does(name, said, dims, labels, words):
    assert words in about_objects([(name, said)], dims, labels)[0]


def test_code_in_one_postprocessing_hides_no_other(tmp_path):
    """Without the sigmoid the channels would be taken for classes that exclude one another."""
    behind = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: 1 - x"},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.3},
    ]
    folder = bundles.bundle(tmp_path / "b", behind=behind)
    assert "it holds the expression $lambda x: 1 - x" in refusal(folder)
    said, model = imported(folder, "--uncertified")
    assert (model.spec.activation, model.spec.channels, model.spec.threshold) == ("sigmoid", "multilabel", 0.3)
    assert "left out: postprocessing: it holds the expression $lambda x: 1 - x" in said.err


def test_postprocessing_tells_the_activation():
    assert behind_of([{"_target_": "AsDiscreted", "argmax": True}]).activation == "softmax"
    assert behind_of([{"_target_": "Activationsd", "sigmoid": True}]).activation == "sigmoid"
    each = {"_target_": "Activationsd", "sigmoid": True}
    assert behind_of([each, {"_target_": "AsDiscreted", "threshold": 0.3}]).threshold == 0.3
    assert behind_of([each, {"_target_": "AsDiscreted", "threshold": 0.5}]).threshold is None
    both = behind_of([each, {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False]}])
    assert (both.activation, both.exclusive) == ("softmax", True)
    assert behind_of([each, {"_target_": "AsDiscreted", "keys": "label", "argmax": True}]).activation == "sigmoid"
    assert (
        behind_of([each, {"_target_": "AsDiscreted", "threshold_values": True, "logit_thresh": 0.3}]).threshold == 0.3
    )


@pytest.mark.parametrize("channels", [1, 2])
def test_a_threshold_of_what_the_network_gives(channels):
    """Nothing says that these are logits whose half is meant."""
    found = behind_of([{"_target_": "AsDiscreted", "threshold": 0.5}])
    meaning = numbers_above(found.numbers_above, several=channels > 1)
    spec = spec_of(channels, **meaning)
    values = np.random.default_rng(0).standard_normal((channels, 5, 6)).astype(np.float32)
    np.testing.assert_array_equal(label_of(values, spec) > 0, (values >= 0.5).any(0))


def spec_of(out, **meaning):
    window = {"window": (8, 8), "window_min": (8, 8), "window_step": (8, 8), "margin": (0, 0)}
    return ModelSpec(name="n", axes="yx", channels_in=1, channels_out=out, **window, **meaning)


# --- how windows are put together, and labels made ---


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"padding_mode": "circular"}, "padding_mode=circular"), ({"cval": -1.0}, "cval=-1.0"),
        ({"overlap": [0.5, 0.25, 0.25]}, "overlap="), ({"sigma_scale": 0.3}, "sigma_scale=0.3"),
        ({"roi_size": [24, 16, -1]}, "as large as the image"), ({"_target_": "SimpleInferer"}, "as large as the image"),
    ],
)  # fmt: skip
def test_an_inferer_that_makes_other_labels_is_refused(tmp_path, said, words):
    folder = bundles.bundle(tmp_path / "b", inferer=bundles.INFERER | said)
    assert words in (why := refusal(folder))
    assert "labels would be others" in why


@pytest.mark.parametrize("said", [{"_target_": "SimpleInferer"}, {"roi_size": [24, 16, -1]}])
def test_windows_as_large_as_the_image_are_those_that_are_named(tmp_path, said):
    folder = bundles.bundle(tmp_path / "b", inferer=bundles.INFERER | said)
    wanted = Wanted(checkpoint=str(folder), out="net.onnx", window=(24, 16, 32))
    found = MonaiBundle().read(folder, wanted, lambda _: None)
    assert any("larger than --window" in line for line in found.credit.left_out)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"roi_size": "x"}, "roi_size of its inferer is ['x'], and numbers"), ({"roi_size": [32, [1], 16]}, "numbers"),
        ({"roi_size": [32, 16.5, 16]}, "no numbers of voxels"), ({"roi_size": {}}, "numbers"),
        ({"overlap": "x"}, "overlap of its inferer is ['x']"), ({"overlap": []}, "numbers"),
        ({"overlap": float("nan")}, "numbers"), ({"overlap": 1.5}, "no part of a window"),
    ],
)  # fmt: skip
def test_an_inferer_that_says_no_numbers_is_named(tmp_path, said, words):
    folder = bundles.bundle(tmp_path / "b", inferer=bundles.INFERER | said)
    with pytest.raises(ModelError, match=re.escape(words)):
        MonaiBundle().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None)


@pytest.mark.parametrize(("onehot", "other"), [(None, 1), (3, 0)])
def test_a_threshold_of_labels_makes_one_of_all(onehot, other):
    """Of three classes 0.27 of the labels were others, without a word."""
    said = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True, "threshold": 0.5, "to_onehot": onehot}
    found = behind_of([{"_target_": "Activationsd", "keys": "pred", "softmax": True}, said])
    assert (found.exclusive, found.threshold, len(found.other)) == (True, None, other)


ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}


@pytest.mark.parametrize(
    ("applied", "kept"), [([2], {2}), (3, {3}), ([0, 1, 3, 7, -1, 1.5], {1, 3, 7}), (range(1, 3), {1, 2})]
)
def test_labels_that_are_kept_are_those_of_monai(applied, kept):
    found = behind_of([ARGMAX, {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": applied}])
    assert (found.kept, found.other) == (kept, [])
    spec = spec_of(4, channels="classes", kept_labels=tuple(kept))
    values = np.random.default_rng(3).standard_normal((4, 15, 16)).astype(np.float32)
    theirs = mt.LabelFilter(applied)(torch.from_numpy(values).argmax(0)).numpy()
    np.testing.assert_array_equal(label_of(values, spec), theirs)


def test_two_filters_keep_what_both_do():
    filters = [{"_target_": "LabelFilter", "applied_labels": labels} for labels in ([1, 2], [2, 3])]
    assert behind_of([ARGMAX, *filters]).kept == {2}


@pytest.mark.parametrize(
    ("before", "applied", "words"),
    [
        ([], [1], "no argmax"), ([{"_target_": "Activationsd", "sigmoid": True}], [1], "no argmax"),
        ([{**ARGMAX, "to_onehot": 3}], [1], "one-hot"), ([ARGMAX], ["a"], "not understood"), ([ARGMAX], None, "not understood"),
        ([ARGMAX], [0], "no label"), ([ARGMAX], [], "no label"),
        ([ARGMAX, {"_target_": "SaveImaged", "resample": False}], [1], "has all labels"),
        ([ARGMAX, {"_target_": "FillHolesd", "applied_labels": [1]}], [1], "behind FillHoles"),
    ],
)  # fmt: skip
def test_a_filter_of_what_are_no_labels_is_named(before, applied, words):
    found = behind_of([*before, {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": applied}])
    assert found.kept is None
    assert words in " ".join(found.other)


def test_kept_labels_are_promised_by_a_bundle(tmp_path):
    behind = [*bundles.SOFTMAX, {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}]
    folder = bundles.bundle(tmp_path / "b", behind=behind)
    said = MonaiBundle().read(folder, Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None).promised
    assert said["kept_labels"] == (2,)


@pytest.mark.parametrize("name", ["MeanEnsembled", "VoteEnsembled"])
def test_what_puts_several_networks_together_is_refused(tmp_path, name):
    """One of them ran, and the others were left out: without a word, of a mean."""
    post = [{"_target_": name, "keys": ["pred0", "pred1"], "output_key": "pred"}]
    said = refusal(bundles.bundle(tmp_path / "b", postprocessing={"_target_": "Compose", "transforms": post}))
    assert "2 networks give (pred0, pred1)" in said
    assert "--model A.onnx,B.onnx" in said


@pytest.mark.parametrize(
    ("given", "threshold", "other"),
    [([{"sigmoid": True}], None, 0), ([{"softmax": True}], None, 0), ([], None, 1)],
)
def test_rounded_outputs(given, threshold, other):
    found = behind_of(
        [*({"_target_": "Activations", **g} for g in given), {"_target_": "AsDiscrete", "rounding": "torchrounding"}]
    )
    assert (found.threshold, len(found.other)) == (threshold, other)


@pytest.mark.parametrize(
    ("said", "x_first", "orientation"),
    [
        ({}, True, None), ({"reader": "NibabelReader", "as_closest_canonical": True}, True, "RAS"),
        ({"reader": "ITKReader", "reverse_indexing": True}, False, None), ({"reader": "PILReader"}, True, None),
        ({"reader": "PILReader", "reverse_indexing": False}, False, None), ({"reader": "NumpyReader"}, False, None),
        ({"reader": "NrrdReader", "index_order": "C"}, False, None), ({"channel_dim": -1, "image_only": True}, True, None),
    ],
)  # fmt: skip
def test_options_of_readers(said, x_first, orientation):
    """A scan that its reader turns was not turned here, without a word: 0.47 of the labels were the same."""
    found = before_of([{"_target_": "LoadImaged", "keys": "image", **said}])
    assert (found.x_first, found.orientation) == (x_first, orientation)


@pytest.mark.parametrize(
    "listed",
    [
        [of_image("LoadImage", swap_ij=False)], [of_image("LoadImage", reader=["ITKReader", "NibabelReader"])],
        [bundles.RANGE, of_image("CastToType", dtype="int32")], [of_image("EnsureType", dtype="torch.uint8")],
    ],
)  # fmt: skip
def test_reading_that_has_no_counterpart_is_refused(listed):
    with pytest.raises(NotPossible, match=listed[-1]["_target_"][:-1]):
        before_of(listed)


@pytest.mark.parametrize(
    ("listed", "measured", "other"),
    [
        ([bundles.ZSCORE, of_image("SpatialPad", spatial_size=[32, 32, 32])], 0, 0),
        ([of_image("SpatialPad", spatial_size=32), bundles.RANGE], 0, 1),
        ([bundles.RANGE, of_image("SpatialPad", spatial_size=32)], 0, 0),
        ([of_image("SpatialPad", spatial_size=32), bundles.RANGE | {"a_min": 0}], 0, 0),
        ([of_image("SpatialPad", spatial_size=32), of_image("ShiftIntensity", offset=1)], 0, 1),
        ([of_image("SpatialPad", spatial_size=32), of_image("NormalizeIntensity", subtrahend=5, divisor=2)], 0, 1),
        ([bundles.ZSCORE, of_image("SpatialPad", spatial_size=[64, 32, 32])], 0, 1),
        ([bundles.ZSCORE, of_image("SpatialPad", spatial_size=32, mode="reflect")], 0, 1),
        ([of_image("DivisiblePad", k=16), bundles.ZSCORE], 1, 1),
        ([of_image("SpatialPad", spatial_size=32), of_image("NormalizeIntensity", nonzero=True)], 0, 0),
        ([of_image("SpatialPad", spatial_size=32, value=-1), of_image("NormalizeIntensity", nonzero=True)], 1, 1),
    ],
)  # fmt: skip
def test_padding_counts_where_it_is_measured_and_is_nothing_within_a_window(listed, measured, other):
    """What a run puts around a volume is 0 for the network."""
    found = before_of(listed)
    assert (len(found.other), len(about_pads(found, (32, 32, 32)))) == (measured, other)


@pytest.mark.parametrize(
    ("names", "given", "found"),
    [
        (["tumour_net"], None, "tumour_net"), (["network_def", "tumour_net"], None, "network_def"),
        (["network_def", "tumour_net"], "@tumour_net", "tumour_net"), (["liver_net", "tumour_net"], None, None),
    ],
)  # fmt: skip
def test_which_of_several_networks_is_meant(tmp_path, names, given, found):
    """What the evaluator is given, and not what is called network_def beside it."""
    folder = bundles.bundle(tmp_path / "b")
    config = folder / "configs" / "inference.json"
    said = json.loads(config.read_text())
    network = said.pop("network_def")
    said.pop("network", None)
    said |= dict.fromkeys(names, network) | ({"evaluator": {"network": given}} if given else {})
    config.write_text(json.dumps(said))
    with Files(folder) as files:
        reader = _Reader(files, Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None)
        if found:
            assert reader._named() == found
            return
        with pytest.raises(
            ModelError, match=r"networks liver_net, tumour_net, and none is called network_def.*--model A"
        ):
            reader._named()


class Searched(torch.nn.Module):
    """Asks a tensor what it is made of, as MONAI's DiNTS does."""

    def __init__(self):
        super().__init__()
        self.node_a = torch.tensor([[0, 1]])

    def forward(self, x):
        return x + 1 if self.node_a[0][1] else x


def test_an_architecture_that_a_tensor_tells_is_known_while_a_graph_is_made():
    given = (torch.zeros(1),)
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(Searched(), given)
    assert torch.export.export(decided(Searched()), given).module()(*given) == 1
