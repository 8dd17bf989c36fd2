"""Labels where a channel on its own exceeds another number than a half: on both pipelines, resampled, masks,
regions."""

from __future__ import annotations

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import ModelError, ResumeError, SettingsError
from unet_engine.model.file import open_model

IMAGE = np.random.default_rng(7).normal(size=(3, 20, 33)).astype(np.float32)
LOGIT = np.log(0.8 / 0.2)


def volume(folder, image=IMAGE, **options):
    return make_volume(folder / "v.zarr", image, axes="cyx", **options)


def run(folder, scan, device="cpu", out="o", **options):
    out = str(folder / f"{out}.zarr")
    return result_of(unet_engine.run(scan, out=out, device=device, blend="crop", overwrite=True, **options).out)


def each(folder, **spec):
    return fake_model(
        folder, axes="yx", channels_in=3, channels_out=3,
        **{"activation": "sigmoid", "channels": "multilabel", **spec},
    )  # fmt: skip


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_masks_labels_and_regions(tmp_path, device):
    scan = volume(tmp_path)
    masks = run(tmp_path, scan, device, model=each(tmp_path, threshold=0.8), output="masks")
    np.testing.assert_array_equal(masks, IMAGE > LOGIT)
    best = np.where(IMAGE.max(0) > LOGIT, IMAGE.argmax(0) + 1, 0)
    labels = run(tmp_path, scan, device, model=each(tmp_path, channels="classes"), threshold=0.8)
    np.testing.assert_array_equal(labels, best)
    regions = run(tmp_path, scan, device, model=each(tmp_path, regions=[4, 2, 9]), threshold=0.8)
    expected = np.zeros(best.shape, np.uint8)
    for channel, label in zip(IMAGE, (4, 2, 9), strict=True):
        expected[channel > LOGIT] = label
    np.testing.assert_array_equal(regions, expected)


@pytest.mark.parametrize(
    ("activation", "threshold", "limit"), [("probabilities", 0.2, 0.2), ("none", -1.5, -1.5), ("sigmoid", 0.2, -LOGIT)]
)
def test_one_channel(tmp_path, activation, threshold, limit):
    scan = volume(tmp_path, IMAGE[:1])
    found = run(tmp_path, scan, model=fake_model(tmp_path, axes="yx", activation=activation, threshold=threshold))
    np.testing.assert_array_equal(found, IMAGE[0] > limit)


def test_where_sums_are_brought_to_the_grid_of_the_scan(tmp_path):
    scan = volume(tmp_path, ome="0.5", scale=(1.0, 1.0, 1.0), unit="millimeter")
    network = each(tmp_path, spacing=[1.3, 1.1], spacing_unit="millimeter", resampling={})
    numbers = run(tmp_path, scan, model=network, output="logits")
    np.testing.assert_array_equal(run(tmp_path, scan, model=network, output="masks", threshold=0.8), numbers > LOGIT)


def test_another_threshold_is_another_run(tmp_path):
    scan, network = volume(tmp_path), each(tmp_path)
    run(tmp_path, scan, model=network, output="masks", threshold=0.8)
    with pytest.raises(ResumeError, match="spec"):
        unet_engine.run(scan, model=network, out=str(tmp_path / "o.zarr"), output="masks", resume=True, blend="crop")


def test_what_makes_no_sense_is_named(tmp_path):
    scan = volume(tmp_path)
    exclusive = fake_model(tmp_path, name="x", axes="yx", channels_in=3, channels_out=3, activation="softmax")
    for options, why in (
        ({"threshold": 1.5}, "a probability, above 0 and below 1"),
        ({"threshold": 0.3, "output": "probabilities"}, "makes labels and masks"),
        ({"threshold": 0.3, "model": exclusive, "output": "labels"}, "of classes the largest wins"),
    ):
        with pytest.raises(SettingsError, match=why):
            run(tmp_path, scan, **{"model": each(tmp_path), "output": "masks", **options})
    with pytest.raises(ModelError, match="threshold"):
        open_model(each(tmp_path, threshold=2.0))
    said = cli(
        "run", "--in", scan, "--model", each(tmp_path), "--output", "masks", "--threshold", "0.8", "--out", "c.zarr"
    )
    assert said.code == 0, said.err


def test_a_window_of_nothing_is_what_its_constant_is(tmp_path):
    image = np.zeros((1, 40, 40), np.float32)
    image[0, :9, :9] = 1
    scan = volume(tmp_path, image, fill_value=0)
    network = fake_model(tmp_path, axes="yx", activation="none", empty=[0.0], threshold=-0.5)
    assert run(tmp_path, scan, model=network).all()
