"""DICOM with several time points: which a frame or slice is of is what its file says, and when each was taken."""

import numpy as np
import pytest

import unet_engine
from support.dicom import COLUMNS, NORMAL, RNG, ROWS, header, series
from support.volumes import fake_model
from unet_engine.errors import InputError, UnetEngineError
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.volumes.base import Timing
from unet_engine.volumes.collection import time_of
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.pick import Pick

dataset = pytest.importorskip("pydicom.dataset")
FILM = RNG.integers(0, 4000, (3, 4, 20, 24), np.uint16)


def read(path, time):
    volume = open_stored(path).picked(Pick(time))
    return volume.read(Box.of_shape(volume.shape))[0]


def holding(**values):
    found = dataset.Dataset()
    for key, value in values.items():
        setattr(found, key, value)
    return found


def enhanced(path, *, index=True, left_out=()):
    """Frames of three time points, mixed, as an enhanced MR has them; index: each says its own, else by a dimension."""
    order = [divmod(int(n), 4) for n in RNG.permutation(12) if divmod(int(n), 4) not in left_out]
    data = header(np.stack([FILM[at] for at in order]), NumberOfFrames=len(order))
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, key)
    data.SharedFunctionalGroupsSequence = [
        holding(
            PlaneOrientationSequence=[holding(ImageOrientationPatient=[*ROWS, *COLUMNS])],
            PixelMeasuresSequence=[holding(PixelSpacing=[0.5, 0.75])],
        )
    ]
    pointers = (0x00209057, 0x00209128)  # in-stack position number, temporal position index
    data.DimensionIndexSequence = [holding(DimensionIndexPointer=one) for one in pointers]
    data.PerFrameFunctionalGroupsSequence = [
        holding(
            PlanePositionSequence=[holding(ImagePositionPatient=[float(v) for v in 2.5 * z * NORMAL])],
            FrameContentSequence=[
                holding(
                    DimensionIndexValues=[z + 1, t + 1],
                    FrameReferenceDateTime=f"2020010112{2.5 * t + 5:09.4f}",
                    **({"TemporalPositionIndex": t + 1} if index else {}),
                )
            ],
        )
        for t, z in order
    ]
    data.save_as(path, enforce_file_format=True)
    return str(path)


@pytest.mark.parametrize("index", [True, False])
def test_frames_of_several_time_points(tmp_path, index):
    path = enhanced(tmp_path / "a.dcm", index=index)
    volume = open_stored(path)
    assert (volume.axes, volume.stored_shape) == ("tzyx", FILM.shape)
    assert volume.spacing == pytest.approx((2.5, 0.5, 0.75))
    assert volume.timing == Timing(2.5, 0.0, "second")
    for time, frame in enumerate(FILM):
        assert np.array_equal(read(path, time), frame.astype(int) - 1024)
    part = volume.picked(Pick(2)).read(Box((1, 2, 3), (3, 9, 20)))[0]
    assert np.array_equal(part, FILM[2, 1:3, 2:9, 3:20].astype(int) - 1024)
    convert(path, str(tmp_path / "o.zarr"))
    assert time_of(str(tmp_path / "o.zarr")) == (2.5, 0.0, "second")


def test_slices_that_number_their_time_points(tmp_path):
    def said(n):
        place = {"position": 2.5 * (n % 4) * NORMAL}
        return {**place, "TemporalPositionIdentifier": n // 4 + 1, "TemporalResolution": 1500}

    path = series(tmp_path / "a", FILM.reshape(12, 20, 24), change=said)
    volume = open_stored(path)
    assert (volume.axes, volume.timing) == ("tzyx", Timing(1.5, 0.0, "second"))
    assert np.array_equal(read(path, 1), FILM[1].astype(int) - 1024)
    later = volume.picked(Pick(1))
    assert {part.path for part in later.parts(Box((0, 0, 0), (4, 1, 1)))} == {one.file for one in later.slices[4:8]}


def test_slices_that_were_taken_one_after_the_other_are_one_volume(tmp_path):
    path = series(tmp_path / "a", FILM[0], change=lambda n: {"TemporalPositionIdentifier": n + 1})
    assert open_stored(path).axes == "zyx"
    assert np.array_equal(read(path, None), FILM[0].astype(int) - 1024)


def test_time_points_that_lack_slices_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"its time point 2 has 3 slices that do not lie where the 4 of time point 1"):
        open_stored(enhanced(tmp_path / "a.dcm", left_out=[(1, 3)]))


def test_a_segmentation_of_one_time_point_is_refused_before_the_run(tmp_path):
    path = enhanced(tmp_path / "a.dcm")
    model = fake_model(tmp_path, window=(4, 8, 8), activation="sigmoid")
    with pytest.raises(UnetEngineError, match="has 3 time points, of which a segmentation refers to no single one"):
        unet_engine.run(path, model, out=str(tmp_path / "o.dcm"), timepoint=1)
    assert not (tmp_path / "o.dcm").exists()
