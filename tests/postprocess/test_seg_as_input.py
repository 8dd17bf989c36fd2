"""Segmentations of other tools, whose slices without a label are left out, as inputs: what they are in the world, by
highdicom, is what every command takes them for, however the image that they are held against lies."""

import csv
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.shares import share
from support.volumes import fake_model
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.prepare.tiling_reference import truth_of
from unet_engine.viewing.panes import pane_of, together
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.mask import open_mask

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from support.dicom import COLUMNS, ROWS, series  # noqa: E402  # needs pydicom

UIDS = {"StudyInstanceUID": "1.2.3.4", "FrameOfReferenceUID": "1.2.3.5", "PatientID": "p"}
_SAID = "PatientName PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName"
EMPTY = dict.fromkeys(_SAID.split(), "")
LABELS = np.zeros((9, 20, 24), np.uint8)
LABELS[2:5, 3:9, 4:10], LABELS[4:7, 12:15, 2:6], LABELS[3, 15:19, 20] = 1, 2, 3
CT = (np.indices((9, 20, 24)).sum(0) * 997 % 4000).astype(np.uint16)
WAYS = {
    "oblique": {},
    "axial": {"orientation": (1, 0, 0, 0, 1, 0), "along": (0, 0, 1)},
    "negated": {"orientation": (*(-v for v in ROWS), *(-v for v in COLUMNS))},
    "from above": {"orientation": (1, 0, 0, 0, 1, 0), "along": (0, 0, -1)},
}


@pytest.fixture(params=share(WAYS, 2))
def here(request, tmp_path, monkeypatch):
    """A series, and a segmentation of it that highdicom made of frames in another order."""
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    values = dict(WAYS[request.param])
    along = np.array(values.pop("along", np.cross(*np.reshape(values.get("orientation", (*ROWS, *COLUMNS)), (2, 3)))))
    places = [{"position": [float(v) for v in np.array([10, -20, 30]) + 2.5 * n * along]} for n in range(9)]
    series(
        Path("ct"),
        CT,
        lambda n: {**places[n], "InstanceNumber": n + 1, "SliceThickness": 2.5},
        **values,
        **UIDS,
        **EMPTY,
    )
    files = sorted(map(pydicom.dcmread, Path("ct").iterdir()), key=lambda file: -file.InstanceNumber)
    tissue = pydicom.sr.coding.Code("85756007", "SCT", "Tissue")
    described = [
        hd.seg.SegmentDescription(
            segment_number=n + 1, segment_label=name, segmented_property_category=tissue,
            segmented_property_type=tissue, algorithm_type="MANUAL", display_color=hd.color.CIELabColor.from_rgb(*colour),
        )
        for n, (name, colour) in enumerate({"liver": (200, 0, 0), "spleen": (0, 150, 0), "vein": (0, 0, 250)}.items())
    ]  # fmt: skip
    kind = "LABELMAP" if request.param == "axial" else "BINARY"
    hd.seg.Segmentation(
        files, LABELS[::-1], kind, described, hd.UID(), 7, hd.UID(), 1, "them", "theirs", "1", "2",
    ).save_as("seg.dcm")  # fmt: skip
    fake_model(tmp_path, window=(4, 8, 8), activation="sigmoid", classes=["nothing", "something"])
    return request.param


def expected():
    """Labels on the grid of the series as it is read here, by highdicom, from the UIDs of its images."""
    from unet_engine.volumes.formats import slices_of

    seg = hd.seg.segread("seg.dcm")
    uids = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in slices_of("ct")[1]]
    return seg.get_pixels_by_source_instance(
        uids, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )


def all_of(volume):
    return volume.read(Box.of_shape(volume.shape))[0]


def as_nifti(out, axes="RAS"):
    """The series as a NIfTI whose axes run otherwise, and the expected labels on its voxels."""
    volume = open_volume("ct")
    affine = np.eye(4)
    affine[:3] = volume.frame.seen_in("RAS").affine
    found = []
    for values in (all_of(volume).astype(np.int16), expected().astype(np.uint8)):
        image = nibabel.Nifti1Image(values.T, affine)
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
        )
        found.append(image.as_reoriented(turn))
    found[0].to_filename(out)
    return np.asarray(found[1].dataobj).T


def test_it_is_its_labels_with_names_and_colours(here):
    said = cli("info", "seg.dcm", "--json").json
    assert (said["axes"], said["classes"][1:], said["dtype"]) == ("zyx", ["liver", "spleen", "vein"], "uint8")
    assert cli("convert", "seg.dcm", "back.nii.gz").code == 0
    found, whole = nibabel.load("back.nii.gz"), expected()
    world = np.linalg.inv(np.vstack([open_volume("ct").frame.seen_in("RAS").affine, [0, 0, 0, 1]])) @ found.affine
    values = np.zeros_like(whole)
    for index, label in np.ndenumerate(np.asarray(found.dataobj)):
        x, y, z = np.rint(world @ [*index, 1])[:3].astype(int)
        values[z, y, x] = label
    assert np.array_equal(values, whole)
    scan, pane = pane_of("ct"), pane_of("seg.dcm")
    assert (pane.kind, pane.names[1:], pane.colours[3]) == ("labels", ("liver", "spleen", "vein"), "#0000fa")
    first = np.array(together([scan, pane])[1])[:, 3]
    at = np.argwhere(whole)[:, 0].min()
    assert first == pytest.approx([at, 0, 0], abs=1e-6)


@pytest.mark.parametrize("axes", [None, "RAS", "LPI", "SAR"])
def test_a_mask_and_the_truth_are_what_lies_there(here, axes):
    image, whole = ("ct", expected()) if axes is None else ("scan.nii", as_nifti("scan.nii", axes))
    scan = open_volume(image)
    assert scan.shape == whole.shape
    mask, truth = open_mask("seg.dcm", scan), truth_of("seg.dcm", scan, 4)
    assert np.array_equal(mask.read(Box.of_shape(scan.shape)), whole)
    assert np.array_equal(all_of(truth), whole)
    box = Box((1, 2, 3), tuple(n - 1 for n in scan.shape))
    assert np.array_equal(truth.read(box)[0], whole[box.slices()])
    assert np.array_equal(mask.read(box), whole[box.slices()])


def test_a_run_masked_by_it_is_one_masked_by_its_voxels(here):
    np.save("mask.npy", as_nifti("scan.nii"))
    options = {"model": "id.fake.toml", "normalize": "zscore", "blend": "crop", "outside": 7}
    found = [
        unet_engine.run("scan.nii", mask=mask, out=f"{mask}.npy", **options).out for mask in ("seg.dcm", "mask.npy")
    ]
    one, other = (all_of(open_volume(out)) for out in found)
    assert np.array_equal(one, other)
    assert set(np.unique(one)) == {0, 1, 7} or set(np.unique(one)) == {1, 7}


@pytest.mark.parametrize("axes", [None, "LPI"])
def test_objects_and_their_intensities(here, axes):
    image = "ct" if axes is None else "scan.nii"
    if axes:
        as_nifti(image, axes)
    said = cli("table", "seg.dcm", "t.csv", "--intensity", image)
    assert said.code == 0, said.err
    rows = list(csv.DictReader(Path("t.csv").read_text().splitlines()))
    voxels, whole = all_of(open_volume("ct")), expected()
    assert [int(row["voxels"]) for row in rows] == [int((whole == n).sum()) for n in (1, 2, 3)]
    assert [float(row["mean_intensity"]) for row in rows] == pytest.approx(
        [voxels[whole == n].mean() for n in (1, 2, 3)]
    )
    assert cli("components", "seg.dcm", "o.zarr").code == 0
    found = all_of(open_volume("o.zarr"))
    assert np.array_equal(found > 0, all_of(open_volume("seg.dcm")) > 0)
    assert found.max() == 3
    told = cli("polygons", "seg.dcm", "p.gpkg")
    assert (told.code, "polygons are of 2D" in told.err) == (InputError.exit_code, True)


def test_what_lies_turned_and_elsewhere_is_refused(here):
    as_nifti("scan.nii", "LPI")
    scan = nibabel.load("scan.nii")
    affine = scan.affine.copy()
    affine[:3, 3] += 500
    nibabel.Nifti1Image(np.asarray(scan.dataobj), affine).to_filename("far.nii")
    with pytest.raises(InputError, match=r"lies turned to far\.nii"):
        open_mask("seg.dcm", open_volume("far.nii"))
    with pytest.raises(InputError, match=r"lies turned to far\.nii"):
        truth_of("seg.dcm", open_volume("far.nii"), 4)


def test_in_a_folder_it_is_the_same_with_its_names(here):
    Path("only").mkdir()
    Path("seg.dcm").rename("only/seg.dcm")
    assert cli("info", "only", "--json").json["classes"][1:] == ["liver", "spleen", "vein"]
    assert pane_of("only").names[1:] == ("liver", "spleen", "vein")
    for source, out in (("only", "a.csv"), ("back.nii.gz", "b.csv")):
        if out == "b.csv":
            assert cli("convert", "only", source).code == 0
        assert cli("table", source, out).code == 0
        rows = list(csv.DictReader(Path(out).read_text().splitlines()))
        assert [row["class_name"] for row in rows] == ["liver", "spleen", "vein"]
