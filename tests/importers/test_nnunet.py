"""nnU-Net result folders, from folder to labels, against nnU-Net's own predictor. Networks are built by its own library
from plans that the tests write."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("nnunetv2.inference.predict_from_raw_data")

import unet_engine  # noqa: E402
from support import nnunet  # noqa: E402
from support.command_line import cli  # noqa: E402
from support.volumes import fake_model, make_volume, result_of  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.model.spec import Resampling  # noqa: E402
from unet_engine.stitching import operations  # noqa: E402
from unet_engine.volumes.normalize import scaling  # noqa: E402
from unet_export.conversion.adapt import adapted  # noqa: E402
from unet_export.importers import certificate  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.certificate import affordable, certified  # noqa: E402
from unet_export.importers.make import _spec, make  # noqa: E402
from unet_export.importers.nnunet.importer import NnUNet  # noqa: E402
from unet_export.importers.nnunet.plans import Interpolated  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared/models/nnunet_layout"
PATCH = (8, 16, 16)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))


def refused(source, *options):
    """The one line that says why."""
    said = cli("import", source, "--out", "net.onnx", *options)
    assert said.code != 0, said.out
    assert not Path("net.onnx").exists()
    lines = [line for line in said.err.splitlines() if line]
    assert len(lines) == 1, said.err
    return lines[0]


OLD = {
    "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8,
    "n_conv_per_stage_encoder": [1, 1, 1], "n_conv_per_stage_decoder": [1, 1], "num_pool_per_axis": [1, 2, 2],
    "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]], "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
}  # fmt: skip
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def old_plans() -> Any:
    config = nnunet.configuration(PATCH)
    del config["architecture"]
    return config | OLD


CASES = {
    "3d_fullres": ({}, {"mirror": (0, 1, 2)}),
    "3d_lowres": ({"architecture": nnunet.architecture(3, kind="ResidualEncoderUNet", strides=ANISOTROPIC)}, {}),
    "batch norm": ({"architecture": nnunet.architecture(3, norm="BatchNorm")}, {}),
    "several channels": (
        {"schemes": ("CTNormalization", "RGBTo01Normalization", "NoNormalization")},
        {"dataset_json": nnunet.dataset(3)},
    ),
    "z-score": ({"schemes": ("ZScoreNormalization",) * 2}, {"dataset_json": nnunet.dataset(2), "mirror": (1,)}),
    "a CT and a PET": (
        {"schemes": ("CTNormalization", "ZScoreNormalization", "NoNormalization")},
        {"dataset_json": nnunet.dataset(3)},
    ),
    "0 to 1": ({"schemes": ("RescaleTo01Normalization",)}, {}),
    "x first": ({}, {"transpose": (2, 0, 1), "mirror": (0, 2)}),
    "y first": ({}, {"transpose": (1, 0, 2)}),
    "planes": ({"patch": (16, 24)}, {"mirror": (0, 1)}),
    "planes, turned": ({"patch": (16, 24)}, {"transpose": (0, 2, 1), "mirror": (1,)}),
    "planes across x": ({"patch": (16, 24)}, {"transpose": (2, 0, 1), "mirror": (0,)}),
}


def read(source, **wanted):
    """What was read, and the spec that a model file of it would have."""
    found = NnUNet().read(Path(source), Wanted(checkpoint=str(source), out="net.onnx", **wanted), lambda _: None)
    window, channels = found.promised["window"], found.promised["channels_in"]
    network = adapted(found.members[0].network, window, channels, None, lambda _: None)
    return found, _spec(found, Wanted(checkpoint=str(source), out="net.onnx", **wanted), network)


def one_window(found, spec, volume):
    """What becomes of a volume that is one window, by what was read alone: normalised, mirrored as the spec says."""
    scale = scaling(spec.normalization, list(volume))
    image = torch.from_numpy(np.stack([scale.normalised(v, c) for c, v in enumerate(volume)]).astype(np.float32))[None]
    axes = [2 + spec.axes.index(a) for a in spec.mirror_axes]
    poses = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
    with torch.inference_mode():
        return np.mean([found.members[0].network(image.flip(p)).flip(p)[0].numpy() for p in poses], axis=0)


@pytest.mark.parametrize("case", CASES)
def test_a_folder_gives_what_nnunets_own_predictor_gives(tmp_path, case):
    config, more = CASES[case]
    config = nnunet.configuration(config.get("patch", PATCH), **{k: v for k, v in config.items() if k != "patch"})
    folder = nnunet.result_folder(tmp_path / "r", case, config, **more)
    if case == "batch norm":  # which a trainer takes, whatever the plans say
        plans = folder / "plans.json"
        plans.write_text(plans.read_text().replace("BatchNorm", "InstanceNorm"))
    found, spec = read(folder)
    volume = found.example(spec.window)[(slice(None), *(slice(0, n) for n in spec.window))]
    ours, theirs = one_window(found, spec, volume), found.predictor(volume, spec.window)
    assert ours.shape == theirs.shape == (3, *spec.window)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    middle = np.median(theirs.reshape(3, -1), axis=1).reshape(3, *(1,) * (theirs.ndim - 1))
    labels = [
        (logits - middle).argmax(0) for logits in (ours, theirs)
    ]  # of one not trained, one class may win everywhere
    assert len(np.unique(labels[1])) > 1
    assert (labels[0] == labels[1]).mean() >= 0.999


def test_plans_of_older_versions_are_read(tmp_path):
    found, spec = read(nnunet.result_folder(tmp_path / "r", "3d_fullres", old_plans()))
    assert (spec.window, spec.window_step) == (PATCH, (2, 4, 4))
    volume = found.example(spec.window)[(slice(None), *(slice(0, n) for n in spec.window))]
    np.testing.assert_allclose(one_window(found, spec, volume), found.predictor(volume, spec.window), atol=1e-4)


def test_a_configuration_may_inherit_from_another(tmp_path):
    large = {"inherits_from": "3d_fullres", "patch_size": [8, 16, 24]}
    folder = nnunet.result_folder(
        tmp_path / "r", "large", {**large, "normalization_schemes": ["CTNormalization"]},
        configurations={"3d_fullres": nnunet.configuration(PATCH), "large": large},
    )  # fmt: skip
    assert read(folder)[1].window == (8, 16, 24)


def test_the_spec_says_what_the_folder_says(tmp_path):
    about = nnunet.dataset(name="Chest", licence="CC-BY-4.0", reference="10.1/x", release="1.0")
    config = nnunet.configuration(PATCH)
    folder = nnunet.result_folder(
        tmp_path / "r", "3d_fullres", config, transpose=(2, 0, 1), mirror=(0, 1), dataset_json=about
    )
    found, spec = read(folder)
    assert (spec.name, spec.axes, spec.classes) == (
        "Dataset042_Chest 3d_fullres", "zyx", ("background", "lung", "heart"),
    )  # fmt: skip
    assert (spec.window, spec.window_step) == ((16, 16, 8), (4, 4, 4))  # x comes first there
    assert (spec.spacing, spec.spacing_unit) == ((0.8, 0.7, 1.5), "millimeter")
    assert spec.mirror_axes == "zx"
    assert spec.resampling == Resampling(
        image=3, image_apart=0, output=1, output_apart=0, apart="anisotropic", cut="extremes"
    )
    assert str(spec.normalization) == "fixed:mean=60,std=150,clip=-500:400"
    assert (spec.activation, spec.channels) == ("softmax", "classes")
    credit = found.credit
    assert (credit.licence, credit.citation, credit.version) == ("CC-BY-4.0", ("10.1/x",), "1.0")
    assert "Chest, 3d_fullres, nnUNetTrainer, folds 0" in credit.source
    assert spec.crop == "nonzero"


@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of another's nnU-Net")
def test_a_folder_as_nnunet_itself_writes_it():
    found, spec = read(SHARED)
    assert (spec.window, spec.mirror_axes) == ((16, 48, 64), "zyx")
    assert str(spec.normalization) == "fixed:mean=60,std=150,clip=-500:400"
    assert found.predictor is not None


REGIONS = {"background": 0, "tumour": [1, 2, 3], "core": [2, 3], "vessel": 3}


def test_regions_are_written_in_their_order_as_nnunet_writes_them(tmp_path):
    """On the CPU and, by the same rule, where sums lie on a device."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    about = nnunet.dataset(labels=REGIONS, regions_class_order=[2, 5, 1])
    folder = nnunet.result_folder(tmp_path / "r", "2d", nnunet.configuration((16, 24)), dataset_json=about)
    found, spec = read(folder)
    assert (spec.regions, spec.activation, spec.channels) == ((2, 5, 1), "sigmoid", "multilabel")
    assert spec.classes == ("background", "vessel", "tumour", "class 3", "class 4", "core")
    scan = np.random.default_rng(1).normal(50, 200, (1, 2, 30, 41)).astype(np.float32)
    logits = found.predictor(scan, (16, 24))
    manager = PlansManager(json.loads((folder / "plans.json").read_text())).get_label_manager(about)
    theirs = manager.convert_logits_to_segmentation(logits)
    assert len(np.unique(theirs)) > 2
    ours = np.empty(theirs.shape, np.uint8)
    operations.regions(logits, ours, spec.regions, spec.activation)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_run_of_regions_gives_later_ones_over_earlier_ones(tmp_path, device):
    image = np.random.default_rng(3).normal(size=(3, 20, 33)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", image, axes="cyx")
    model = fake_model(
        tmp_path, axes="yx", channels_in=3, channels_out=3, activation="sigmoid", channels="multilabel",
        regions=[4, 2, 300],
    )  # fmt: skip
    out = unet_engine.run(volume, model=model, out="o.zarr", device=device, blend="crop").out
    expected = np.zeros(image.shape[1:], np.uint16)
    for channel, label in zip(image, (4, 2, 300), strict=True):
        expected[channel > 0] = label
    np.testing.assert_array_equal(result_of(out), expected)
    largest = unet_engine.run(volume, model=model, out="c.zarr", device=device, blend="crop", channels="classes").out
    best = np.where(image.max(0) > 0, image.argmax(0) + 1, 0)
    np.testing.assert_array_equal(result_of(largest), best)


def test_a_reader_that_turns_scans_tells_the_orientation(tmp_path):
    source = nnunet.result_folder(tmp_path / "r", "3d_fullres", nnunet.configuration(PATCH))
    plans = json.loads((source / "plans.json").read_text())
    assert read(source)[1].orientation is None
    (source / "plans.json").write_text(json.dumps(plans | {"image_reader_writer": "NibabelIOWithReorient"}))
    assert read(source)[1].orientation == "SAR"


def test_resampling_that_is_not_known_is_left_out_and_told(tmp_path):
    config = nnunet.configuration(PATCH, resampling_fn_data="resample_torch_simple")
    found, spec = read(nnunet.result_folder(tmp_path / "r", "3d_fullres", config))
    assert spec.resampling is None
    assert any("resampling as its plans have it" in line for line in found.credit.left_out)


BY_TORCH = {"is_seg": False, "memefficient_seg_resampling": False}


@pytest.mark.parametrize(
    ("function", "said", "kept"),
    [
        ("resample_torch_fornnunet", {"force_separate_z": False}, (1, 0, False)),
        ("resample_torch_fornnunet", {"separate_z_anisotropy_threshold": 3}, (1, 0, None)),
        ("resample_torch_fornnunet", {"force_separate_z": True, "aniso_axis_mode": "linear"}, (1, 1, True)),
        ("resample_data_or_seg_to_shape", {"order": 1}, (1, 0, False)),  # its own default
        ("resample_data_or_seg_to_shape", {"force_separate_z": None}, (3, 0, None)),
        ("resample_torch_fornnunet", {"mode": "bicubic"}, None),
        ("resample_torch_fornnunet", {"separate_z_anisotropy_threshold": 2}, None),
        ("resample_data_or_seg_to_shape", {"force_separate_z": None, "separate_z_anisotropy_threshold": 2}, None),
        ("resample_torch_simple", {}, None),
    ],
)
def test_functions_that_resample_are_taken_as_plans_call_them(function, said, kept):
    assert Interpolated(**BY_TORCH, **said).splines(function) == kept


def test_plans_that_resample_nothing_take_voxels_of_any_size_and_others_theirs(tmp_path):
    found, spec = read(nnunet.result_folder(tmp_path / "r", "3d_fullres", untouched()))
    assert (spec.spacing, spec.resampling, found.credit.left_out) == (None, None, ())
    spec = read(nnunet.result_folder(tmp_path / "other", "3d_fullres", by_torch()))[1]
    assert spec.resampling == Resampling(image=1, image_apart=0, output=1, output_apart=0, apart="anisotropic")
    assert spec.spacing is not None


def untouched():
    said = {f"resampling_fn_{what}": "no_resampling_hack" for what in ("data", "probabilities")}
    return nnunet.configuration(PATCH, **said, **{f"{key}_kwargs": {} for key in said})


def by_torch():
    said, function = BY_TORCH | {"force_separate_z": None}, "resample_torch_fornnunet"
    return nnunet.configuration(
        PATCH, resampling_fn_data=function, resampling_fn_data_kwargs=said, resampling_fn_probabilities=function,
        resampling_fn_probabilities_kwargs=said,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [(1.1, 0.6, 0.9), (5.0, 0.9, 0.6)])
@pytest.mark.parametrize("config", [by_torch(), untouched()])
def test_scans_of_other_voxels_give_what_nnunet_makes_of_them_with_its_other_planners(tmp_path, config, spacing):
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", config, mirror=(1,))
    scan = np.random.default_rng(1).normal(50, 200, (1, 11, 25, 33)).astype(np.float32)
    theirs = read(folder)[0].predictor(scan, PATCH, spacing)
    volume = make_volume(tmp_path / "v.zarr", scan[0], axes="zyx", ome="0.5", scale=spacing, unit="millimeter")
    said = cli("run", "--in", volume, "--model", folder, "--out", "o.zarr", "--blend", "nnunet", "--output", "logits")
    assert said.code == 0, said.err
    np.testing.assert_allclose(result_of("o.zarr"), theirs, atol=2e-5 * np.ptp(theirs))


def test_a_run_of_the_folder_gives_nnunets_labels_and_carries_its_certificate(tmp_path):
    """From raw voxels to labels, planes of a volume one by one, as its own predictor does it."""
    folder = nnunet.result_folder(tmp_path / "r", "2d", nnunet.configuration((16, 24)), mirror=(1,))
    scan = np.random.default_rng(1).normal(50, 200, (1, 3, 30, 41)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", scan[0], axes="zyx")
    said = cli("run", "--in", volume, "--model", folder, "--out", "o.zarr", "--blend", "nnunet")
    assert said.code == 0, said.err
    theirs = read(folder)[0].predictor(scan, (16, 24)).argmax(0)
    assert len(np.unique(theirs)) > 1
    assert (result_of("o.zarr") == theirs).mean() >= 0.999
    (certificate,) = zarr.open_group("o.zarr", mode="r").attrs["unet_engine"]["credit"]["certificate"]
    assert certificate["against"].startswith("nnUNetPredictor")
    assert certificate["equal_labels"] >= 0.9999
    assert set(certificate["dice"]) == {"background", "lung", "heart"}


BORDERED = (slice(3, 14), slice(6, 31), slice(0, 33))
"""Where the scans below are not 0."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "spacing"), [((16, 24), (1.5, 0.8, 0.7)), (PATCH, (1.9, 0.7, 0.9)), (PATCH, (5.0, 0.9, 0.6))]
)
def test_a_scan_with_an_edge_of_0_gives_what_nnunets_own_predictor_gives(tmp_path, patch, spacing):
    """It crops: its z-score is of the box, its windows begin there, and its volume is resampled to the box's shape. It
    cuts off at the extremes, of each plane where z is apart."""
    name = "2d" if len(patch) == 2 else "3d_fullres"
    config = nnunet.configuration(patch, schemes=("ZScoreNormalization", "ZScoreNormalization"))
    folder = nnunet.result_folder(tmp_path / "r", name, config, dataset_json=nnunet.dataset(2), mirror=(1,))
    scan = np.zeros((2, 17, 33, 41), np.float32)
    sharp = np.random.default_rng(1).choice([20, 230], (2, 11, 25, 33))  # what splines overshoot
    scan[:, *BORDERED] = sharp * np.linspace(0.5, 1, 11)[:, None, None]
    theirs = read(folder)[0].predictor(scan, patch, spacing)
    volume = make_volume(tmp_path / "v.zarr", scan, axes="czyx", ome="0.5", scale=(1, *spacing), unit="millimeter")
    said = cli("run", "--in", volume, "--model", folder, "--out", "o.zarr", "--blend", "nnunet", "--output", "logits")
    assert said.code == 0, said.err
    ours = result_of("o.zarr")
    np.testing.assert_allclose(ours[:, *BORDERED], theirs, atol=2e-5 * np.ptp(theirs))
    ours[:, *BORDERED] = 0
    assert not ours.any()


# --- which folder, which fold -----------------------------------------------------------------------------------------


def test_a_fold_a_checkpoint_and_a_folder_around_name_the_same(tmp_path):
    folder = nnunet.result_folder(tmp_path / "data/r", "3d_fullres", nnunet.configuration(PATCH), folds=("0", "1"))
    first, spec = read(folder, folds="0")
    for source, options in (
        (folder / "fold_0", {}), (folder / "fold_0/checkpoint_final.pth", {}), (folder.parent, {"folds": "0"}),
    ):  # fmt: skip
        found, other = read(source, **options)
        assert other.model_copy(update={"name": spec.name}) == spec
        assert found.credit.source == first.credit.source
        assert [m.name for m in found.members] == ["fold_0"]
    assert read(folder, folds="1")[0].credit.source.endswith("folds 1")
    assert [m.name for m in read(folder)[0].members] == ["fold_0", "fold_1"], "all, as nnU-Net does"


def test_the_best_checkpoint_stands_in_for_the_final_one(tmp_path):
    config = nnunet.configuration(PATCH)
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", config, checkpoint="checkpoint_best.pth")
    assert read(folder)[1].window == PATCH
    (folder / "fold_0/checkpoint_best.pth").rename(folder / "fold_0/checkpoint_latest.pth")
    assert "its training has not ended" in refused(folder)


def test_folds_that_nnunet_passes_over_are_passed_over_and_told(tmp_path):
    """`auto_detect_available_folds` takes those that are numbered and have the last checkpoint."""
    config = nnunet.configuration(PATCH)
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", config, folds=("0", "1", "all"))
    (folder / "fold_1/checkpoint_final.pth").rename(folder / "fold_1/checkpoint_best.pth")
    for folds in (None, "all"):
        found, _ = read(folder, folds=folds)
        assert [member.name for member in found.members] == ["fold_0"]
        assert [line.partition(",")[0] for line in found.credit.left_out] == ["fold_1", "fold_all"]
    assert [member.name for member in read(folder, folds="fold_all")[0].members] == ["fold_all"]
    assert [member.name for member in read(folder, folds="0,1")[0].members] == ["fold_0", "fold_1"]


def test_code_that_plans_name_is_refused(whole, tmp_path):
    own = {"configurations__3d_fullres__preprocessor_name": "OurPreprocessor", "label_manager": "OurLabels"}
    folder = changed(whole, tmp_path / "c", "plans.json", **own)
    assert "OurPreprocessor and OurLabels, which is code" in refused(folder)
    assert read(folder, uncertified=True)[1].window == PATCH


def test_folds_that_are_not_there_are_named(tmp_path):
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", nnunet.configuration(PATCH), folds=("0", "3"))
    assert "has 0, 3" in refused(folder, "--folds", "7")
    assert "a fold twice" in refused(folder, "--folds", "0,0")


def test_several_configurations_in_a_folder_are_named(tmp_path):
    for name in ("T__P__2d", "T__P__3d"):
        nnunet.result_folder(tmp_path / "data" / name, "3d_fullres", nnunet.configuration(PATCH))
    assert "T__P__2d, T__P__3d" in refused(tmp_path / "data")


# --- what is refused, in one line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return nnunet.result_folder(tmp_path_factory.mktemp("n") / "r", "3d_fullres", nnunet.configuration(PATCH))


def changed(whole, folder, name, **values):
    """A copy of the folder with other values in one of its texts; a dotted key is changed inside."""
    shutil.copytree(whole, folder)
    said = json.loads((folder / name).read_text())
    for key, value in values.items():
        at, *inside = key.split("__")
        target = said
        while inside:
            target, at = target[at], inside.pop(0)
        if value is None:
            target.pop(at, None)
        else:
            target[at] = value
    (folder / name).write_text(json.dumps(said))
    return folder


CONFIG = "configurations__3d_fullres__"
ARCH = CONFIG + "architecture__"
WRONG = [
    ("plans.json", {CONFIG + "previous_stage": "3d_lowres"}, "second stage of a cascade"),
    ("plans.json", {CONFIG + "patch_size": [8, 0, 16]}, "patch_size"),
    ("plans.json", {CONFIG + "patch_size": "large"}, "patch_size"),
    ("plans.json", {CONFIG + "patch_size": None}, "patch_size"),
    ("plans.json", {CONFIG + "spacing": [1.0, 1.0]}, "spacing and patch_size"),
    ("plans.json", {CONFIG + "normalization_schemes": ["MyOwn"]}, "normalisation MyOwn is not known"),
    ("plans.json", {CONFIG + "normalization_schemes": []}, "normalises 0 channels"),
    ("plans.json", {"foreground_intensity_properties_per_channel": {}}, "lacks the intensities of channel 0"),
    ("plans.json", {"configurations": {}}, "has no configuration '3d_fullres'"),
    ("plans.json", {"configurations": None}, "configurations"),
    ("plans.json", {"transpose_forward": [0, 1, 1]}, "does not undo"),
    ("plans.json", {"transpose_forward": [2, 0, 1]}, "does not undo"),
    ("plans.json", {CONFIG + "inherits_from": "3d_fullres"}, "inherits from itself"),
    ("plans.json", {ARCH + "network_class_name": "os.system"}, "is none of PlainConvUNet"),
    ("plans.json", {ARCH + "network_class_name": "my.package.Primus"}, "is none of PlainConvUNet"),
    ("plans.json", {ARCH + "arch_kwargs__conv_op": "os.system"}, "none of the layers that are known"),
    ("plans.json", {ARCH + "arch_kwargs__norm_op": "torch.hub.load"}, "none of the layers that are known"),
    ("plans.json", {ARCH + "arch_kwargs__n_stages": 10**12}, "n_stages is no number"),
    ("plans.json", {ARCH + "arch_kwargs__n_stages": 2}, "cannot be built as its plans say"),
    ("plans.json", {ARCH + "arch_kwargs__features_per_stage": [4, 8, 12]}, "the network has"),
    ("plans.json", {ARCH + "arch_kwargs__strides": None}, "strides"),
    ("plans.json", {ARCH + "arch_kwargs__more": 3}, "cannot be built as its plans say"),
    ("dataset.json", {"labels": {"lung": 1}}, "background is 0"),
    ("dataset.json", {"labels": {"background": 0, "lung": -1}}, "whole numbers from 0"),
    ("dataset.json", {"labels": {"background": 0, "lung": "one"}}, "labels"),
    ("dataset.json", {"labels": {"background": 0, "lung": 1, "heart": []}}, "or lists of some"),
    ("dataset.json", {"labels": {"background": 0, "lung": 1, "heart": 2, "ribs": 3}}, "the network has"),
    ("dataset.json", {"labels": {"background": 0, "all": [1, 2], "core": 2}}, "regions_class_order"),
    ("dataset.json", {"channel_names": None}, "channel_names"),
    ("dataset.json", {"channel_names": {"0": "a", "1": "b"}}, "normalises 1 channels"),
]


@pytest.mark.parametrize(("name", "values", "words"), WRONG, ids=[f"{i}" for i in range(len(WRONG))])
def test_what_a_folder_cannot_say_is_named_in_one_line(whole, tmp_path, name, values, words):
    assert words in refused(changed(whole, tmp_path / "r", name, **values))


def test_channels_that_are_measured_beside_others_have_ways_of_their_own(tmp_path):
    config = nnunet.configuration(PATCH, schemes=("CTNormalization", "ZScoreNormalization"), mask=(False, True))
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", config, dataset_json=nnunet.dataset(2))
    assert (
        str(read(folder)[1].normalization)
        == "fixed:mean=60,std=150,clip=-500:400;zscore:foreground=filled,whole,eps=1e-08"
    )
    assert str(read(folder, normalize="zscore")[1].normalization) == "zscore"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_a_text_that_is_none_is_named(whole, tmp_path, name, content):
    shutil.copytree(whole, tmp_path / "r")
    (tmp_path / "r" / name).write_bytes(content)
    assert name in refused(tmp_path / "r")


def test_files_that_are_missing_are_named(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "r")
    (tmp_path / "r/dataset.json").unlink()
    assert "lacks the file dataset.json" in refused(tmp_path / "r")
    shutil.copytree(whole, tmp_path / "s")
    shutil.rmtree(tmp_path / "s/fold_0")
    assert "has no fold_0" in refused(tmp_path / "s")
    shutil.copytree(whole, tmp_path / "t")
    (tmp_path / "t/fold_0/checkpoint_final.pth").unlink()
    assert "has neither checkpoint_final.pth" in refused(tmp_path / "t")


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("case", ["pickle", "truncated", "empty", "no weights", "archive", "link"])
def test_nothing_in_a_checkpoint_is_executed(whole, tmp_path, case):
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    path = folder / "fold_0/checkpoint_final.pth"
    held = path.read_bytes()
    path.unlink()
    if case == "pickle":
        path.write_bytes(pickle.dumps(Hostile()))
    elif case == "truncated":
        path.write_bytes(held[: len(held) // 2])
    elif case == "empty":
        path.touch()
    elif case == "no weights":
        torch.save({"state_dict": {}}, path)
    elif case == "archive":
        torch.save({"network_weights": {"a": torch.zeros(1)}, "trainer_name": Hostile()}, path)
    else:
        (tmp_path / "elsewhere.pth").write_bytes(held)
        path.symlink_to(tmp_path / "elsewhere.pth")
    assert "checkpoint_final.pth" in refused(folder)
    assert not Path("executed").exists()


def test_the_first_version_and_foreign_folders_are_told_apart(tmp_path):
    (tmp_path / "v1/fold_0").mkdir(parents=True)
    (tmp_path / "v1/plans.pkl").write_bytes(pickle.dumps(Hostile()))
    assert "nnU-Net 1" in refused(tmp_path / "v1")
    (tmp_path / "foreign").mkdir()
    assert not NnUNet().recognises(tmp_path / "foreign")
    assert not NnUNet().recognises(tmp_path / "nothing")
    assert not Path("executed").exists()


def test_the_certificate_is_of_voxels_of_another_size_where_plans_resample(tmp_path):
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", nnunet.configuration(PATCH))
    found, spec = read(folder)
    assert found.example_spacing == tuple(s / 1.25 for s in spec.spacing)
    out = tmp_path / "net.onnx"
    made = make(NnUNet(), Wanted(checkpoint=str(folder), out=str(out)), lambda _: None)
    (certificate,) = made["credit"]["certificate"]
    assert certificate["against"].endswith("of voxels of another size")
    assert tuple(certificate["shape"][1:]) == found.example(spec.window).shape[1:]
    assert certificate["largest_difference"] < 1e-4
    as_they_are = replace(found, predictor=lambda volume, window, _: found.predictor(volume, window))
    with pytest.raises(ModelError, match="would not give what the source does"):
        certified(as_they_are, open_model(out))


@pytest.mark.slow
def test_planes_across_another_axis_are_brought_to_their_spacing(tmp_path):
    """Within the plane alone: its distance to the next one may be any."""
    folder = nnunet.result_folder(tmp_path / "r", "2d", nnunet.configuration((16, 24)), transpose=(2, 0, 1))
    found, spec = read(folder)
    assert spec.spacing == (0.8, 0.7, 0.0)
    scan = np.random.default_rng(1).normal(50, 200, (1, 11, 30, 5)).astype(np.float32)
    spacing = (3.1, 0.9, 0.7)
    volume = make_volume(tmp_path / "v.zarr", scan[0], axes="zyx", ome="0.5", scale=spacing, unit="millimeter")
    said = cli("run", "--in", volume, "--model", folder, "--out", "o.zarr", "--blend", "nnunet", "--output", "logits")
    assert said.code == 0, said.err
    theirs = found.predictor(scan, spec.window, spacing)
    np.testing.assert_allclose(result_of("o.zarr"), theirs, atol=2e-5 * np.ptp(theirs))


def test_a_large_answer_is_compared_in_smaller_windows(tmp_path, monkeypatch):
    """Of admissible sizes."""
    found, spec = read(nnunet.result_folder(tmp_path / "r", "3d_fullres", nnunet.configuration((8, 16, 24))))
    spec = spec.model_copy(update={"channels_out": 3, "flops": 10**6})
    assert (spec.window_min, spec.window_step) == ((8, 8, 8), (4, 4, 4))
    assert affordable(found, spec)[0] == (8, 16, 24)
    fixed = spec.model_copy(update={"window_step": (0, 0, 0), "window_min": (8, 16, 24)})
    with monkeypatch.context() as less:
        less.setattr(certificate, "VALUES", 3 * found.example((8, 12, 16))[0].size)
        chosen, volume = affordable(found, spec)
        assert chosen == (8, 12, 16)
        assert volume.shape == found.example(chosen).shape
        assert affordable(found, fixed)[0] == (8, 16, 24)
    monkeypatch.setattr(certificate, "WORK", 1e3)
    assert affordable(found, spec)[0] == (8, 8, 8)


def test_a_certificate_in_smaller_windows_says_so(tmp_path, monkeypatch):
    folder = nnunet.result_folder(tmp_path / "r", "3d_fullres", nnunet.configuration((8, 16, 24)))
    monkeypatch.setattr(certificate, "VALUES", 2**13)
    made = make(NnUNet(), Wanted(checkpoint=str(folder), out=str(tmp_path / "net.onnx")), lambda _: None)
    (found,) = made["credit"]["certificate"]
    assert "in windows of" in found["against"]
    assert found["equal_labels"] >= 0.999
    assert np.prod(found["shape"]) < 2**13 * 4
