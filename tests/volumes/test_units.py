"""Units that sizes of voxels are said in: what is not known is told, and axes of different units come to one."""

import json

import numpy as np
import pytest
import zarr

from support.volumes import make_volume
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick

VOXELS = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
SIZES = [4.0, 2.0, 3.0]


def as_ome(place, units):
    make_volume(place, VOXELS, axes="zyx", ome="0.5", scale=SIZES)
    group = zarr.open_group(place)
    said = dict(group.attrs["ome"])
    for axis, unit in zip(said["multiscales"][0]["axes"], units, strict=True):
        axis["unit"] = unit
    group.attrs["ome"] = said


def as_attributes(place, units):
    array = zarr.create_array(place, data=VOXELS, dimension_names=list("zyx"))
    array.attrs.update({"resolution": SIZES, "units": list(units)})


def as_xarray(place, units):
    group = zarr.create_group(place)
    group.create_array("v", data=VOXELS, dimension_names=list("zyx"))
    for axis, size, count, unit in zip("zyx", SIZES, VOXELS.shape, units, strict=True):
        array = group.create_array(axis, data=np.arange(count) * size, dimension_names=[axis])
        array.attrs["units"] = unit


def as_n5(place, units):
    numcodecs = pytest.importorskip("numcodecs")
    del numcodecs
    place.mkdir()
    (place / "attributes.json").write_text(json.dumps({"n5": "2.0.0"}))
    (place / "v" / "0" / "0").mkdir(parents=True)
    said = {
        "dimensions": [6, 5, 4], "blockSize": [6, 5, 4], "dataType": "uint8", "compression": {"type": "raw"},
        "transform": {"axes": ["z", "y", "x"], "scale": SIZES, "translate": [0, 0, 0], "units": list(units)},
    }  # fmt: skip
    (place / "v" / "attributes.json").write_text(json.dumps(said))


def as_netcdf(place, units):
    h5py = pytest.importorskip("h5py")
    with h5py.File(place, "w") as file:
        file["v"] = VOXELS
        for i, (axis, size, count, unit) in enumerate(zip("zyx", SIZES, VOXELS.shape, units, strict=True)):
            file[axis] = np.arange(count) * size
            file[axis].make_scale(axis)
            file[axis].attrs["units"] = unit
            file["v"].dims[i].attach_scale(file[axis])


def as_hdf5(place, units):
    h5py = pytest.importorskip("h5py")
    with h5py.File(place, "w") as file:
        file["v"] = VOXELS
        file["v"].attrs.update({"resolution": SIZES, "offset": [0.0] * 3, "units": list(units)})


def nrrd(place, units, header):
    """header: with the `units` of x, y, z in place of {}."""
    x_first = " ".join(f'"{unit}"' for unit in reversed(units))
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 6 5 4\nencoding: raw\n{header.format(x_first)}\n\n"
    place.write_bytes(head.encode() + VOXELS.tobytes())


def as_nrrd(place, units):
    nrrd(place, units, "kinds: space space space\nspacings: 3 2 4\nunits: {}")


def as_turned_nrrd(place, units):
    nrrd(
        place, units,
        "space dimension: 3\nspace directions: (3,0,0) (0,2,0) (0,0,4)\nspace origin: (0,0,0)\nspace units: {}",
    )  # fmt: skip


def as_tiff(place, units):
    tifffile = pytest.importorskip("tifffile")
    named = dict(zip("ZYX", units, strict=True))
    said = {"axes": "ZYX"} | {f"PhysicalSize{a}": s for a, s in zip("ZYX", SIZES, strict=True)}
    tifffile.imwrite(place, VOXELS, ome=True, metadata=said | {f"PhysicalSize{a}Unit": u for a, u in named.items()})


WRITERS = {
    "ome": (as_ome, "v.zarr"), "attributes": (as_attributes, "v.zarr"), "xarray": (as_xarray, "v.zarr/v"),
    "n5": (as_n5, "v.n5/v"), "netcdf": (as_netcdf, "v.nc:/v"), "hdf5": (as_hdf5, "v.h5"), "nrrd": (as_nrrd, "v.nrrd"),
    "nrrd-directions": (as_turned_nrrd, "v.nrrd"), "tiff": (as_tiff, "v.ome.tif"),
}  # fmt: skip


def written(tmp_path, kind, units):
    if kind == "nrrd":
        pytest.importorskip("nrrd")
    write, path = WRITERS[kind]
    write(tmp_path / path.removesuffix("/v").removesuffix(":"), units)
    return open_volume(str(tmp_path / path))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_unit_that_nobody_knows_is_told_and_kept(tmp_path, kind):
    if kind == "tiff":
        pytest.skip("tifffile refuses to write it")
    volume = written(tmp_path, kind, ["furlong"] * 3)
    assert volume.unit == "furlong"
    assert volume.spacing == (4, 2, 3)
    assert len([note for note in volume.notes if "'furlong' is no unit that is known" in note]) == 1


@pytest.mark.parametrize("unit", ["µm", "Micrometer", "micron", "mm", "metres", "in", "feet", "pixel", "degrees"])
def test_of_one_that_is_known_nothing_is_said(tmp_path, unit):
    volume = written(tmp_path, "ome", [unit] * 3)
    assert volume.notes == ()
    assert volume.unit != "µm"  # OME-Zarr's own names, whatever short form was written


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "attributes"])
def test_axes_of_different_units_have_one(tmp_path, kind):
    from unet_engine.units import micrometers

    volume = written(tmp_path, kind, ["mm", "µm", "µm"])
    assert [micrometers(size, volume.unit) for size in volume.spacing] == pytest.approx([4000, 2, 3])


@pytest.mark.parametrize("kind", WRITERS)
def test_axes_whose_units_have_nothing_in_common_are_told(tmp_path, kind):
    units = ["mm", "pixel", "pixel"] if kind == "tiff" else ["mm", "furlong", "furlong"]
    volume = written(tmp_path, kind, units)
    assert volume.unit is None
    assert any(units[1] in note and "mm" in note.replace("millimeter", "mm") for note in volume.notes), volume.notes


@pytest.mark.parametrize("coding", ["utf-8", "latin-1"])
def test_a_micrometre_in_nrrd_is_no_metre_however_it_is_written(tmp_path, coding):
    pytest.importorskip("nrrd")
    head = (
        "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nspace dimension: 3\n"
        'space directions: (3,0,0) (0,2,0) (0,0,4)\nspace units: "µm" "µm" "µm"\ndata file: größe.raw\n\n'
    )
    (tmp_path / "v.nhdr").write_bytes(head.encode(coding))
    (tmp_path / "größe.raw").write_bytes(VOXELS.tobytes())
    assert open_volume(str(tmp_path / "v.nhdr")).unit == "micrometer"


@pytest.mark.parametrize(("said", "unit"), [("um", "micrometer"), ("cm", "centimeter"), ("?", "millimeter")])
def test_a_metaimage_may_say_its_unit(tmp_path, said, unit):
    head = f"NDims = 3\nDimSize = 6 5 4\nDistanceUnits = {said}\nElementSpacing = 3 2 4\nElementType = MET_UCHAR\n"
    (tmp_path / "v.mhd").write_bytes(f"{head}ElementDataFile = größe.raw\n".encode("latin-1"))
    (tmp_path / "größe.raw").write_bytes(VOXELS.tobytes())
    assert open_volume(str(tmp_path / "v.mhd")).unit == unit


@pytest.mark.parametrize(
    ("said", "spacing", "translation"),
    [
        ("spacings: 3 2 4\naxis mins: 7 8 9\ncenters: node node node", (4, 2, 3), (9, 8, 7)),
        ("spacings: 3 2 4\naxis mins: 7 8 9\ncenters: cell cell cell", (4, 2, 3), (11, 9, 8.5)),
        ("spacings: 3 2 4\naxis mins: 7 8 9", (4, 2, 3), (11, 9, 8.5)),
        ("axis mins: 0 0 0\naxis maxs: 5 4 3\ncenters: node node node", (1, 1, 1), (0, 0, 0)),
        ("axis mins: 0 0 0\naxis maxs: 12 5 8\ncenters: cell cell cell", (2, 1, 2), (1, 0.5, 1)),
        ("spacings: 3 2 4\naxis mins: nan nan nan", (4, 2, 3), (0, 0, 0)),
    ],
)
def test_an_nrrd_may_say_where_its_axes_begin(tmp_path, said, spacing, translation):
    pytest.importorskip("nrrd")
    head = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nkinds: space space space\n{said}\n\n"
    (tmp_path / "v.nrrd").write_bytes(head.encode() + VOXELS.tobytes())
    volume = open_volume(str(tmp_path / "v.nrrd"))
    assert (volume.spacing, volume.translation) == (spacing, translation)


@pytest.mark.parametrize("space", ["left-posterior-superior-time", "LPST"])
def test_an_nrrd_of_space_and_time_lies_in_space(tmp_path, space):
    pytest.importorskip("nrrd")
    head = (
        f"NRRD0004\ntype: uint8\ndimension: 4\nsizes: 6 5 2 2\nencoding: raw\nspace: {space}\n"
        "space directions: (3,0,0,0) (0,2,0,0) (0,0,4,0) (0,0,0,9)\nspace origin: (7,8,9,0)\n\n"
    )
    (tmp_path / "v.nrrd").write_bytes(head.encode() + VOXELS.tobytes())
    volume = open_volume(str(tmp_path / "v.nrrd"), pick=Pick(timepoint=1))
    assert (volume.axes, volume.spacing, volume.translation) == ("tzyx", (4, 2, 3), (9, 8, 7))
    assert (volume.frame.space, volume.unit) == ("LPS", "millimeter")
