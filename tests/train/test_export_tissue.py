"""Synthetic tissue: the same for the same seed, all classes present, the picture and its truth belong together."""

import numpy as np
import pytest

from unet_engine.errors import SettingsError
from unet_export.train import tissue
from unet_export.train.tissue import CELL, MEMBRANE, OUTSIDE, make_tissue


@pytest.fixture(scope="module")
def cube():
    return make_tissue((48, 96, 80), 5)


def test_the_same_seed_gives_the_same_tissue_and_another_seed_another(cube):
    image, labels = make_tissue((48, 96, 80), 5)
    assert np.array_equal(image, cube[0])
    assert np.array_equal(labels, cube[1])
    assert not np.array_equal(make_tissue((48, 96, 80), 6)[1], labels)


def test_the_result_does_not_depend_on_the_slabs_it_is_made_in(cube, monkeypatch):
    monkeypatch.setattr(tissue, "SLAB", 7)
    image, labels = make_tissue((48, 96, 80), 5)
    assert np.array_equal(labels, cube[1])
    assert np.array_equal(image, cube[0])


def test_every_class_occurs_and_membranes_are_dark(cube):
    image, labels = cube
    assert image.dtype == labels.dtype == np.uint8
    share = np.bincount(labels.ravel(), minlength=3) / labels.size
    assert (share > 0.05).all()
    resin = image[(labels == OUTSIDE) & (image > 0)].mean()
    assert image[labels == MEMBRANE].mean() + 40 < image[labels == CELL].mean() < resin


def test_beyond_the_cut_the_image_is_zero_and_empty(cube):
    image, labels = cube
    assert (image == 0).mean() > 0.02
    assert (labels[image == 0] == OUTSIDE).all()


def test_a_membrane_lies_between_a_cell_and_whatever_is_not_that_cell(cube):
    labels = cube[1]
    touching = ((labels[1:] == CELL) & (labels[:-1] == OUTSIDE)) | ((labels[1:] == OUTSIDE) & (labels[:-1] == CELL))
    assert touching.mean() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 33), (5, 3, 70)])
def test_any_shape_will_do(shape):
    image, labels = make_tissue(shape, 0)
    assert image.shape == labels.shape == shape


@pytest.mark.parametrize("shape", [(4, 4), (4, 0, 4)])
def test_a_shape_without_sense_is_refused(shape):
    with pytest.raises(SettingsError, match="give three sizes"):
        make_tissue(shape)
