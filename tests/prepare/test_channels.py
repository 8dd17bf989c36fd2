"""Which axis of a file is that of channels, where neither the file nor the user says it."""

import numpy as np
import pytest
import zarr

from support.volumes import fake_model, make_volume, result_of
from unet_engine import run
from unet_engine.errors import InputError

nibabel = pytest.importorskip("nibabel")
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(1, 200, (3, 6, 8, 10)).astype(np.uint8)  # c, z, y, x


def made_of(path, **how):
    return run(str(path), out=f"{path}.out.zarr", blend="crop", output="logits", **how)


def nifti(path):
    nibabel.save(nibabel.Nifti1Image(VOXELS.transpose(3, 2, 1, 0), np.eye(4)), path)
    return path


@pytest.mark.parametrize("channels", [None, "2,0,1"])
def test_the_fourth_axis_of_a_nifti_is_that_of_channels_where_the_network_takes_as_many(tmp_path, channels):
    path = nifti(tmp_path / "a.nii.gz")
    model = fake_model(tmp_path, channels_in=3, channels_out=3, window=(8, 8, 8))
    result = made_of(path, model=model, input_channels=channels)
    order = [2, 0, 1] if channels else [0, 1, 2]
    np.testing.assert_allclose(result_of(result.out), VOXELS[order], atol=1e-3)
    assert any("3 time points of" in note and "as channels" in note and "--axes" in note for note in result.notes)


def test_it_is_time_where_a_time_point_or_axes_say_so(tmp_path):
    path = nifti(tmp_path / "a.nii.gz")
    model = fake_model(tmp_path, channels_in=3, channels_out=3, window=(8, 8, 8))
    with pytest.raises(InputError, match="1 channel and"):
        made_of(path, model=model, timepoint=0)
    with pytest.raises(InputError, match="3 time points"):
        made_of(path, model=model, axes="tzyx")
    with pytest.raises(InputError, match="3 time points"):
        made_of(path, model=fake_model(tmp_path, name="two.fake", channels_in=2, channels_out=2, window=(8, 8, 8)))


def test_planes_that_nothing_names_are_channels_of_a_network_of_planes(tmp_path):
    model = fake_model(tmp_path, axes="yx", channels_in=3, channels_out=3, window=(8, 8))
    np.save(tmp_path / "a.npy", VOXELS[:, 0])
    zarr.create_array(str(tmp_path / "b.zarr"), data=VOXELS[:, 0])
    for name in ("a.npy", "b.zarr"):
        result = made_of(tmp_path / name, model=model)
        np.testing.assert_allclose(result_of(result.out), VOXELS[:, 0], atol=1e-3)
    named = make_volume(str(tmp_path / "c.zarr"), VOXELS[:, 0], axes="zyx")
    with pytest.raises(InputError, match="1 channel and"):
        made_of(named, model=model)
