"""Files of other libraries are read by block as those libraries read them whole: .npy, TIFF in its kinds, folders of
slices, HDF5 and NetCDF."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.spoiled import check_refused
from support.volumes import fake_model, identity, make_volume, open_meant
from unet_engine.errors import DataError, InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.base import Timing
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.linear import Linear
from unet_engine.volumes.pick import Meant, Pick

h5py = pytest.importorskip("h5py")
tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(3)
STACK = RNG.integers(0, 60000, (7, 50, 70), np.uint16)
RGB = RNG.integers(0, 255, (50, 70, 3), np.uint8)
SHARED = Path(__file__).parents[2].parent / "shared"


def tiff(name, array, **options):
    def write(folder):
        tifffile.imwrite(folder / name, array, **options)
        return folder / name

    return write


def npy(name, array):
    def write(folder):
        np.save(folder / name, array)
        return folder / name

    return write


def hdf5(name, array, **options):
    def write(folder):
        with h5py.File(folder / name, "w") as file:
            file.create_dataset("volumes/raw", data=array, **options)
        return folder / name

    return write


OME = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2}
FILES = [
    (npy("a.npy", STACK), STACK, "zyx"),
    (npy("a.npy", np.asfortranarray(STACK)), STACK, "zyx"),
    (npy("a.npy", STACK.astype(">f4")), STACK.astype("f4"), "zyx"),
    (npy("a.npy", STACK[:, :, ::2]), STACK[:, :, ::2], "zyx"),
    (tiff("a.tif", STACK), STACK, "zyx"),
    (tiff("a.TIFF", STACK, byteorder=">"), STACK, "zyx"),
    (tiff("a.tif", STACK, bigtiff=True, compression="zlib", predictor=True), STACK, "zyx"),
    (tiff("a.tif", STACK, compression="lzw", rowsperstrip=3), STACK, "zyx"),
    (tiff("a.tif", STACK, tile=(16, 32), compression="zstd"), STACK, "zyx"),
    (tiff("a.tif", STACK[0] > 30000), STACK[0] > 30000, "yx"),
    (tiff("a.tif", RGB, photometric="rgb", tile=(32, 32), compression="zlib"), RGB, "yxc"),
    (
        tiff("a.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression="lzw"),
        RGB.transpose(2, 0, 1),
        "cyx",
    ),
    (tiff("a.ome.tif", STACK[:6].reshape(2, 3, 50, 70), compression="zlib", metadata={"axes": "CZYX"}),
     STACK[:6].reshape(2, 3, 50, 70), "czyx"),
    (tiff("a.tif", STACK[:6].reshape(3, 2, 50, 70), imagej=True, metadata={"axes": "ZCYX"}),
     STACK[:6].reshape(3, 2, 50, 70), "zcyx"),
    (hdf5("a.h5", STACK), STACK, "zyx"),
    (hdf5("a.hdf5", STACK, chunks=(2, 16, 16), compression="gzip", shuffle=True), STACK, "zyx"),
]  # fmt: skip


@pytest.mark.parametrize(("write", "array", "axes"), FILES)
def test_blocks_are_what_was_written(tmp_path, write, array, axes):
    volume = open_volume(str(write(tmp_path)))
    assert volume.axes == axes
    assert volume.stored_shape == array.shape
    order = [axes.index(a) for a in "czyx" if a in axes]
    wanted = array.transpose(order) if "c" in axes else array.transpose(order)[np.newaxis]
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), wanted)
    for _ in range(8):
        lo = [int(RNG.integers(0, n)) for n in volume.shape]
        hi = [int(RNG.integers(l + 1, n + 1)) for l, n in zip(lo, volume.shape, strict=True)]
        found = volume.read(Box(tuple(lo), tuple(hi)))
        assert found.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found, wanted[(slice(None), *map(slice, lo, hi))])


@pytest.mark.parametrize("write", [file[0] for file in FILES if file[2] == "zyx"][::3])
def test_a_run_gives_what_it_gives_on_zarr(tmp_path, write):
    path = write(tmp_path)
    array = open_volume(str(path)).read(Box.of_shape((7, 50, 70)))[0] if "a.npy" in str(path) else STACK
    a = identity(str(path), tmp_path, out=str(tmp_path / "a.zarr"))
    b = identity(make_volume(tmp_path / "b-in.zarr", array), tmp_path, out=str(tmp_path / "b.zarr"))
    assert a.tobytes() == b.tobytes()


SHORT = """<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0"
DimensionOrder="XYZCT" Type="uint16" SizeX="70" SizeY="50" SizeZ="9" SizeC="1" SizeT="1"><Channel ID="Channel:0:0"
SamplesPerPixel="1"/><TiffData IFD="0" PlaneCount="7"/></Pixels></Image></OME>"""


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_that_an_ome_tiff_only_describes_are_not_read_as_zeros(tmp_path, compression):
    path = str(tmp_path / "short.ome.tif")
    planes = {"metadata": None, "photometric": "minisblack", "compression": compression}
    tifffile.imwrite(path, STACK.astype(np.uint16), description=SHORT, **planes)
    volume = open_volume(path)
    assert volume.shape == (9, 50, 70)
    assert np.array_equal(volume.read(Box((0, 0, 0), (7, 50, 70)))[0], STACK)
    said = cli("run", "--in", path, "--model", fake_model(tmp_path), "--out", "out.zarr")
    assert said.code == 4
    assert "plane 7 is described, but not in the file; save the planes" in said.error


def test_every_command_takes_a_tiff_and_names_its_output_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("scan.ome.tif", STACK, metadata={"axes": "ZYX", **OME})
    model = fake_model(tmp_path, normalization="none")
    told = cli("info", "scan.ome.tif", "--json").json
    assert (told["axes"], told["shape"], told["spacing"], told["unit"]) == (
        "zyx", [7, 50, 70], [2, 0.5, 0.5], "micrometer",
    )  # fmt: skip
    assert cli("plan", "--in", "scan.ome.tif", "--model", model).code == 0
    done = cli("run", "--in", "scan.ome.tif", "--model", model, "--output", "logits")
    assert done.code == 0, done.err
    out = open_volume("scan-id.ome.tif")
    assert (out.spacing, out.unit) == ((2.0, 0.5, 0.5), "micrometer")


@pytest.mark.parametrize("write", [FILES[1][0], FILES[4][0], FILES[8][0], FILES[-1][0]])
def test_other_processes_open_it_anew(tmp_path, write):
    volume = open_volume(str(write(tmp_path)), "zyx").with_missing(((5.0,),))
    other = pickle.loads(pickle.dumps(volume))
    assert (other.axes, other.nodata) == ("zyx", (5.0,))
    assert np.array_equal(other.read(Box.of_shape(other.shape))[0], STACK)


@pytest.mark.slow
def test_workers_read_it(tmp_path):
    path = FILES[7][0](tmp_path)
    a = identity(str(path), tmp_path, out=str(tmp_path / "a.zarr"), workers=2)
    assert np.array_equal(a[0], STACK)


# --- size of voxels ---


@pytest.mark.parametrize(
    ("options", "spacing", "unit"),
    [
        (
            {"imagej": True, "resolution": (4, 4), "metadata": {"axes": "ZYX", "spacing": 1.5, "unit": "um"}},
            (1.5, 0.25, 0.25),
            "um",
        ),
        (
            {"imagej": True, "resolution": (4, 4), "metadata": {"axes": "ZYX", "spacing": 1.5, "unit": "pixel"}},
            None,
            None,
        ),
        ({"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}, None, None),  # nothing is said of z
    ],
)
def test_spacing_of_stacks(tmp_path, options, spacing, unit):
    tifffile.imwrite(tmp_path / "a.tif", STACK, **options)
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.spacing == (pytest.approx(spacing) if spacing else None)
    assert volume.unit == ("micrometer" if unit else None)


def test_spacing_of_planes(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], resolution=(1e4, 2e4), resolutionunit="CENTIMETER")
    assert open_volume(str(tmp_path / "a.tif")).spacing == (0.5, 1.0)
    tifffile.imwrite(tmp_path / "b.tif", STACK[0], resolution=(72, 72), resolutionunit="INCH")  # of a screen
    assert open_volume(str(tmp_path / "b.tif")).spacing is None


def test_spacing_of_hdf5(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = STACK
        file["raw"].attrs["element_size_um"] = [2, 0.5, 0.25]
    volume = open_volume(str(tmp_path / "a.h5"))
    assert (volume.spacing, volume.unit) == ((2.0, 0.5, 0.25), "micrometer")


def test_netcdf_with_coordinates_and_packed_numbers(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        for name, values in (("time", [0.0]), ("lat", 10 - 0.5 * np.arange(50)), ("lon", 3 + 0.25 * np.arange(70))):
            file[name] = np.asarray(values)
            file[name].make_scale(name)
        file["lat"].attrs["units"] = file["lon"].attrs["units"] = "m"
        data = file.create_dataset("height", data=STACK[:1].astype("i2"))
        for axis, name in enumerate(("time", "lat", "lon")):
            data.dims[axis].attach_scale(file[name])
        data.attrs["scale_factor"], data.attrs["add_offset"], data.attrs["_FillValue"] = 0.5, 100.0, np.int16(7)
    volume = open_volume(str(tmp_path / "a.nc"))
    assert (volume.axes, volume.spacing, volume.translation) == ("tyx", (-0.5, 0.25), (10.0, 3.0))
    assert (volume.nodata, volume.dtype) == ((103.5,), np.float32)
    packed = STACK[:1].astype("i2").astype(np.float64)
    assert np.array_equal(volume.read(Box.of_shape((50, 70))), (packed * 0.5 + 100).astype(np.float32))


def test_netcdf_of_unsigned_numbers(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as file:
        data = file.create_dataset("radiance", data=np.array([[-1, -2], [0, 5]], ">i2"))
        data.attrs["_Unsigned"], data.attrs["scale_factor"], data.attrs["_FillValue"] = "true", 0.5, np.int16(-1)
    volume = open_volume(str(tmp_path / "a.nc"))
    assert np.array_equal(volume.read(Box.of_shape((2, 2)))[0], np.array([[32767.5, 32767], [0, 2.5]], np.float32))
    assert volume.nodata == (32767.5,)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        ("i2", 1, 0, "i2"), ("i2", 1, -1024, "i4"), ("u1", 1, -1024, "i2"), ("u2", 2, 0, "i4"), ("u4", 1, 1, "i8"),
        ("i2", 0.1, 0, "f4"), ("u1", 0.5, 0.5, "f4"), ("i4", 0.5, 0, "f8"), ("f4", 2, 0, "f4"), ("f8", 1, 1, "f8"),
        ("u8", 2, 0, "f8"),
    ],
)  # fmt: skip
def test_numbers_that_stand_for_others_are_exact(stored, slope, intercept, dtype):
    linear = Linear.of(np.dtype(stored), slope, intercept)
    assert linear.dtype == dtype
    values = RNG.integers(0, 100, 50).astype(stored)
    wanted = [float(v) * slope + intercept for v in values]
    assert np.array_equal(linear(values), np.asarray(wanted, dtype))


# --- which one, and what is refused ---


def test_datasets_are_named_or_listed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["labels/cells"], file["table"] = STACK, STACK.astype("u4") + 1, np.arange(9)
    path = str(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"several volumes: /labels/cells \(7×50×70 uint32\), /raw .*--in .*a\.h5:/"):
        open_volume(path)
    for name in ("labels/cells", "/labels/cells"):
        assert open_volume(f"{path}:{name}").dtype == np.uint32
    with pytest.raises(InputError, match=r"labels is a group; name one of /labels/cells"):
        open_volume(f"{path}:/labels")
    with pytest.raises(InputError, match=r"/no is not in it"):
        open_volume(f"{path}:/no")
    unet_engine.run(f"{path}:/raw", model=fake_model(tmp_path), output="logits")
    assert open_volume(str(tmp_path / "a-id.h5")).shape == STACK.shape


def test_info_takes_an_hdf5_file_for_a_volume_not_for_weights(tmp_path):
    assert cli("info", str(FILES[-1][0](tmp_path)), "--json").json["shape"] == [7, 50, 70]


def test_links_to_other_files_are_not_followed(tmp_path):
    hdf5("other.h5", STACK)(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("other.h5", "/volumes/raw")
        file["group"], file["soft"] = h5py.ExternalLink("other.h5", "/volumes"), h5py.SoftLink("/raw")
    for name in ("raw", "group/raw", "soft"):
        with pytest.raises(InputError, match=f"{name} is not in it"):
            open_volume(f"{tmp_path}/a.h5:/{name}")


def test_what_values_of_a_tiff_mean_is_told(tmp_path):
    colours = np.zeros((3, 256), np.uint16)
    for name, options in (("MINISWHITE", {}), ("palette", {"colormap": colours})):
        (tmp_path / name).mkdir()
        for path in (tmp_path / f"{name}.tif", tmp_path / name / "0.tif", tmp_path / name / "1.tif"):
            tifffile.imwrite(path, STACK[0].astype("u1"), photometric=name.lower(), **options)
        for path in (f"{tmp_path}/{name}.tif", f"{tmp_path}/{name}"):
            assert any(name in note and "taken as they are stored" in note for note in open_volume(path).notes)
    tifffile.imwrite(tmp_path / "a.tif", STACK[0].astype("u1"), photometric="minisblack")
    assert open_volume(str(tmp_path / "a.tif")).notes == ()


def test_a_tiff_of_several_images(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, ::2, ::2], append=True)
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.shape == (50, 70)
    assert "holds 2 images; the largest is read, 50×70" in volume.notes[0]
    tifffile.imwrite(tmp_path / "b.tif", STACK)
    tifffile.imwrite(tmp_path / "b.tif", STACK, append=True)
    with pytest.raises(InputError, match=r"2 images, and nothing says which"):
        open_volume(str(tmp_path / "b.tif"))


def test_a_folder_of_slices(tmp_path):
    for n in range(12):
        tifffile.imwrite(tmp_path / f"s{n}.tif", STACK[n % 7], compression="zlib" if n % 2 else None)
    volume = open_volume(str(tmp_path))
    assert (volume.axes, volume.shape, volume.notes) == ("zyx", (12, 50, 70), ())
    found = volume.read(Box((8, 3, 5), (12, 40, 60)))[0]
    assert np.array_equal(found, STACK[[1, 2, 3, 4], 3:40, 5:60])
    (tmp_path / "s4.tif").unlink()
    assert "between s3.tif and s5.tif slices seem to be missing" in open_volume(str(tmp_path)).notes[0]
    tifffile.imwrite(tmp_path / "s4.tif", STACK[0, :9])
    with pytest.raises(DataError, match=r"s4\.tif is 9×70"):
        open_volume(str(tmp_path)).read(Box.of_shape((12, 50, 70)))


@pytest.mark.parametrize(("name", "write"), [("tifffile", FILES[4][0]), ("h5py", FILES[-1][0])])
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, name, write):
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"is not installed here; pip install 'unet-engine\[(tiff|hdf5)\]'"):
        open_volume(str(path))


@pytest.mark.parametrize("write", [FILES[0][0], FILES[4][0], FILES[8][0], FILES[-1][0]])
def test_a_file_that_goes_or_changes_in_mid_run_ends_it(tmp_path, write):
    path = write(tmp_path)
    volume = open_volume(str(path))
    volume.confirm()
    assert volume.changed(Box.of_shape(volume.shape), 0.0)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(InputError, match="was changed while it was read"):
        volume.confirm()
    path.unlink()
    with pytest.raises(InputError, match="is gone while it was read"):
        volume.confirm()


@pytest.mark.parametrize("index", [0, 4, 6, 7, 8, 12, 13, 14, 15])
def test_spoiled_files_are_refused_in_one_line(tmp_path, index):
    path = FILES[index][0](tmp_path)
    check_refused(path, path.read_bytes())


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared files here")
@pytest.mark.parametrize("name", ["em/volume.tif", "sat/mosaic_1_labels.tif", "sat/naip.tif"])
def test_real_files(name):
    path = SHARED / "data" / name
    whole, volume = tifffile.imread(path), open_volume(str(path))
    box = Box(tuple(n // 3 for n in volume.shape), tuple(n // 3 + n // 4 for n in volume.shape))
    part = whole[box.slices()]
    assert np.array_equal(volume.read(box), part.transpose(2, 0, 1) if volume.channels > 1 else part[np.newaxis])


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_levels_of_an_ome_tiff_have_their_own_voxel_size(tmp_path, tile):
    path, options = str(tmp_path / "a.ome.tif"), {"tile": tile, "photometric": "minisblack"}
    with tifffile.TiffWriter(path) as file:
        file.write(STACK, subifds=2, metadata={"axes": "ZYX", **OME}, **options)
        for factor in (2, 4):
            file.write(STACK[:, ::factor, ::factor], subfiletype=1, **options)
    for level, factor in ((1, 2), (2, 4)):
        volume = open_meant(path, None, Meant(level=level))
        assert np.array_equal(volume.read(Box.of_shape(volume.shape))[0], STACK[:, ::factor, ::factor])
        assert volume.spacing == (2, 0.5 * factor, 0.5 * factor)
        assert volume.translation == (0, 0.25 * (factor - 1), 0.25 * (factor - 1))
        again = pickle.loads(pickle.dumps(volume))
        assert (again.shape, again.spacing) == (volume.shape, volume.spacing)
    assert open_volume(path).facts()["levels"] == ["full", "7×25×35", "7×13×18"]
    with pytest.raises(InputError, match=r"--level '3': .* has 3 levels \(7×50×70, 7×25×35, 7×13×18\); count from 0"):
        open_meant(path, None, Meant(level=3))


def test_one_of_several_images_of_a_tiff_is_chosen(tmp_path):
    path = str(tmp_path / "a.ome.tif")
    with tifffile.TiffWriter(path) as file:
        for name, stack in (("left", STACK), ("right", STACK[::-1]), ("slide: 1", STACK[:3])):
            file.write(stack, metadata={"axes": "ZYX", "Name": name}, photometric="minisblack")
    for name, stack in (("left", STACK), ("right", STACK[::-1]), ("1", STACK[::-1]), ("2", STACK[:3])):
        volume = open_meant(path, None, Meant(image=name))
        assert np.array_equal(volume.read(Box.of_shape(volume.shape))[0], stack)
    for name, says in (("7", r"--image '7': there is none in .*'right' 7×50×70 ZYX"), ("slide: 1", "give its number")):
        with pytest.raises(InputError, match=says):
            open_meant(path, None, Meant(image=name))


@pytest.mark.parametrize("coordinates", [True, False])
def test_netcdf_of_a_map_keeps_its_reference_system(tmp_path, coordinates):
    rasterio = pytest.importorskip("rasterio")
    utm = rasterio.crs.CRS.from_epsg(32633)
    with h5py.File(tmp_path / "a.nc", "w") as file:
        data = file.create_dataset("red", data=np.zeros((3, 20, 30), np.uint8))
        data.attrs["grid_mapping"] = "crs"
        file["crs"] = 0
        file["crs"].attrs.update({"crs_wkt": utm.to_wkt(), "GeoTransform": "500 10 0 4000 0 -10"})
        file["band"], file["y"], file["x"] = [0, 1, 2], 3995 - 10.0 * np.arange(20), 505 + 10.0 * np.arange(30)
        for i, name in enumerate(["band", "y", "x"]):
            if coordinates:
                file[name].make_scale()
                data.dims[i].attach_scale(file[name])
            data.dims[i].label = name
    volume = open_volume(f"{tmp_path / 'a.nc'}:/red")
    assert np.allclose(volume.frame.affine, [[10, 0, 505], [0, -10, 3995]])
    assert rasterio.crs.CRS.from_wkt(volume.frame.crs) == utm
    assert (volume.axes, volume.unit) == ("cyx", "meter")


@pytest.mark.parametrize(
    ("kind", "part"),  # of a stack of ImageJ, voxels lie before what describes pages
    [("ome", 0.3), ("ome", 0.6), ("ome", 0.95), ("imagej", 0.3), ("imagej", 0.6), ("plain", 0.3), ("plain", 0.95)],
)
def test_a_tiff_whose_pages_break_off_is_no_smaller_image(tmp_path, kind, part):
    metadata = {"axes": "ZYX"} if kind != "plain" else None
    path = tmp_path / "a.tif"
    stack = np.random.default_rng(1).integers(0, 99, (6, 40, 30), np.uint8)
    how = {"ome": {"ome": True}, "imagej": {"imagej": True}, "plain": {"compression": "zlib"}}[kind]
    tifffile.imwrite(path, stack, metadata=metadata, **how)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InputError, match=r"breaks off|is no readable TIFF|it ends at byte"):
        open_volume(str(path)).read(Box.of_shape(stack.shape))


def _characters(text):
    return np.array(list(text), "S1")


@pytest.mark.parametrize("columns", [STACK.shape[2], 700])
def test_an_imaris_file_ends_where_its_image_does(tmp_path, columns):
    """Its datasets are filled up to whole chunks, with zeros that nobody measured."""
    path, size = tmp_path / "a.ims", (*STACK.shape[:2], columns)
    with h5py.File(path, "w") as file:
        channel = file.create_group("DataSet/ResolutionLevel 0/TimePoint 0/Channel 0")
        stored = np.zeros((8, 64, 96), STACK.dtype)
        stored[:7, :50, :70] = STACK
        channel.create_dataset("Data", data=stored, chunks=(8, 32, 32), compression="gzip")
        image = file.create_group("DataSetInfo/Image")
        for axis, name in enumerate("XYZ"):
            channel.attrs[f"ImageSize{name}"] = _characters(str(size[2 - axis]))
            image.attrs[f"ExtMin{axis}"] = _characters("10")
            image.attrs[f"ExtMax{axis}"] = _characters(str(10 + 2 * size[2 - axis]))
    if columns == 700:
        with pytest.raises(InputError, match=r"its image is \(7, 50, 700\)"):
            open_volume(str(path))
        return
    volume = open_volume(str(path))
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape))[0], STACK)
    assert (volume.spacing, volume.translation, volume.unit) == ((2, 2, 2), (11, 11, 11), "micrometer")


def an_imaris_film(path, left_out=()):
    """Two levels, three time points and two channels, filled up to whole chunks."""
    film = np.random.default_rng(3).integers(0, 200, (3, 2, 6, 20, 30), np.uint8)
    with h5py.File(path, "w") as file:
        for level, t, c in np.ndindex(2, 3, 2):
            if (level, t, c) in left_out:
                continue
            channel = file.create_group(f"DataSet/ResolutionLevel {level}/TimePoint {t}/Channel {c}")
            image = film[t, c, :, :: 1 + level, :: 1 + level]
            stored = np.zeros((8, 32, 32), np.uint8)
            stored[tuple(map(slice, image.shape))] = image
            channel.create_dataset("Data", data=stored, chunks=(8, 16, 16), compression="gzip")
            channel.attrs.update(
                {f"ImageSize{a}": _characters(str(n)) for a, n in zip("ZYX", image.shape, strict=True)}
            )
        about = file.create_group("DataSetInfo/Image")
        about.attrs.update({f"ExtMin{a}": _characters("0") for a in range(3)})
        about.attrs.update({f"ExtMax{a}": _characters(text) for a, text in enumerate(("15", "10", "12"))})
        instants = file.create_group("DataSetInfo/TimeInfo")
        for t in range(3):
            instants.attrs[f"TimePoint{t + 1}"] = _characters(f"2020-01-01 23:59:{10 + 20 * t}.500")
        for c, name in enumerate(("DAPI", "GFP")):
            file.create_group(f"DataSetInfo/Channel {c}").attrs["Name"] = _characters(name)
    return film


def test_time_points_channels_and_levels_of_imaris(tmp_path):
    path = str(tmp_path / "a.ims")
    film = an_imaris_film(path)
    volume = open_volume(path, None, Pick(timepoint=1))
    assert (volume.axes, volume.channel_names, volume.spacing) == ("tczyx", ("DAPI", "GFP"), (2, 0.5, 0.5))
    assert volume.timing == Timing(20.0, 0.0, "second")
    assert volume.facts()["levels"] == ["full", "6×10×15"]
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (5, 20, 29))), film[1, :, 1:5, 2:20, 3:29])
    some = pickle.loads(pickle.dumps(volume.picked(Pick(timepoint=2, channels=("GFP",)))))
    np.testing.assert_array_equal(some.read(Box.of_shape(some.shape))[0], film[2, 1])
    coarse = open_meant(path, None, Meant(level=1, timepoint=0))
    assert (coarse.spacing, coarse.translation) == ((2, 1, 1), (1, 0.5, 0.5))
    np.testing.assert_array_equal(coarse.read(Box.of_shape(coarse.shape)), film[0, :, :, ::2, ::2])
    assert open_volume(f"{path}:level=1", None, Pick(timepoint=0)).shape == coarse.shape
    alone = open_volume(f"{path}:/DataSet/ResolutionLevel 0/TimePoint 2/Channel 0/Data")
    np.testing.assert_array_equal(alone.read(Box.of_shape(alone.shape))[0], film[2, 0])
    with pytest.raises(InputError, match=r"--level 2: .* has 2 levels"):
        open_meant(path, None, Meant(level=2))


def test_an_imaris_file_that_lacks_a_channel_is_refused(tmp_path):
    an_imaris_film(tmp_path / "a.ims", left_out=[(0, 1, 1)])
    with pytest.raises(InputError, match="TimePoint 1/Channel 1 is missing, and others are"):
        open_volume(str(tmp_path / "a.ims"))


@pytest.mark.parametrize("more", [0, 40])
def test_text_of_hdf5_that_lies_nowhere_is_left_out(tmp_path, more):
    """Its library takes gigabytes for a length of four, and never ends in a heap whose objects are of no size. more: so
    many that attributes lie in a heap of their own, with sums that tell what is damaged there."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest" if more else None) as file:
        data = file.create_dataset("raw", data=STACK, track_order=bool(more))
        data.attrs.update({f"number{n}": n for n in range(more)})
        data.attrs.update({"resolution": [4.0, 2, 1], "units": ["nm"] * 3, "long": "x" * 300, "void": ""})
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    free = heap + 16
    while int.from_bytes(whole[free : free + 2], "little"):
        free += 16 + -(-int.from_bytes(whole[free + 8 : free + 16], "little") // 8) * 8
    element = whole.index((2).to_bytes(4, "little") + heap.to_bytes(8, "little"))
    in_header = {
        "length": (element, (2**31 - 1).to_bytes(4, "little")),
        "place": (element + 4, (heap + 8).to_bytes(8, "little")),
        "number": (element + 12, (999).to_bytes(4, "little")),
    }
    spoiled = ({} if more else in_header) | {
        "size": (heap + 24, (2**40).to_bytes(8, "little")),
        "free": (free + 8, bytes(8)),
        "heap": (heap + 8, (2**50).to_bytes(8, "little")),
    }
    assert open_volume(str(path)).unit == "nanometer"
    for kind, (at, value) in spoiled.items():
        other = tmp_path / f"{kind}.h5"
        other.write_bytes(whole[:at] + value + whole[at + len(value) :])
        volume = open_volume(str(other))
        np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape))[0], STACK)
        assert volume.unit is None or kind == "length", kind


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}, {"userblock_size": 1024}, {"track_order": True}])
@pytest.mark.parametrize("more", [0, 40, 150])
def test_text_of_hdf5_is_found_wherever_it_lies(tmp_path, options, more):
    """In headers of both kinds, behind a block of the user's own, in blocks of a header that goes on, and of more
    attributes in a heap of one block or of several."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", **options) as file:
        data = file.create_dataset("raw", data=STACK, track_order=options.get("track_order"))
        data.attrs.update({f"said{number}": "x" * (200 * number) for number in range(4)})
        data.attrs.update({f"more{number}": "y" * (number % 30) for number in range(more)})
        data.attrs.update({"resolution": [4.0, 2, 1], "units": ["nm"] * 3})
    volume = open_volume(str(path))
    assert (volume.spacing, volume.unit) == ((4, 2, 1), "nanometer")
    from unet_engine.volumes.hdf5_heap import _Reader

    with h5py.File(path) as file, path.open("rb") as opened:
        item = file["raw"]
        reader = _Reader(opened.fileno(), file.userblock_size)
        for key in item.attrs:
            length = item.attrs.get_id(key).get_storage_size()
            found = reader.attribute(h5py.h5o.get_info(item.id).addr, key.encode(), length)
            assert found, key
            assert len(found) == 1, key
