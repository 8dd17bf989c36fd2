"""Labels of a DICOM series as a DICOM segmentation: each slice refers to its image, and highdicom reads the labels back
from where they were."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.spoiled import check_refused
from support.volumes import fake_model
from unet_engine.errors import InputError, OutputError
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.postprocess.formats import account_of
from unet_engine.volumes.formats import located, open_volume, slices_of
from unet_engine.volumes.laid import over, start_in

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from pydicom.dataset import Dataset  # noqa: E402

from support.dicom import COLUMNS, NORMAL, ROWS, header, series  # noqa: E402  # needs pydicom

UIDS = {"StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5", "PatientID": "p"}
NEGATED = {"orientation": (*(-v for v in ROWS), *(-v for v in COLUMNS))}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    fake_model(tmp_path, activation="sigmoid", classes=["nothing", "liver, left"])


def ct(**values):
    stack = (np.indices((9, 20, 24)).sum(0) * 997 % 4000).astype(np.uint16)
    return series(Path("ct"), stack, **UIDS, **values)


def run(out, **options):
    return unet_engine.run("ct", model="id.fake.toml", out=out, normalize="zscore", **options)


def by_image(path):
    """Labels of each image, by its UID, as highdicom reads them."""
    seg = hd.seg.segread(path)
    uids = [uid for _, _, uid in seg.get_source_image_uids()]
    return seg, dict(zip(uids, seg.get_pixels_by_source_instance(uids, combine_segments=True), strict=True))


def labels_of(name):
    volume = open_volume(name)
    return volume.read(Box.of_shape(volume.shape))[0]


def planted(labels, out="labels.nii.gz"):
    """Known labels on the voxels of the series, as a file that knows nothing of DICOM."""
    volume = open_volume("ct")
    affine = np.eye(4)
    affine[:3] = volume.frame.seen_in("RAS").affine
    nibabel.save(nibabel.Nifti1Image(labels.T, affine), out)
    return out


def uids_in_order():
    _, files, _ = slices_of("ct")
    return [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in files]


LABELS = (np.indices((9, 20, 24)).sum(0) // 7 % 4).astype(np.uint8)


@pytest.mark.parametrize("orientation", [{}, NEGATED], ids=["as it is", "negated axes"])
def test_labels_lie_on_the_images_that_they_were_made_of(orientation):
    ct(**orientation)
    convert(planted(LABELS), "seg.dcm", images="ct")
    seg, found = by_image("seg.dcm")
    order = uids_in_order()
    assert sorted(found) == sorted(order)
    for z, uid in enumerate(order):
        assert np.array_equal(found[uid], LABELS[z]), z
    # and in space, whatever the order of frames
    volume = seg.get_volume(combine_segments=True)
    series_frame = open_volume("ct").frame
    for zyx in ((0, 0, 0), (8, 19, 23), (3, 5, 7)):
        place = np.array(series_frame.origin) + np.array(series_frame.matrix) @ np.array(zyx, float)
        index = np.rint(volume.map_reference_to_indices(place[None])[0]).astype(int)
        assert volume.array[tuple(index)] == LABELS[zyx]


def test_a_run_ends_in_a_segmentation():
    ct()
    result = run("seg.dcm")
    run("labels.zarr")
    expected = labels_of("labels.zarr")
    assert len(np.unique(expected)) > 1
    _, found = by_image("seg.dcm")
    for z, uid in enumerate(uids_in_order()):
        assert np.array_equal(found.get(uid, np.zeros((20, 24))), expected[z])
    seg = hd.seg.segread("seg.dcm")
    assert [s.segment_label for s in map(seg.get_segment_description, seg.segment_numbers)] == ["liver, left"]
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID, seg.PatientID) == ("1.2.3.4", "1.2.3.5", "p")
    assert seg.SegmentationType == "BINARY"
    assert account_of("seg.dcm")["digest"] == result.digest
    assert run("seg.dcm", resume=True).notes == ("seg.dcm is already complete",)
    again = seg.SOPInstanceUID
    run("seg.dcm", overwrite=True)
    assert hd.seg.segread("seg.dcm").SOPInstanceUID == again


def test_a_region_is_put_where_it_was():
    ct()
    run("seg.dcm", roi="2:7,3:15,4:20")
    run("labels.zarr", roi="2:7,3:15,4:20")
    whole = np.zeros((9, 20, 24), np.uint8)
    whole[2:7, 3:15, 4:20] = labels_of("labels.zarr")
    _, found = by_image("seg.dcm")
    for z, uid in enumerate(uids_in_order()):
        assert np.array_equal(found.get(uid, np.zeros((20, 24))), whole[z])


def test_the_default_for_a_series_is_a_segmentation():
    ct()
    assert unet_engine.run("ct", model="id.fake.toml", normalize="zscore").out.endswith("ct-id.dcm")
    other = unet_engine.run("ct", model="id.fake.toml", normalize="zscore", output="probabilities")
    assert other.out.endswith("ct-id.zarr")


def test_a_series_without_uids_still_runs_by_default():
    ct(change=lambda n: {"SOPInstanceUID": ""})
    assert unet_engine.run("ct", model="id.fake.toml", normalize="zscore").out.endswith("ct-id.zarr")


def test_frames_of_one_file_in_any_order():
    data = header(np.zeros((9, 20, 24), np.uint16), NumberOfFrames=9, **UIDS)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(data, key)
    shared, frames = Dataset(), []
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*ROWS, *COLUMNS]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.75]
    shared.PixelMeasuresSequence[0].SliceThickness = 2.5
    order = np.random.default_rng(3).permutation(9)
    for n in order:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [float(v) for v in 2.5 * n * NORMAL]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    Path("ct").mkdir()
    data.save_as("ct/a.dcm", enforce_file_format=True)
    convert(planted(LABELS), "seg.dcm", images="ct")
    seg = hd.seg.segread("seg.dcm")
    found = seg.get_pixels_by_source_frame(data.SOPInstanceUID, list(range(1, 10)), combine_segments=True)
    for frame, z in enumerate(order):
        assert np.array_equal(found[frame], LABELS[z])


@pytest.mark.parametrize("orientation", [{}, NEGATED], ids=["as it is", "negated axes"])
def test_a_segmentation_is_read_back_to_where_it_was(orientation):
    ct(**orientation)
    labels = LABELS.copy()
    labels[[0, 1, 4]] = 0  # slices without a label are left out, in the middle, too
    convert(planted(labels), "seg.dcm", images="ct")
    convert("seg.dcm", "back.nii.gz")
    theirs, found = nibabel.load("labels.nii.gz"), nibabel.load("back.nii.gz")
    whole = np.zeros(theirs.shape, np.uint8)
    steps = np.linalg.solve(theirs.affine, found.affine)
    values = np.asarray(found.dataobj)
    for index in np.ndindex(found.shape):
        x, y, z = np.rint(steps @ [*index, 1])[:3].astype(int)
        whole[x, y, z] = values[index]
    assert np.array_equal(whole, np.asarray(theirs.dataobj))
    volume = open_volume("seg.dcm")
    box = Box((1, 3, 2), (3, 9, 11))
    assert np.array_equal(volume.read(box)[0], labels_of("seg.dcm")[1:3, 3:9, 2:11])


def test_a_folder_of_one_segmentation_is_labels():
    """As the only file, and as a series beside its images; two are listed."""
    ct()
    convert(planted(LABELS), "seg.dcm", images="ct")
    Path("one").mkdir()
    shutil.copy("seg.dcm", "one/IM0001")
    assert np.array_equal(labels_of("one"), labels_of("seg.dcm"))
    shutil.copy("seg.dcm", "ct/seg.dcm")
    with pytest.raises(InputError, match=r"holds 2 series \(.*; choose one by its number from 0"):
        open_volume("ct")
    uid = pydicom.dcmread("seg.dcm").SeriesInstanceUID
    volume = open_volume(located("ct", uid, None))
    assert volume.dtype == np.uint8
    assert np.array_equal(volume.read(Box.of_shape(volume.shape))[0], labels_of("seg.dcm"))
    assert open_volume(located("ct", "1.2.3", None)).shape == (9, 20, 24)
    other = pydicom.dcmread("seg.dcm")
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    other.save_as("one/IM0002")
    with pytest.raises(InputError, match=r"one holds 2 segmentations \(IM0001, IM0002\); give one of these files"):
        open_volume("one")


def test_a_segmentation_is_what_commands_take_for_labels():
    ct()
    convert(planted(LABELS), "seg.dcm", images="ct")
    Path("one").mkdir()
    shutil.copy("seg.dcm", "one/IM0001")
    for command in (("table", "one", "a.csv", "--intensity", "none"), ("components", "one", "objects.zarr"),
                    ("convert", "one", "a.nii.gz"), ("info", "one")):  # fmt: skip
        told = cli(*command)
        assert told.code == 0, told.err
    rows = csv.DictReader(Path("a.csv").read_text().splitlines())
    assert sum(int(row["voxels"]) for row in rows) == (LABELS > 0).sum()
    assert np.array_equal(np.asarray(nibabel.load("a.nii.gz").dataobj).T, labels_of("seg.dcm"))


def test_a_series_that_is_chosen_is_the_one_that_a_segmentation_refers_to():
    ct()
    series(Path("other"), np.zeros((3, 20, 24), np.uint16), series="1.2.9", **UIDS)
    for file in Path("other").iterdir():
        shutil.copy(file, f"ct/other-{file.name}")
    run("seg.dcm", image="1.2.3")
    _, found = by_image("seg.dcm")
    assert set(found) <= {pydicom.dcmread(f).SOPInstanceUID for f in Path("ct").glob("[!o]*")}
    assert found


def test_spoiled_segmentations_are_refused_in_one_line():
    ct()
    convert(planted(LABELS), "seg.dcm", images="ct")
    check_refused(Path("seg.dcm"), Path("seg.dcm").read_bytes(), 40)


@pytest.mark.parametrize("frames", [2**30, 3])
def test_more_frames_than_a_file_can_have_or_describes_are_refused_before_any_table_is_made(frames):
    ct()
    convert(planted(LABELS), "seg.dcm", images="ct")
    data = pydicom.dcmread("seg.dcm")
    data.NumberOfFrames = frames
    data.save_as("seg.dcm")
    with pytest.raises(InputError, match=rf"seg.dcm is no readable .* says that it has {frames:,} frames, describes"):
        open_volume("seg.dcm")


@pytest.mark.parametrize("key", ["SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"])
def test_a_series_without_uids_is_refused_before_anything_runs(key):
    ct(change=lambda n: {key: ""} if n == 4 else {})
    with pytest.raises(OutputError, match=f"refers to its images by UIDs, and .* has no {key}; .*write .nii.gz"):
        run("seg.dcm")
    assert not list(Path().glob("*seg.dcm*"))


def test_what_is_no_segmentation_is_refused_by_name():
    ct()
    with pytest.raises(OutputError, match="holds labels"):
        run("seg.dcm", output="probabilities")
    nibabel.save(nibabel.Nifti1Image(LABELS.T, np.eye(4)), "elsewhere.nii")
    for source, images, what in [
        ("elsewhere.nii", "ct", "does not lie on the voxels of ct"),
        ("elsewhere.nii", None, "is not known to be any"),
        ("elsewhere.nii", "elsewhere.nii", "belongs to a DICOM series"),
    ]:
        with pytest.raises(OutputError, match=what):
            convert(source, "seg.dcm", images=images)
    planted((LABELS * 1.0).astype(np.float32), "floats.nii")
    with pytest.raises(OutputError, match="labels"):
        convert("floats.nii", "seg.dcm", images="ct")
    planted(LABELS.astype(np.int32) * 40000, "large.nii")
    with pytest.raises(OutputError, match="labels beyond 0 to 65535"):
        convert("large.nii", "seg.dcm", images="ct")
    assert not list(Path().glob("*seg.dcm*"))


def test_a_library_that_is_missing_is_named(monkeypatch):
    import sys

    ct()
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(OutputError, match=r"needs highdicom.*pip install 'unet-engine\[seg\]'"):
        run("seg.dcm")


@pytest.mark.parametrize("values", [{}, NEGATED])
def test_a_segmentation_of_some_slices_lies_on_its_image(values):
    ct(**values)
    labels = np.zeros((9, 20, 24), np.uint8)
    labels[2:5, 3:9, 4:10], labels[4:6, 12:15, 2:6] = 1, 2  # no frame of the other slices is written
    planted(labels)
    convert("labels.nii.gz", "some.dcm", images="ct")
    image, found = open_volume("ct"), open_volume("some.dcm")
    assert (found.shape, start_in(found, image)) == ((4, 20, 24), (2, 0, 0))
    assert np.array_equal(labels_of("some.dcm"), labels[2:6])
    part = found.read(Box((1, 2, 3), (4, 14, 11)))[0]
    assert np.array_equal(part, labels[3:6, 2:14, 3:11])
    whole = over(found, image).read(Box((0, 1, 2), (9, 18, 24)))[0]
    assert np.array_equal(whole, labels[:, 1:18, 2:])
    assert cli("table", "some.dcm", "t.csv", "--intensity", "ct").code == 0
    with Path("t.csv").open(newline="") as file:
        means = [float(row["mean_intensity"]) for row in csv.DictReader(file)]
    voxels = image.read(Box.of_shape(image.shape))[0]
    assert means == pytest.approx([voxels[labels == 1].mean(), voxels[labels == 2].mean()])


@pytest.mark.parametrize(
    "values", [{"change": lambda n: {"position": 2.5 * n * NORMAL}}, {"PixelSpacing": [0.25, 0.75]}, NEGATED]
)
def test_what_lies_elsewhere_is_no_part(values):
    ct()
    assert start_in(open_volume(series(Path("other"), **values)), open_volume("ct")) is None
