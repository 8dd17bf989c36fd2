"""Any box of any layout that zarr can store reads as zarr's own codecs read it; and what no codec can read is told."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from support.command_line import cli
from support.volumes import fake_model, identity, make_volume
from unet_engine.errors import BackendError, DataError, InputError
from unet_engine.plan.box import Box
from unet_engine.storage.codecs import own_codecs
from unet_engine.volumes.formats import open_volume

RNG = np.random.default_rng(5)


@dataclass(frozen=True)
class Layout:
    """How an array is stored: `options` are those of `zarr.create_array`."""

    axes: str
    shape: tuple[int, ...]
    dtype: str
    options: dict[str, Any]
    seed: int
    full: bool
    """Whether all of it is stored, or a part and the rest is the fill value."""

    def make(self, folder):
        """Store it. Returns its path, and all its voxels as zarr's own codecs read them."""
        path, rng = str(Path(folder) / "v.zarr"), np.random.default_rng(self.seed)
        array = zarr.create_array(path, shape=self.shape, dtype=self.dtype, **self.options)
        span = tuple(slice(0 if self.full else int(rng.integers(n)), n) for n in self.shape)
        array[span] = rng.integers(0, 2 if self.dtype == "bool" else 100, array[span].shape).astype(self.dtype)
        with own_codecs():
            return path, np.asarray(zarr.open_array(path, mode="r")[...])


@st.composite
def layouts(draw):
    axes = "".join(draw(st.permutations("yx" + "".join(a for a in "tcz" if draw(st.booleans())))))
    shape = tuple(1 if a == "t" else draw(st.integers(1, 11)) for a in axes)
    chunks = tuple(draw(st.integers(1, 6)) for _ in axes)
    dtype = draw(
        st.sampled_from(
            ["bool", *(f"{o}{k}{n}" for o in "<>" for k in "ui" for n in (1, 2, 4, 8)), "<f2", "<f4", ">f8"]
        )
    )
    fills = [0, 1, *([float("nan")] if "f" in dtype else [])]
    options = {"chunks": chunks, "fill_value": draw(st.sampled_from(fills))}
    old, size = draw(st.booleans()), np.dtype(dtype).itemsize
    options |= draw(_of_v2(dtype, size)) if old else draw(_of_v3(len(axes), chunks, size))
    return Layout(axes, shape, dtype, options, draw(st.integers(0, 99)), draw(st.booleans()))


@st.composite
def _of_v2(draw, dtype, size):
    filters = [None, [numcodecs.Shuffle(size)], [numcodecs.Delta(dtype)] if dtype[1:2] in ("u", "i") else None]
    compressors = [
        None,
        numcodecs.Zlib(1),
        numcodecs.LZMA(),
        numcodecs.Blosc("lz4"),
        numcodecs.Blosc("zstd", shuffle=2),
    ]
    return {
        "zarr_format": 2,
        "order": draw(st.sampled_from("CF")),
        "filters": draw(st.sampled_from(filters)),
        "compressors": draw(st.sampled_from(compressors)),
        "chunk_key_encoding": {"name": "v2", "separator": draw(st.sampled_from("./"))},
        **({"fill_value": None} if draw(st.booleans()) else {}),
    }


@st.composite
def _of_v3(draw, ndim, chunks, size):
    compressors = [
        None,
        zarr.codecs.GzipCodec(),
        zarr.codecs.BloscCodec(),
        [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()],
    ]
    endian = draw(st.sampled_from(["little", "big"])) if size > 1 else None
    order = draw(st.none() | st.permutations(range(ndim)))
    shards = tuple(c * draw(st.integers(1, 3)) for c in chunks) if draw(st.booleans()) else None
    name = draw(st.sampled_from(["default", "v2"]))
    return {
        "zarr_format": 3,
        "shards": shards,
        "filters": [zarr.codecs.TransposeCodec(order=order)] if order else "auto",
        "serializer": zarr.codecs.BytesCodec(endian=endian),
        "compressors": draw(st.sampled_from(compressors)),
        "chunk_key_encoding": {"name": name, "separator": draw(st.sampled_from("./"))},
    }  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(layouts(), st.data())
def test_any_box_of_any_layout_reads_as_zarr_reads_it(layout, data):
    with tempfile.TemporaryDirectory() as folder:
        path, whole = layout.make(folder)
        volume = open_volume(path, layout.axes)
        lo = tuple(data.draw(st.integers(0, n - 1)) for n in volume.shape)
        hi = tuple(data.draw(st.integers(l + 1, n)) for l, n in zip(lo, volume.shape, strict=True))
        box = Box(lo, hi)
        assert_reads(volume, layout.axes, whole, box)
        assert_reads(volume, layout.axes, whole, Box.of_shape(volume.shape))
        if not volume.has_data(box):
            fill = np.float64(layout.options["fill_value"] or 0).astype(volume.dtype)
            np.testing.assert_array_equal(volume.read(box), fill)


def assert_reads(volume, axes, whole, box):
    spans = dict(zip(volume.spatial, box.slices(), strict=True))
    found = whole[tuple(spans.get(a, slice(None)) for a in axes)]
    found = found.transpose([axes.index(a) for a in "tczyx" if a in axes])
    expected = found.reshape(volume.channels, *box.shape)
    got = volume.read(box)
    assert got.dtype == whole.dtype.newbyteorder("=")
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, expected)


def test_shards_with_one_time_point_and_a_rest_of_planes(tmp_path):
    array = RNG.integers(0, 99, (1, 1, 33, 20, 20), np.uint8)
    path = make_volume(
        tmp_path / "v.zarr", array, axes="tczyx", ome="0.5", shards=(1, 1, 32, 16, 16), chunks=(1, 1, 16, 16, 16)
    )
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array[0, 0])


# --- bytes behind the data of a chunk ---


def chunks_of(path):
    return [p for p in Path(path).rglob("*") if p.is_file() and p.name not in (".zarray", ".zattrs", "zarr.json")]


@pytest.mark.parametrize(
    "options", [{"zarr_format": 2, "compressors": numcodecs.Blosc("lz4")}, {"compressors": zarr.codecs.BloscCodec()}]
)
def test_bytes_behind_the_data_of_blosc_chunks_are_passed_over_and_told(tmp_path, options):
    array = RNG.integers(0, 99, (20, 18, 17), np.uint8)
    path = make_volume(tmp_path / "v.zarr", array, **options)
    for chunk in chunks_of(path):
        chunk.write_bytes(chunk.read_bytes() + b"\0" * 16)
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)
    said = cli("run", "--in", path, "--model", fake_model(tmp_path), "--out", tmp_path / "o.zarr")
    assert said.code == 0
    assert "decoded by zarr's own codecs" in said.err
    said = cli("run", "--in", path, "--model", fake_model(tmp_path), "--out", tmp_path / "p.zarr", "--strict")
    assert (said.code, "--strict" in said.error) == (BackendError.exit_code, True)


def test_one_longer_chunk_among_others_reads_too(tmp_path):
    array = RNG.integers(0, 99, (20, 18, 17), np.uint8)
    path = make_volume(tmp_path / "v.zarr", array, zarr_format=2, compressors=numcodecs.Blosc("zstd"))
    chunk = tmp_path / "v.zarr/1.1.1"
    chunk.write_bytes(chunk.read_bytes() + b"x" * 5)
    assert open_volume(path).drawback is None
    np.testing.assert_array_equal(identity(path, tmp_path)[0], array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("longer", [False, True])
def test_a_blosc_chunk_that_was_cut_short_is_never_read(tmp_path, order, longer):
    """Random bytes are stored as they are: where some are missing, whatever lies behind them in memory fills in."""
    array = RNG.integers(0, 256, (16, 16, 16), np.uint8)
    path = make_volume(tmp_path / "v.zarr", array, zarr_format=2, compressors=numcodecs.Blosc(shuffle=0), order=order)
    for chunk in chunks_of(path):
        chunk.write_bytes(chunk.read_bytes() + b"\0" * 16 * longer)
    cut = tmp_path / "v.zarr/1.0.1"
    cut.write_bytes(cut.read_bytes()[: -30 if longer else -1])
    with pytest.raises(DataError, match=r"chunk z=1 y=0 x=1.*; restore the chunk"):
        open_volume(path).read(Box.of_shape((16, 16, 16)))


def test_inside_shards_and_behind_urls_a_blosc_chunk_cut_short_is_not_read_either(tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    array = RNG.integers(0, 256, (8, 8, 8), np.uint8)
    pack = [zarr.codecs.BytesCodec(), zarr.codecs.BloscCodec(shuffle="noshuffle", typesize=1)]
    index = [zarr.codecs.BytesCodec()]  # no checksum: what the index says of a chunk can be changed
    shards = zarr.codecs.ShardingCodec(chunk_shape=(4, 4, 8), codecs=pack, index_codecs=index)
    path = make_volume(f"memory://{tmp_path}/v.zarr", array, chunks=(8, 8, 8), serializer=shards, compressors=None)
    box = Box.of_shape((8, 8, 8))
    np.testing.assert_array_equal(open_volume(path).read(box)[0], array)
    files, key = fsspec.filesystem("memory"), f"{tmp_path}/v.zarr/c/0/0/0"
    shard = bytearray(files.cat(key))
    length = int.from_bytes(shard[-56:-48], "little")  # of the first chunk: the index is four offsets and lengths
    shard[-56:-48] = (length - 30).to_bytes(8, "little")
    files.pipe(key, bytes(shard))
    with pytest.raises(DataError, match="cannot be read"):
        open_volume(path).read(box)


# --- codecs that are not there ---


def with_codecs(path, codecs, zarr_format=3):
    """An array at `path` whose metadata name `codecs` (of v2: the compressor). Returns the path as text."""
    zarr.create_array(path, shape=(4, 4, 4), dtype="f4", compressors=None, zarr_format=zarr_format)[...] = 1
    file = path / ("zarr.json" if zarr_format == 3 else ".zarray")
    metadata = json.loads(file.read_text())
    metadata |= {"codecs": codecs} if zarr_format == 3 else {"compressor": codecs}
    file.write_text(json.dumps(metadata))
    return str(path)


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


@pytest.mark.parametrize(
    ("zarr_format", "codecs", "words"),
    [
        (2, {"id": "zfpy", "mode": 4}, ["codec zfpy ", "pip install 'numcodecs[zfpy]'"]),
        (2, {"id": "imagecodecs_jpeg2k"}, ["codec imagecodecs_jpeg2k ", "pip install imagecodecs-numcodecs"]),
        (2, {"id": "my_codec"}, ["codec my_codec ", "registers"]),
        (3, [BYTES, {"name": "my_codec"}], ["codec my_codec ", "registers"]),
        (3, [{"name": "numcodecs.zfpy", "configuration": {}}], ["codec zfpy ", "pip install 'numcodecs[zfpy]'"]),
    ],
)
def test_a_codec_that_is_not_installed_is_named_with_its_package(tmp_path, zarr_format, codecs, words):
    if "zfpy" in str(codecs) and "zfpy" in numcodecs.registry.codec_registry:
        pytest.skip("zfpy is installed here")
    path = with_codecs(tmp_path / "v.zarr", codecs, zarr_format)
    said = cli("run", "--in", path, "--model", fake_model(tmp_path), "--out", tmp_path / "o.zarr")
    assert said.code == InputError.exit_code
    assert all(word in said.error for word in ["v.zarr", "not installed", *words]), said.error
    assert "delete" not in said.error


def test_a_codec_that_is_not_installed_is_named_inside_an_ome_group(tmp_path):
    make_volume(tmp_path / "g.zarr", np.ones((4, 4, 4), np.uint8), axes="zyx", ome="0.5")
    file = tmp_path / "g.zarr/0/zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"codecs": [{"name": "bytes"}, {"name": "my_codec"}]}))
    with pytest.raises(InputError, match="codec my_codec is not installed"):
        open_volume(str(tmp_path / "g.zarr"))


def test_damage_is_still_called_damage(tmp_path):
    path = make_volume(tmp_path / "v.zarr", np.ones((16, 16, 16), np.uint8))
    (tmp_path / "v.zarr/c/1/0/0").write_bytes(b"junk")
    said = cli("run", "--in", path, "--model", fake_model(tmp_path), "--out", tmp_path / "o.zarr")
    assert said.code == DataError.exit_code
    assert "z=1 y=0 x=0" in said.error
    assert said.error.endswith("restore the chunk, or delete it to have it read as the fill value")
