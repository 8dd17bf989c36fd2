"""Training: repeatable, honest about its data, and it learns."""

import numpy as np
import pytest

from support.shares import share
from unet_engine.errors import DataError, InputError, SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.plan.box import Box
from unet_export.train.geometry import UNetConfig

torch = pytest.importorskip("torch")

from unet_export.train import data  # noqa: E402
from unet_export.train.__main__ import main  # noqa: E402
from unet_export.train.augment import NO_AUGMENTATION, Augmentation, deform, flip_and_turn, vary  # noqa: E402
from unet_export.train.data import LabelledVolume  # noqa: E402
from unet_export.train.evaluate import predict  # noqa: E402
from unet_export.train.loss import dice_per_class, segmentation_loss  # noqa: E402
from unet_export.train.nets import UNet  # noqa: E402
from unet_export.train.training import TrainSettings, train  # noqa: E402

TINY = UNetConfig(dims=3, classes=2, base=2, depth=1)


def halves(shape=(24, 16, 16)):
    """Bright is class 1, dark is class 0."""
    labels = (np.arange(shape[2]) >= shape[2] // 2).astype(np.uint8) * np.ones(shape, np.uint8)
    return LabelledVolume((labels * 150 + 50)[None], labels)


def silent(_line):
    pass


def settings(**changes):
    return TrainSettings(**{"window": (8, 8, 8), "steps": 3, "holdout": 8, "lr": 1e-2, **changes})


@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(bf16):
    first, again, other = (
        train(TINY, halves(), settings(seed=seed, bf16=bf16), silent).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("dims", share([2, 3]))
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_an_easy_task_is_learned(dims, padding):
    config = UNetConfig(dims=dims, classes=2, base=4, depth=1, padding=padding)
    trained = train(config, halves((40, 32, 32)), settings(window=(24,) * dims, steps=40), silent)
    assert min(trained.dice) > 0.9


def test_ignored_voxels_change_neither_loss_nor_dice():
    labels = torch.tensor([[[0, 1], [255, 255]]])
    logits = torch.randn(1, 2, 2, 2)
    changed = logits.clone()
    changed[..., 1, :] += 5
    assert torch.equal(segmentation_loss(logits, labels, 255), segmentation_loss(changed, labels, 255))
    assert dice_per_class(np.array([0, 1, 0]), np.array([0, 1, 255]), 2, ignore=255) == (1.0, 1.0)


def test_loss_is_cross_entropy_plus_dice_and_zero_when_sure_and_right():
    labels = torch.randint(0, 3, (2, 6, 6))
    logits = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 50.0
    assert segmentation_loss(logits, labels) < 1e-4
    flat = torch.zeros(2, 3, 6, 6)
    dice = [(2 * n / 3 + 1) / (24 + n + 1) for n in torch.bincount(labels.ravel(), minlength=3).tolist()]
    assert segmentation_loss(flat, labels).item() == pytest.approx(np.log(3) + 1 - np.mean(dice), rel=1e-5)


def test_dice_of_a_class_that_nobody_has_is_one():
    assert dice_per_class(np.zeros(4, int), np.zeros(4, int), 2) == (1.0, 1.0)
    assert dice_per_class(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2) == pytest.approx((2 / 3, 4 / 5))


def image_and_labels(shape):
    labels = torch.arange(int(np.prod(shape))).reshape(shape)
    return labels[None].float(), labels


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (2, 4, 4)])
def test_image_and_labels_move_together(shape):
    rng = np.random.default_rng(0)
    for _ in range(10):
        image, labels = flip_and_turn(*image_and_labels(shape), rng, Augmentation())
        assert torch.equal(image[0].long(), labels)
        assert labels.shape == shape
        assert torch.equal(labels.ravel().sort().values, torch.arange(labels.numel()))


def test_anisotropic_data_keep_their_slices():
    rng = np.random.default_rng(0)
    for _ in range(10):
        _, labels = flip_and_turn(*image_and_labels((4, 4, 4)), rng, NO_AUGMENTATION)
        assert {int(plane.min()) // 16 for plane in labels} == {0, 1, 2, 3}
        assert all(int(plane.max()) - int(plane.min()) == 15 for plane in labels)


@pytest.mark.parametrize("shape", [(32, 32), (16, 24, 32)])
def test_deformation_moves_image_and_labels_alike_and_invents_no_class(shape):
    labels = (torch.arange(shape[-1]) // 8 * torch.ones(shape)).long()
    image, moved = deform(labels[None].float(), labels, np.random.default_rng(0), Augmentation(elastic=2))
    assert set(moved.unique().tolist()) <= set(labels.unique().tolist())
    assert not torch.equal(moved, labels)
    assert ((image[0] - moved).abs() <= 0.5001).float().mean() > 0.99


def test_variation_is_drawn_from_the_generator_alone():
    start = image_and_labels((16, 16))
    first, again = (vary(*start, np.random.default_rng(3), Augmentation()) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_prediction_covers_the_box_and_windows_agree_with_one_big_window():
    """With a receptive field below the trim, tiling must not show."""
    volume = halves((24, 40, 40))
    rng = np.random.default_rng(0)
    volume = LabelledVolume(rng.integers(0, 255, volume.image.shape, np.uint8), volume.labels)
    model = UNet(UNetConfig(dims=3, classes=3, base=2, depth=0, padding="same"))
    pair = data.shift_scale(Normalization(mode="zscore"), volume.image)
    box = Box((10, 3, 5), (24, 40, 31))
    whole = predict(model, volume, Box.of_shape(volume.shape), normalization=pair, window=volume.shape)
    tiled = predict(model, volume, box, normalization=pair, window=(24, 24, 24))
    assert np.array_equal(tiled, whole[box.slices()])


@pytest.mark.parametrize(
    ("image", "labels", "error", "message"),
    [
        (np.zeros((1, 4, 4, 4)), np.zeros((4, 4, 5), int), InputError, "on one grid"),
        (np.zeros((1, 4, 4, 4)), np.zeros((4, 4, 4)), InputError, "integer class ids"),
        (np.zeros((1, 0, 4, 4)), np.zeros((0, 4, 4), int), InputError, "no voxels"),
        (np.zeros((1, 4, 4, 4)), np.zeros((4, 4, 4), int), DataError, "class 0 alone"),
        (np.zeros((1, 4, 4, 4)), np.arange(64).reshape(4, 4, 4), DataError, "label 2 is out of range for 2 classes"),
        (np.zeros((1, 4, 4, 4)), np.arange(64).reshape(4, 4, 4) - 62, DataError, "label -62 is out of range"),
    ],
)
def test_labels_that_do_not_fit_are_refused(image, labels, error, message):
    with pytest.raises(error, match=message):
        LabelledVolume(image, labels).check_classes(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": (32, 8, 8)}, "larger than the volume"),
        ({"window": (9, 8, 8)}, "not admissible"),
        ({"window": (8, 8)}, "3 sizes"),
        ({"holdout": 24}, "cannot hold out 24 of 24"),
        ({"steps": 0}, "steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        train(TINY, halves(), settings(**changes), silent)


def test_files_are_read_in_the_axes_that_are_named(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    zarr = pytest.importorskip("zarr")
    rgb = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    labels = rgb[..., 0] % 2
    tifffile.imwrite(tmp_path / "image.tif", rgb, photometric="rgb")
    np.save(tmp_path / "image.npy", rgb)
    zarr.save_array(tmp_path / "image.zarr", rgb)
    np.save(tmp_path / "labels.npy", labels)
    for name in ("image.tif", "image.npy", "image.zarr"):
        volume = data.load(tmp_path / name, tmp_path / "labels.npy", axes="yxc")
        assert volume.shape == (1, 5, 6)
        assert np.array_equal(volume.image[:, 0], rgb.transpose(2, 0, 1))
    with pytest.raises(InputError, match="pass its --axes"):
        data.load(tmp_path / "image.npy", tmp_path / "labels.npy", axes="yx")
    with pytest.raises(SettingsError, match="not understood"):
        data.load(tmp_path / "image.npy", tmp_path / "labels.npy", axes="ab")
    with pytest.raises(InputError, match="does not exist"):
        data.read_array(tmp_path / "none.tif")
    (tmp_path / "broken.tif").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read"):
        data.read_array(tmp_path / "broken.tif")


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("none", 10, 110), ("range:10,110", 0, 1), ("minmax", 0, 1), ("percentile:0,100", 0, 1), ("zscore", None, None)],
)
def test_normalisation_maps_the_volume_as_the_spec_says(text, low, high):
    image = np.linspace(10, 110, 1001).reshape(1, 7, 11, 13)
    shift, scale = data.shift_scale(Normalization.parse(text), image)
    x = (torch.from_numpy(image) - shift) * scale
    if text == "zscore":
        assert (float(x.mean()), float(x.std())) == pytest.approx((0, 1), abs=1e-3)
    else:
        assert (float(x.min()), float(x.max())) == pytest.approx((low, high), abs=1e-4)


def test_a_constant_image_has_no_scale():
    with pytest.raises(DataError, match="voxels that differ"):
        data.shift_scale(Normalization(mode="zscore"), np.ones((1, 2, 2, 2)))


def test_the_command_trains_reports_and_writes(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    out = tmp_path / "tissue.onnx"
    network = "--dims 2 --base 2 --depth 1 --window 32,32"
    code = main(f"--synthetic 40,48,48 {network} --steps 4 --holdout 8 --out {out} --empty".split())
    said = capsys.readouterr().out
    assert code == 0
    assert out.is_file()
    assert "held-out Dice: outside " in said
    assert "step 4/4" in said


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--out model.onnx", 2, "give --image"),
        ("--synthetic 40,48,48 --out model.txt", 2, "no model format"),
        ("--synthetic 40,48,48 --depth 2 --window 33,32,32 --out model.onnx", 2, "not admissible"),
        ("--synthetic 40,48,48 --classes a,b --depth 2 --window 8,8,8 --out model.onnx", 4, "label 2 is out of range"),
        ("--image none.tif --labels none.tif --classes a,b --out model.onnx", 3, "does not exist"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(line, code, message, capsys):
    assert main(line.split()) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
