"""DICOM series are put in order by where slices lie, and what is no regular stack is refused by name. Voxels and places
are those that ITK finds."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from support.dicom import COLUMNS, NORMAL, RNG, ROWS, STACK, header, series
from support.spoiled import check_refused
from support.volumes import identity, make_volume, open_meant
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Meant

pydicom = pytest.importorskip("pydicom")
SimpleITK = pytest.importorskip("SimpleITK")
uid = pytest.importorskip("pydicom.uid")
dataset = pytest.importorskip("pydicom.dataset")

SHARED = Path(__file__).parents[2].parent / "shared"


def whole(volume):
    return volume.read(Box.of_shape(volume.shape))


def test_a_series_as_itk_reads_it(tmp_path):
    volume = open_volume(series(tmp_path / "a"))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "a")))
    theirs = reader.Execute()
    voxels = SimpleITK.GetArrayFromImage(theirs)
    if theirs.TransformIndexToPhysicalPoint((0, 0, 0))[2] != pytest.approx(volume.frame.origin[2]):
        voxels = voxels[::-1]
    assert (volume.axes, volume.unit, volume.spacing) == ("zyx", "millimeter", pytest.approx((2.5, 0.5, 0.75)))
    assert np.array_equal(whole(volume)[0], voxels)
    assert np.array_equal(whole(volume)[0], STACK.astype(int) - 1024)
    assert np.array_equal(volume.read(Box((2, 3, 4), (5, 11, 20)))[0], STACK[2:5, 3:11, 4:20].astype(int) - 1024)
    frame = volume.frame
    place = np.asarray(frame.origin) + np.asarray(frame.matrix) @ [3, 5, 7]
    assert place == pytest.approx(theirs.TransformIndexToPhysicalPoint((7, 5, 3)), abs=1e-4)
    assert frame.space == "LPS"


def test_a_run_gives_what_it_gives_on_zarr(tmp_path):
    path = series(tmp_path / "a")
    found = identity(path, tmp_path)
    twin = make_volume(tmp_path / "z.zarr", STACK.astype(np.int32) - 1024)
    assert found.tobytes() == identity(twin, tmp_path, out=str(tmp_path / "b.zarr")).tobytes()


def test_slope_and_intercept_of_each_slice(tmp_path):
    path = series(tmp_path / "a", change=lambda n: {"RescaleSlope": 0.5 + n, "RescaleIntercept": 3 * n})
    volume = open_volume(path)
    assert volume.dtype == np.float32
    wanted = np.stack([plane * (0.5 + n) + 3 * n for n, plane in enumerate(STACK.astype(float))])
    assert np.array_equal(whole(volume)[0], wanted.astype(np.float32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n: {"left_out": n == 4}, r"a gap between .* and .*: 5 mm where others are 2.5 mm .*about 1 slices"),
        (lambda n: {"position": 2.5 * max(n, 1) * NORMAL}, r"lie at one place \(2\.5 mm\)"),
        (lambda n: {"position": (2.5 * n + (n == 5)) * NORMAL}, r"a gap between .* \(unevenly spaced\)"),
        (lambda n: {"position": 2.5 * n * NORMAL + 0.5 * n * np.array(ROWS)}, r"a gantry tilt of 11\.3°"),
        (lambda n: {"orientation": (1, 0, 0, 0, 1, 0)} if n == 3 else {}, "has another orientation or pixel size"),
        (lambda n: {"PixelSpacing": [0.5, 0.5]} if n == 3 else {}, "has another orientation or pixel size"),
        (lambda n: {"Rows": 10} if n == 3 else {}, "take out what is of another kind"),
        (lambda n: {"series": "1.2.4", "SeriesDescription": "lung"} if n > 5 else {}, r"holds 2 series \(.*lung"),
        (lambda n: {"ImagePositionPatient": None} if n == 3 else {}, "does not say where it lies"),
    ],
)
def test_what_is_no_regular_stack_is_refused_by_name(tmp_path, change, says):
    with pytest.raises(InputError, match=says):
        open_volume(series(tmp_path / "a", change=change))


def test_one_of_several_series_is_chosen(tmp_path):
    said = {2: {"series": "1.2.4", "SeriesDescription": "lung"}, 7: {"series": "1.2.5", "SeriesDescription": "a/b: c"}}
    path = series(tmp_path / "a", change=lambda n: said[2] if n < 5 else said[7])
    uids = [pydicom.dcmread(file).SeriesInstanceUID for file in sorted(Path(path).iterdir())]
    numbered = list(dict.fromkeys(uids))
    for name in ("1.2.5", "a/b: c", str(numbered.index("1.2.5"))):
        volume = open_meant(path, None, Meant(image=name))
        assert volume.path == f"{path}:image=1.2.5"
        assert np.array_equal(whole(volume)[0], STACK[5:].astype(int) - 1024)
        assert np.array_equal(whole(pickle.loads(pickle.dumps(volume))), whole(volume))
    assert np.array_equal(whole(open_meant(path, None, Meant(image="lung")))[0], STACK[:5].astype(int) - 1024)
    with pytest.raises(InputError, match=r"--image '7': there is none in .*; it has .* of 'lung'"):
        open_meant(path, None, Meant(image="7"))
    with pytest.raises(InputError, match=r"holds 2 series .* e\.g\. --image 0"):
        open_volume(path)
    found = identity(path, tmp_path, image="lung")
    assert np.array_equal(found[0], STACK[:5].astype(int) - 1024)


def test_empty_uids_are_told(tmp_path):
    volume = open_volume(series(tmp_path / "a", series=""))
    assert "files name no series" in volume.notes[0]
    assert np.array_equal(whole(volume)[0], STACK.astype(int) - 1024)


def test_frames_of_one_file(tmp_path):
    data = header(STACK, NumberOfFrames=len(STACK))
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, key)
    shared, frames = dataset.Dataset(), []
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [dataset.Dataset()], [dataset.Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*ROWS, *COLUMNS]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.75]
    order = RNG.permutation(len(STACK))
    for n in order:
        frame, position = dataset.Dataset(), dataset.Dataset()
        position.ImagePositionPatient = [float(v) for v in 2.5 * n * NORMAL]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    data.PixelData = STACK[order].tobytes()
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume = open_volume(str(tmp_path / "a.dcm"))
    assert volume.spacing == pytest.approx((2.5, 0.5, 0.75))
    assert np.array_equal(volume.read(Box((2, 0, 3), (7, 20, 9)))[0], STACK[2:7, :, 3:9])


def test_one_slice_and_colours(tmp_path):
    header(STACK[0]).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume = open_volume(str(tmp_path / "a.dcm"))
    assert (volume.axes, volume.spacing, volume.frame) == ("yx", (0.5, 0.75), None)
    rgb = RNG.integers(0, 255, (20, 24, 3), np.uint8)
    data = header(rgb[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    del data.RescaleIntercept
    data.PixelData = rgb.tobytes()
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    volume = open_volume(str(tmp_path / "b.dcm"))
    assert volume.axes == "yxc"
    assert np.array_equal(whole(volume), rgb.transpose(2, 0, 1))


def test_padding_is_told_as_it_is_read(tmp_path):
    """CT scanners fill what lies outside of their circle; DICOM PS3.3 C.7.5.1.1.2 has the value as it is stored."""
    path = series(tmp_path / "ct", PixelPaddingValue=2000, RescaleSlope=2)
    assert any("voxels of 2976 are padding" in note and "--nodata 2976" in note for note in open_volume(path).notes)
    signed = series(tmp_path / "b", STACK.astype(np.int16), PixelPaddingValue=-2000, RescaleIntercept=0)
    assert any("voxels of -2000 are padding" in note for note in open_volume(signed).notes)
    several = series(tmp_path / "c", PixelPaddingValue=0, PixelPaddingRangeLimit=10)
    assert any("voxels from -1024 to -1014 are padding" in note for note in open_volume(several).notes)
    assert not any("padding" in note for note in open_volume(series(tmp_path / "d")).notes)


def test_a_palette_is_told(tmp_path):
    header(STACK[0], PhotometricInterpretation="PALETTE COLOR").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert "values number colours" in " ".join(open_volume(str(tmp_path / "a.dcm")).notes)


def test_frames_that_do_not_say_where_they_lie_are_taken_as_they_come(tmp_path):
    data = header(STACK, NumberOfFrames=len(STACK))
    del data.ImagePositionPatient, data.ImageOrientationPatient
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    volume = open_volume(str(tmp_path / "a.dcm"))
    assert np.array_equal(whole(volume)[0], STACK.astype(int) - 1024)
    assert (volume.spacing, volume.unit) == (None, None)
    assert "they are taken as they come" in " ".join(volume.notes)


def test_a_slice_that_changes_or_goes(tmp_path):
    path = Path(series(tmp_path / "a"))
    volume = open_volume(str(path))
    for file in path.iterdir():
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="was changed while it was read"):
        whole(volume)
    with pytest.raises(InputError, match="was changed while it was read"):
        volume.confirm()


def test_spoiled_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "a.dcm"
    header(STACK[0]).save_as(path, enforce_file_format=True)
    check_refused(path, path.read_bytes(), 100)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared files here")
def test_a_real_series():
    path = SHARED / "data/ct/abdomen_dicom"
    volume = open_volume(str(path))
    assert (volume.shape, volume.spacing, volume.frame.orientation) == (
        (20, 512, 512),
        (2, 0.9765625, 0.9765625),
        "SPL",
    )
    files = sorted(path.iterdir(), key=lambda f: pydicom.dcmread(f, stop_before_pixels=True).ImagePositionPatient[2])
    for z in (0, 7, 19):
        wanted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(files[z])))[0]
        assert np.array_equal(volume.read(Box((z, 0, 0), (z + 1, 512, 512)))[0, 0], wanted)


@pytest.mark.parametrize("part", [0.15, 0.3, 0.6])
@pytest.mark.parametrize("which", [0, 3, -1])
def test_a_file_that_breaks_off_is_no_slice_less(tmp_path, which, part):
    path = series(tmp_path / "a")
    file = sorted(Path(path).iterdir())[which]
    data = file.read_bytes()
    end = data.index(b"\x28\x00\x10\x00") if part < 0.6 else len(data)  # before Rows
    file.write_bytes(data[: max(200, int(end * part))])
    with pytest.raises(InputError, match=file.name):
        whole(open_volume(path))


@pytest.mark.parametrize("left", [0, 100, 131])
@pytest.mark.parametrize("name", ["{:03}.dcm", "IM{:04}", "1.2.840.{}"])
def test_a_file_without_its_signature_is_no_slice_less(tmp_path, name, left):
    path = Path(series(tmp_path / "a"))
    for number, file in enumerate(sorted(path.iterdir())):
        file.rename(path / name.format(number))
    for beside in ("LIESMICH.txt", "._" + name.format(1), ".DS_Store"):
        (path / beside).write_bytes(b"beside")
    before = whole(open_volume(str(path)))
    assert before.any()
    last = path / name.format(len(STACK) - 1)
    last.write_bytes(last.read_bytes()[:left])
    with pytest.raises(InputError, match=f"{last.name} is named like a slice"):
        whole(open_volume(str(path)))


def test_a_table_of_what_numbers_stand_for_is_refused(tmp_path):
    """It was left out: voxels were numbers of its rows."""
    table = dataset.Dataset()
    table.add_new("LUTDescriptor", "US", [16, 0, 16])
    table.add_new("LUTData", "US", list(range(100, 116)))
    found = header(STACK[0] % 16, ModalityLUTSequence=[table])
    del found.RescaleSlope, found.RescaleIntercept
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"Modality LUT.*apply_modality_lut"):
        open_volume(str(tmp_path / "a.dcm"))


@pytest.mark.parametrize("kind", [uid.ParametricMapStorage, uid.CTImageStorage])
def test_floating_point_numbers_are_those_of_a_parametric_map(tmp_path, kind):
    """Elsewhere a header says whole numbers, as which they were read without a word."""
    path, values = str(tmp_path / "a.dcm"), RNG.normal(size=(20, 24)).astype(np.float32)
    found = header(values, SOPClassUID=kind, RescaleIntercept=0)
    found.FloatPixelData = values.tobytes()
    del found.PixelData
    found.save_as(path, enforce_file_format=True)
    volume = open_volume(path)
    if kind == uid.ParametricMapStorage:
        np.testing.assert_array_equal(whole(volume)[0], values)
        return
    with pytest.raises(InputError, match="holds float32, and its header says uint32"):
        whole(volume)


@pytest.mark.parametrize("offsets", [(0, 2.5, 5, 7.5), (30, 32.5, 35, 37.5)])
def test_a_dose_of_radiotherapy_lies_where_itk_finds_it(tmp_path, offsets):
    """Stored are whole numbers, and frames have one position and distances from it."""
    stored = RNG.integers(0, 2**20, (4, 20, 24), np.uint32)
    path = str(tmp_path / "dose.dcm")
    found = header(
        stored, (10, 20, 30), (1, 0, 0, 0, 1, 0), SOPClassUID=uid.RTDoseStorage, Modality="RTDOSE", NumberOfFrames=4,
        DoseGridScaling=1e-4, GridFrameOffsetVector=list(offsets), FrameIncrementPointer=0x3004000C,
    )  # fmt: skip
    del found.RescaleSlope, found.RescaleIntercept
    found.file_meta.MediaStorageSOPClassUID = uid.RTDoseStorage
    found.save_as(path, enforce_file_format=True)
    if offsets[0]:
        with pytest.raises(InputError, match="GridFrameOffsetVector begins with 30"):
            open_volume(path)
        return
    volume, image = open_volume(path), SimpleITK.ReadImage(path)
    np.testing.assert_allclose(whole(volume)[0], stored * 1e-4, rtol=1e-12)  # ITK leaves them as they are stored
    assert any("doses" in note for note in volume.notes)
    assert volume.spacing == pytest.approx(image.GetSpacing()[::-1])
    assert volume.translation == pytest.approx(image.GetOrigin()[::-1])


def test_a_file_that_is_deflated_as_a_whole(tmp_path):
    path = str(tmp_path / "a.dcm")
    found = header(STACK[0])
    found.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    found.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(whole(open_volume(path))[0], STACK[0] - 1024.0)


@pytest.mark.parametrize("syntax", [uid.HTJ2KLossless, uid.MPEG2MPML])
def test_what_nothing_unpacks_is_refused_before_it_is_read(tmp_path, monkeypatch, syntax):
    data = header(STACK[0])
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = pydicom.encaps.encapsulate([b"packed"])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    with pytest.raises(InputError, match=f"is packed as {re.escape(syntax.name)}, .* (pip install|dcmconv)"):
        open_volume(str(tmp_path / "a.dcm"))
