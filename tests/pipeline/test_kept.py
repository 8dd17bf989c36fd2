"""Labels of which some are left out: on both pipelines, in any blocks, resampled, where nothing was measured."""

from __future__ import annotations

import numpy as np
import pytest

import unet_engine
from support.arrays import assert_same_bits
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import ModelError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.spec import ModelSpec
from unet_engine.pipeline.reduction import REDUCTIONS
from unet_engine.plan.resampling import AxisResampling
from unet_engine.prepare.outside import stored_of
from unet_engine.stitching.interpolation import taps

IMAGE = np.random.default_rng(7).normal(size=(4, 20, 33)).astype(np.float32)
EXPECTED = np.where(np.isin(IMAGE.argmax(0), (1, 3)), IMAGE.argmax(0), 0)


def volume(folder, **options):
    return make_volume(folder / "v.zarr", IMAGE, axes="cyx", **options)


def run(folder, scan, **options):
    options = {"device": "cpu", "blend": "crop", "overwrite": True, **options}
    return result_of(unet_engine.run(scan, out=str(folder / "o.zarr"), **options).out)


def classes(folder, kept=(1, 3), **spec):
    said = {"activation": "softmax", "channels": "classes", **({"kept_labels": kept} if kept else {}), **spec}
    return fake_model(folder, axes="yx", channels_in=4, channels_out=4, **said)


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("block", [(1, 1), (2, 3), (9, 9)])
def test_others_become_0_in_any_blocks(tmp_path, device, block, monkeypatch):
    monkeypatch.setattr("unet_engine.prepare.draft.default_block", lambda *_: block)
    np.testing.assert_array_equal(run(tmp_path, volume(tmp_path), model=classes(tmp_path), device=device), EXPECTED)


def test_where_sums_are_brought_to_the_grid_of_the_scan(tmp_path):
    scan = volume(tmp_path, ome="0.5", scale=(1.0, 1.0, 1.0), unit="millimeter")
    said = {"spacing": [1.3, 1.1], "spacing_unit": "millimeter", "resampling": {}}
    best = run(tmp_path, scan, model=classes(tmp_path, None, **said))
    assert set(np.unique(best)) == {0, 1, 2, 3}
    for device in ("cpu", "simulated"):
        found = run(tmp_path, scan, model=classes(tmp_path, **said), device=device)
        np.testing.assert_array_equal(found, np.where(np.isin(best, (1, 3)), best, 0))


@pytest.mark.parametrize("of", ["outputs", "probabilities"])
def test_parts_that_leave_out_classes_keep_the_same(of):
    """A part numbers classes by those that can win in it: 1 of these is another label."""
    sums = np.zeros((6, 8, 40, 40), np.float32)
    sums[2], sums[4, 3:], sums[5, :, 30:] = 2, 4, 8
    grid = [taps(AxisResampling(n, 2 * n, 1), 0, 2 * n, 0) for n in sums.shape[1:]]
    best = REDUCTIONS["labels"]("softmax", "uint16", of=of).on_grid(sums.copy(), grid)
    found = REDUCTIONS["labels"]("softmax", "uint16", of=of, kept=(4, 5, 300)).on_grid(sums.copy(), grid)
    assert set(np.unique(best)) == {2, 4, 5}
    assert_same_bits(found, np.where(best == 2, 0, best).astype(np.uint16))


def test_probabilities_are_those_of_all_classes(tmp_path):
    scan, options = volume(tmp_path), {"output": "probabilities", "dtype": "float32"}
    assert_same_bits(
        run(tmp_path, scan, model=classes(tmp_path), **options),
        run(tmp_path, scan, model=classes(tmp_path, None), **options),
    )


def spec(**more):
    said = {"window": (8, 8), "window_min": (8, 8), "window_step": (8, 8), "margin": (0, 0), "channels_out": 3, **more}
    return ModelSpec(name="n", axes="yx", channels_in=1, **said)


def test_windows_of_nothing_are_what_is_kept_of_them():
    assert stored_of(spec(kept_labels=(1,)), "labels", "uint8", (0, 3, 0)) == (1,)
    assert stored_of(spec(kept_labels=(1,)), "labels", "uint8", (0, 0, 3)) == (0,)
    assert "kept_labels" not in spec().model_dump()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"kept_labels": ()}, "none of the labels"), ({"kept_labels": (0, 3)}, "none of the labels"),
        ({"kept_labels": (1,), "activation": "sigmoid"}, "exclude one another"),
    ],
)  # fmt: skip
def test_what_keeps_nothing_is_no_spec(said, why):
    with pytest.raises(ValueError, match=why):
        spec(**said)


def test_a_model_that_is_told_to_be_of_another_kind(tmp_path):
    """Of what may overlap, or is an image, no labels are left out."""
    model = open_model(classes(tmp_path, activation="none"))
    assert model.meant("image").spec.kept_labels is None
    assert model.meant("classes").spec.kept_labels == (1, 3)
    with pytest.raises(SettingsError, match="exclude one another"):
        model.activated("sigmoid")
    with pytest.raises(ModelError, match="none of the labels"):
        open_model(classes(tmp_path, (9,)))
