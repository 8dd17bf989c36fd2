"""N5: datasets as tensorstore writes them and as the format's own text has them."""

import bz2
import json
import lzma
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, result_of
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_stored, open_volume

SCAN = np.random.default_rng(2).integers(0, 60000, (5, 9, 13), dtype=np.uint16)
PACKINGS = {
    "raw": (None, bytes),
    "gzip": ({"type": "gzip", "level": -1}, lambda b: (c := zlib.compressobj(wbits=31)).compress(b) + c.flush()),
    "zlib": ({"type": "gzip", "useZlib": True}, zlib.compress),
    "bzip2": ({"type": "bzip2"}, bz2.compress),
    "xz": ({"type": "xz"}, lzma.compress),
}


def dataset(folder, values=SCAN, block=(2, 4, 6), packing="raw", keep=lambda _: True, *, variable=False, **attributes):
    """Big-endian numbers behind a header: mode, number of axes, sizes from the fastest axis on; edge blocks cut."""
    said, pack = PACKINGS[packing]
    folder = Path(folder)
    folder.mkdir(parents=True)
    facts = {
        "dimensions": list(values.shape[::-1]), "blockSize": list(block[::-1]), "dataType": values.dtype.name,
        "compression": said or {"type": "raw"}, **attributes,
    }  # fmt: skip
    (folder / "attributes.json").write_text(json.dumps(facts))
    for index in np.ndindex(*(-(-n // b) for n, b in zip(values.shape, block, strict=True))):
        part = values[tuple(slice(i * b, i * b + b) for i, b in zip(index, block, strict=True))]
        if keep(index):
            place = folder.joinpath(*map(str, index[::-1]))
            place.parent.mkdir(parents=True, exist_ok=True)
            head = struct.pack(f">HH{part.ndim}I", int(variable), part.ndim, *part.shape[::-1])
            head += struct.pack(">I", part.size) * variable
            place.write_bytes(head + pack(part.astype(part.dtype.newbyteorder(">")).tobytes()))
    return str(folder)


@pytest.mark.parametrize("packing", PACKINGS)
def test_voxels_and_sizes(tmp_path, packing):
    path = dataset(
        tmp_path / "a.n5/raw", packing=packing, pixelResolution={"dimensions": [4.0, 5.0, 40.0], "unit": "nm"}
    )
    for name in (path, f"{tmp_path}/a.n5"):
        volume = open_volume(name)
        assert (volume.axes, volume.shape, volume.chunks) == ("zyx", SCAN.shape, (2, 4, 6))
        assert (volume.spacing, volume.unit) == ((40.0, 5.0, 4.0), "nanometer")
        np.testing.assert_array_equal(volume.read(Box((0, 0, 0), SCAN.shape))[0], SCAN)
        np.testing.assert_array_equal(volume.read(Box((1, 3, 5), (4, 9, 12)))[0], SCAN[1:4, 3:9, 5:12])


@pytest.mark.parametrize("packing", ["raw", "gzip", "zstd", "blosc", "xz", "bzip2"])
def test_what_tensorstore_writes(tmp_path, packing):
    tensorstore = pytest.importorskip("tensorstore")
    # tensorstore lists axes as N5 does, the fastest first
    more = {"blosc": {"cname": "lz4", "clevel": 5, "shuffle": 1}}.get(packing, {})
    metadata = {"dimensions": [13, 9, 5], "blockSize": [6, 4, 2], "dataType": "int16", "axes": ["x", "y", "z"],
                "resolution": [4, 4, 40], "units": ["nm"] * 3, "compression": {"type": packing, **more}}  # fmt: skip
    store = {"driver": "file", "path": f"{tmp_path}/a.n5/vol/"}
    values = SCAN.astype("i2")
    opened = tensorstore.open({"driver": "n5", "kvstore": store, "metadata": metadata}, create=True).result()
    opened[...] = values.transpose()
    volume = open_volume(f"{tmp_path}/a.n5")
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), values.shape))[0], values)
    assert volume.spacing == (40.0, 4.0, 4.0)


def test_a_pyramid(tmp_path):
    top = tmp_path / "a.n5/em"
    for level in range(3):
        dataset(top / f"s{level}", SCAN[:, :: 2**level, :: 2**level], downsamplingFactors=[2**level, 2**level, 1])
    (top / "attributes.json").write_text(json.dumps({"resolution": [4, 4, 40], "units": ["nm", "nm", "nm"]}))
    assert open_volume(str(tmp_path / "a.n5")).spacing == (40, 4, 4)
    second = open_volume(f"{top}/s1")
    assert (second.spacing, second.translation) == ((40, 8, 8), (0, 2, 2))
    said = cli("info", f"{top}/s2", "--json")
    assert said.json["spacing"] == [40, 16, 16]
    model = fake_model(tmp_path, channels_in=1, channels_out=1)
    out = unet_engine.run(
        str(top), model=model, level=1, out=str(tmp_path / "o.zarr"), output="logits", blend="crop"
    ).out
    np.testing.assert_array_equal(result_of(out)[0], SCAN[:, ::2, ::2].astype("f4"))


@pytest.mark.parametrize(
    ("factors", "spacing"),
    [("[2, 2, 1]", (40, 8, 8)), ("2,2,1", (40, 8, 8)), ("2x2x1", (40, 8, 8)), ("twice", (40, 4, 4))],
)
def test_factors_as_text(tmp_path, factors, spacing):
    """Of as many voxels as the full resolution, so that their number says nothing."""
    for level, more in (("s0", {}), ("s1", {"downsamplingFactors": factors})):
        dataset(tmp_path / "em" / level, **more)
    (tmp_path / "em/attributes.json").write_text(json.dumps({"resolution": "[4, 4, 40]", "units": ["nm"] * 3}))
    assert open_volume(f"{tmp_path}/em/s1").spacing == spacing


@pytest.mark.parametrize(("of_level", "spacing", "start"), [([4, 4, 40], (40, 8, 8), 2), ([8, 8, 40], (40, 8, 8), 0)])
def test_each_level_says_the_size_of_the_full_resolution_or_its_own(tmp_path, of_level, spacing, start):
    """n5-viewer writes the first, the same at each level."""
    for level, sizes in (("s0", [4, 4, 40]), ("s1", of_level)):
        factors = [1, 1, 1] if level == "s0" else [2, 2, 1]
        pixel = {"dimensions": sizes, "unit": "nm"}
        dataset(tmp_path / "em" / level, downsamplingFactors=factors, pixelResolution=pixel)
    first, second = open_volume(f"{tmp_path}/em/s0"), open_volume(f"{tmp_path}/em/s1")
    assert (first.spacing, first.translation, first.unit) == ((40, 4, 4), (0, 0, 0), "nanometer")
    assert (second.spacing, second.translation, second.unit) == (spacing, (0, start, start), "nanometer")


def test_transform_names_its_axes(tmp_path):
    said = {"axes": ["z", "y", "x"], "scale": [40.0, 4.0, 5.0], "translate": [80.0, 1.0, 2.0], "units": ["nm"] * 3}
    volume = open_volume(dataset(tmp_path / "a", transform=said))
    assert (volume.spacing, volume.translation, volume.unit) == ((40, 4, 5), (80, 1, 2), "nanometer")


def test_channels_and_time(tmp_path):
    values = SCAN.reshape(1, 1, *SCAN.shape).repeat(2, 0).repeat(3, 1)
    path = dataset(tmp_path / "a", values, (1, 1, 2, 4, 6), axes=["x", "y", "z", "c", "t"])
    volume = open_stored(path)
    assert (volume.axes, volume.timepoints, volume.channels) == ("tczyx", 2, 3)


def test_a_block_of_varying_length_is_refused_unless_it_has_all_voxels(tmp_path):
    path = dataset(tmp_path / "a", variable=True)
    block = Path(path) / "0/0/0"
    data = block.read_bytes()
    block.write_bytes(data[:16] + struct.pack(">I", 40) + data[20:])
    with pytest.raises(InputError, match="varying length, of 40 numbers, and has 48 voxels"):
        open_volume(path).read(Box((0, 0, 0), (1, 2, 3)))


def test_blocks_that_are_not_stored_are_zeros_and_cut_ones_too(tmp_path):
    path = dataset(tmp_path / "a", keep=lambda index: index != (1, 1, 1), variable=True)
    expected = SCAN.copy()
    expected[2:4, 4:8, 6:12] = 0
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), SCAN.shape))[0], expected)
    assert not volume.has_data(Box((2, 4, 6), (4, 8, 12)))
    assert volume.has_data(Box((2, 4, 5), (4, 8, 12)))
    (Path(path) / "attributes.json").unlink()
    with pytest.raises(InputError, match="gone"):
        volume.read(Box((2, 4, 6), (3, 5, 7)))


def _cut(path):
    place = next(p for p in sorted(Path(path).rglob("*")) if p.is_file() and p.name != "attributes.json")
    place.write_bytes(place.read_bytes()[:-3])


def _larger(path):
    place = next(p for p in sorted(Path(path).rglob("*")) if p.is_file() and p.name != "attributes.json")
    place.write_bytes(struct.pack(">HH3I", 0, 3, 2**31, 2**31, 2**31) + b"x")


def _bomb(path):
    place = next(p for p in sorted(Path(path).rglob("*")) if p.is_file() and p.name != "attributes.json")
    place.write_bytes(place.read_bytes()[:16] + PACKINGS["gzip"][1](bytes(2**24)))


@pytest.mark.parametrize("spoil", [_cut, _larger, _bomb])
def test_damaged_blocks_are_an_error_that_names_them(tmp_path, spoil):
    path = dataset(tmp_path / "a", packing="gzip")
    spoil(path)
    said = cli("info", path)
    assert (said.code, "chunk" in said.err, len(said.err.splitlines())) == (4, True, 1)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"compression": {"type": "lz4"}}, "lz4"), ({"dataType": "string"}, "string"), ({"blockSize": [2, 2]}, "blocks"),
        ({"dimensions": [2**60, 2, 2]}, "shape"), ({"blockSize": [0, 2, 2]}, "chunks"), ({"dimensions": "x"}, "sense"),
        ({"pixelResolution": [1, 2]}, "sense"), ({"dimensions": [[1], 2, 3]}, "sense"),
    ],
)  # fmt: skip
def test_attributes_that_make_no_sense(tmp_path, attributes, words):
    said = cli(
        "info",
        dataset(tmp_path / "a", **attributes) if "dimensions" not in attributes else _spoiled(tmp_path, attributes),
    )
    assert (said.code, words in said.err, len(said.err.splitlines())) == (3, True, 1), said.err


def _spoiled(tmp_path, attributes):
    path = Path(dataset(tmp_path / "a"))
    facts = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps({**facts, **attributes}))
    return path


def test_which_dataset(tmp_path):
    dataset(tmp_path / "a.n5/x/raw")
    dataset(tmp_path / "a.n5/y")
    said = cli("info", tmp_path / "a.n5")
    assert (said.code, "x/raw, y" in said.err) == (3, True)
    (tmp_path / "b.n5").mkdir()
    assert "no N5 dataset" in cli("info", tmp_path / "b.n5").err
