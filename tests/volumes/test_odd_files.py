"""Files of other tools that say things in unusual ways."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import zarr

from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import located, open_volume
from unet_engine.volumes.pick import Pick

VOXELS = np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


def test_labels_of_another_kind_than_hdf5_writes_end_no_process(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        data = file.create_dataset("v", data=VOXELS)
        data.attrs["DIMENSION_LABELS"] = h5py.Empty("f")
        data.attrs["DIMENSION_LIST"] = [1.0, 2.0]
    code = f"from unet_engine.volumes.formats import open_volume; print(open_volume({str(tmp_path / 'v.h5')!r}).axes)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout.strip()) == (0, "zyx"), said.stderr


@pytest.mark.parametrize("labels", [[b"x", b"y", b"z"], ["x", "y", "z"]])
def test_labels_of_hdf5_are_text_of_either_length(tmp_path, labels):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        kind = h5py.string_dtype() if isinstance(labels[0], str) else None
        file.create_dataset("v", data=VOXELS).attrs["DIMENSION_LABELS"] = np.array(labels, dtype=kind)
    assert open_volume(str(tmp_path / "v.h5")).axes == "xyz"


@pytest.mark.parametrize(("size", "units"), [("4, 2 3", "nm"), ([4, 2, 3], [b"nm", b"nm", b"nm"])])
def test_sizes_and_units_in_hdf5_may_be_text(tmp_path, size, units):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        data = file.create_dataset("v", data=VOXELS)
        data.attrs["resolution"], data.attrs["units"] = size, units
    volume = open_volume(str(tmp_path / "v.h5"))
    assert (volume.spacing, volume.unit, volume.notes) == ((4, 2, 3), "nanometer", ())


def test_channels_of_an_ome_tiff_have_their_names(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    voxels = np.stack([VOXELS, VOXELS + 1, VOXELS + 2])
    said = {"axes": "CZYX", "Channel": {"Name": ["DAPI", "GFP", "alpha tubulin"]}}
    tifffile.imwrite(tmp_path / "v.ome.tif", voxels, ome=True, metadata=said)
    volume = open_volume(str(tmp_path / "v.ome.tif"), pick=Pick(channels=("GFP", "DAPI")))
    assert volume.channel_names == ("DAPI", "GFP", "alpha tubulin")
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), voxels[[1, 0]])


SIZED = {"pixelResolution": {"dimensions": [3, 2, 4], "unit": "nm"}}
AXES = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
_NGFF = [
    {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [4, 2, 3]}]},
    {"path": "s1", "coordinateTransformations": [{"type": "scale", "scale": [8, 4, 6]}, {"type": "translation", "translation": [2, 1, 1.5]}]},
]  # fmt: skip
_COSEM = [
    {"path": "s0", "transform": {"axes": ["z", "y", "x"], "scale": [4, 2, 3], "translate": [0, 0, 0], "units": ["nm"] * 3}},
    {"path": "s1", "transform": {"axes": ["z", "y", "x"], "scale": [8, 4, 6], "translate": [2, 1, 1.5], "units": ["nm"] * 3}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("level", "group"),
    [
        ({"downsamplingFactors": [2, 2, 2]}, SIZED),
        ({"downsamplingFactors": [2, 2, 2], **SIZED}, {}),
        ({}, {**SIZED, "scales": [[1, 1, 1], [2, 2, 2]]}),
        ({}, {**SIZED, "downsamplingFactors": [[1, 1, 1], [2, 2, 2]]}),
        ({}, SIZED),
        (SIZED, {"scales": [[1, 1, 1], [2, 2, 2]]}),
        ({}, {"multiscales": [{"axes": AXES, "datasets": _NGFF}]}),
        ({}, {"multiscales": [{"datasets": _COSEM}]}),
    ],
)
def test_levels_of_n5_have_their_own_size_however_that_is_said(tmp_path, level, group):
    for name, array, said in (
        ("s0", VOXELS[:, :4], SIZED if "pixelResolution" in level else {}),
        ("s1", VOXELS[::2, :4:2, ::2], level),
    ):
        folder = tmp_path / "v.n5" / "g" / name
        (folder / "0" / "0").mkdir(parents=True)
        sizes = list(array.shape[::-1])
        (folder / "0" / "0" / "0").write_bytes(struct.pack(">HHIII", 0, 3, *sizes) + array.astype(">u2").tobytes())
        facts = {"dimensions": sizes, "blockSize": sizes, "dataType": "uint16", "compression": {"type": "raw"}, **said}
        (folder / "attributes.json").write_text(json.dumps(facts))
    (tmp_path / "v.n5" / "attributes.json").write_text(json.dumps({"n5": "2.0.0"}))
    (tmp_path / "v.n5" / "g" / "attributes.json").write_text(json.dumps(group))
    place = str(tmp_path / "v.n5" / "g")
    full, half = open_volume(place), open_volume(located(place, None, 1))
    assert (full.spacing, full.translation, full.unit) == ((4, 2, 3), (0, 0, 0), "nanometer")
    assert (half.spacing, half.translation, half.unit) == ((8, 4, 6), (2, 1, 1.5), "nanometer")
    assert np.array_equal(half.read(Box.of_shape(half.shape))[0], VOXELS[::2, :4:2, ::2])


def test_metadata_of_a_level_that_make_no_sense_are_one_line(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr", attributes={"multiscales": {"layout": [{"asset": "0"}]}})
    root.create_array("0", data=VOXELS[0], dimension_names=["y", "x"])
    place = tmp_path / "a.zarr/0/zarr.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "dimension_names": ["y", "x", "z"]}))
    with pytest.raises(InputError, match="its metadata make no sense"):
        located(str(tmp_path / "a.zarr"), None, 0)


@pytest.mark.parametrize("attributes", ["[[1]]", "7", '{"dimensions": 1'])
def test_attributes_of_n5_that_are_none(tmp_path, attributes):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/attributes.json").write_text(attributes)
    with pytest.raises(InputError, match=r"attributes.json cannot be read"):
        open_volume(str(tmp_path / "a"))


def test_long_names_of_axes_are_cut_in_messages(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=VOXELS, dimension_names=["y" * 5000, "y", "x"])
    with pytest.raises(InputError, match="may be anything") as caught:
        open_volume(str(tmp_path / "a.zarr"))
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_header_of_npy_that_is_no_dictionary(tmp_path):
    np.save(tmp_path / "a.npy", VOXELS)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"False", b"Falsy"))
    with pytest.raises(InputError, match="its header is not what NumPy writes"):
        open_volume(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("said", ["1", "T", "true", "True"])
def test_what_metaio_takes_for_true(tmp_path, said):
    SimpleITK = pytest.importorskip("SimpleITK")
    head = f"NDims = 3\nBinaryDataByteOrderMSB = {said}\nDimSize = 6 5 4\nElementType = MET_USHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(head.encode() + VOXELS.astype(">u2").tobytes())
    found = open_volume(str(tmp_path / "a.mha")).read(Box.of_shape(VOXELS.shape))[0]
    theirs = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.mha")))
    assert np.array_equal(found, VOXELS)
    assert np.array_equal(theirs, VOXELS)


def test_billions_of_channels_are_refused_before_any_is_listed(tmp_path):
    zarr.create_array(
        tmp_path / "a.zarr", shape=(2**33, 8, 8), chunks=(1, 8, 8), dtype="u1", dimension_names=list("cyx")
    )
    with pytest.raises(InputError, match=r"8,589,934,592 channels .* --axes"):
        open_volume(str(tmp_path / "a.zarr"))
