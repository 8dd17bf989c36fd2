"""DICOM series as scanners write them, from arrays. Import it where pydicom is certain to be there."""

import numpy as np
import pytest

dataset = pytest.importorskip("pydicom.dataset")
uid = pytest.importorskip("pydicom.uid")

RNG = np.random.default_rng(6)
STACK = RNG.integers(0, 4000, (9, 20, 24), np.uint16)
ROWS, COLUMNS = (0.8, 0.6, 0), (0, 0, -1)
NORMAL = np.cross(ROWS, COLUMNS)


def header(voxels, position=(0, 0, 0), orientation=(*ROWS, *COLUMNS), series="1.2.3", **values):
    """A dataset of one slice, or of several frames."""
    found = dataset.Dataset()
    found.file_meta = dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = uid.CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = uid.generate_uid()
    found.SeriesInstanceUID = series
    found.Modality, found.PixelSpacing = "CT", [0.5, 0.75]
    found.Rows, found.Columns = voxels.shape[-2:]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 8 * voxels.itemsize
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, int(voxels.dtype.kind == "i")
    found.RescaleSlope, found.RescaleIntercept = 1, -1024
    found.ImageOrientationPatient = list(orientation)
    found.ImagePositionPatient = [float(v) for v in position]
    for key, value in values.items():
        setattr(found, key, value)
    found.PixelData = voxels.tobytes()
    return found


def series(folder, stack=STACK, change=lambda n: {}, **values):
    """The slices in files whose names say nothing."""
    folder.mkdir()
    for n in RNG.permutation(len(stack)):
        place = np.array([10, -20, 30.0]) + 2.5 * n * NORMAL
        said = {"position": place, **values, **change(n)}
        if said.pop("left_out", False):
            continue
        header(stack[n], **said).save_as(folder / f"{RNG.integers(10**9):x}", enforce_file_format=True)
    return str(folder)
