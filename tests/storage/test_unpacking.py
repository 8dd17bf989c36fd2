"""What a chunk unpacks to is known before it is unpacked, and never becomes more than that in memory."""

import bz2
import gzip
import lzma
import os
import tracemalloc
import zlib
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from support.catalogue.packed import BOMBS, INDICES, SHAPE, reindexed, sharded, volume_of
from support.volumes import make_volume
from unet_engine.errors import DataError, InputError
from unet_engine.plan.box import Box
from unet_engine.storage.codecs import is_native
from unet_engine.storage.unpacking import HEAD, TAIL, said, unpacked
from unet_engine.volumes.formats import open_volume

CODECS = {
    "blosc": numcodecs.Blosc("zstd"), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip(), "lz4": numcodecs.LZ4(),
    "zlib": numcodecs.Zlib(), "bz2": numcodecs.BZ2(), "lzma": numcodecs.LZMA(),
}  # fmt: skip
ARRAY = np.random.default_rng(3).integers(1, 200, SHAPE, np.uint8)
ALL = Box.of_shape(SHAPE)
SOME = Box((3, 0, 5), (20, 9, 31))


def as_bytes(found):
    return bytes(memoryview(np.ascontiguousarray(np.frombuffer(found, np.uint8))))


@given(st.sampled_from(sorted(CODECS)), st.binary(min_size=1, max_size=70_000), st.integers(1, 40))
def test_what_a_chunk_says_is_what_it_unpacks_to(name, data, times):
    data *= times
    packed = bytes(CODECS[name].encode(data))
    claimed = said(name, packed[:HEAD], packed[-TAIL:])
    assert claimed == (len(data) if name in ("blosc", "zstd", "gzip", "lz4") else None)
    assert as_bytes(unpacked(CODECS[name], packed, len(data))) == data


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("gzip", gzip.compress(b"one") + gzip.compress(b"two")),
        ("gzip", gzip.compress(b"onetwo") + bytes(7)),
        ("zlib", zlib.compress(b"onetwo") + b"what follows"),
        ("bz2", bz2.compress(b"one") + bz2.compress(b"two")),
        ("bz2", bz2.compress(b"onetwo") + b"what follows"),
        ("lzma", lzma.compress(b"one") + lzma.compress(b"two")),
        ("lzma", lzma.compress(b"onetwo") + b"what follows"),
    ],
)
def test_what_follows_a_stream_is_taken_as_the_codec_takes_it(name, packed):
    assert as_bytes(CODECS[name].decode(packed))[:6] == b"onetwo" == as_bytes(unpacked(CODECS[name], packed, 6))


@pytest.mark.parametrize("name", ["gzip", "zlib", "bz2", "lzma"])
def test_a_stream_that_breaks_off_is_refused(name):
    packed = bytes(CODECS[name].encode(ARRAY.tobytes()))
    with pytest.raises(ValueError, match="breaks off"):
        unpacked(CODECS[name], packed[:-20], ARRAY.nbytes)


@pytest.mark.parametrize("name", BOMBS)
def test_what_unpacks_to_gigabytes_takes_no_more_memory_than_a_chunk(name):
    codec, make = BOMBS[name]
    packed = make()
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, RuntimeError)):
            unpacked(CODECS[codec], packed, 512)
        assert tracemalloc.get_traced_memory()[1] < len(packed) * 2 + 2**24  # LZMA has a window of 8 MiB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("codec", CODECS)
def test_volumes_of_all_codecs_are_read(tmp_path, codec, zarr_format):
    volume = open_volume(str(volume_of(tmp_path / "v.zarr", codec, zarr_format)))
    for box in (ALL, SOME):
        np.testing.assert_array_equal(volume.read(box)[0], ARRAY[box.slices()])


@pytest.mark.parametrize(
    "codecs",
    [
        {"filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))], "compressors": zarr.codecs.GzipCodec()},
        {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec()]},
        {"compressors": [zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]},
        {"compressors": [zarr.codecs.ZstdCodec(checksum=True), zarr.codecs.Crc32cCodec(), zarr.codecs.Crc32cCodec()]},
        {"compressors": None},
    ],
    ids=["transposed", "packed twice", "with a checksum", "with two", "plain"],
)
@pytest.mark.parametrize("shards", [None, (16, 16, 16)], ids=["chunks", "shards"])
def test_chains_of_codecs_are_read(tmp_path, codecs, shards):
    """Those whose sizes are certain by the native codecs, the others by zarr's own: as one sees from neither."""
    volume = open_volume(make_volume(tmp_path / "v.zarr", ARRAY, shards=shards, **codecs))
    for box in (ALL, SOME):
        np.testing.assert_array_equal(volume.read(box)[0], ARRAY[box.slices()])


@pytest.mark.parametrize("place", ["start", "end"])
def test_shards_in_shards_are_read(tmp_path, place):
    inner = zarr.codecs.ShardingCodec(chunk_shape=(4, 4, 4), codecs=[zarr.codecs.BytesCodec()], index_location=place)
    outer = zarr.codecs.ShardingCodec(chunk_shape=(8, 8, 8), codecs=[inner], index_location=place)
    path = make_volume(tmp_path / "v.zarr", ARRAY, chunks=(16, 16, 16), serializer=outer, compressors=None)
    volume = open_volume(path)
    for box in (ALL, SOME):
        np.testing.assert_array_equal(volume.read(box)[0], ARRAY[box.slices()])


def test_two_chunks_may_lie_in_one_place_of_a_shard(tmp_path):
    array = np.ones(SHAPE, np.uint8)
    shard = sharded(tmp_path)
    volume = zarr.open_array(tmp_path / "v.zarr", mode="r+")
    volume[...] = array

    def once(index, end):
        index[5] = index[2]

    reindexed(shard, once)
    np.testing.assert_array_equal(open_volume(str(tmp_path / "v.zarr")).read(ALL)[0], array)


@pytest.mark.parametrize("box", [ALL, SOME], ids=["whole shards", "parts of shards"])
@pytest.mark.parametrize("name", INDICES)
def test_zarrs_own_codecs_refuse_an_index_that_cannot_be_as_well(tmp_path, name, box):
    """As they read it from other places than a local disk."""
    reindexed(sharded(tmp_path), INDICES[name])
    volume = open_volume(str(tmp_path / "v.zarr"))
    with pytest.raises(Exception, match="shard"):
        np.asarray(volume._with_own_codecs[tuple(map(slice, box.lo, box.hi))])
    with pytest.raises(DataError, match="shard"):
        volume.read(box)


def test_native_codecs_that_give_up_are_an_error_of_ours(tmp_path, monkeypatch):
    """What they raise then is no `Exception`: it went through all that waits for one."""

    class PanicException(BaseException):
        pass

    def giving_up(self, selection):
        if is_native(self):
            raise PanicException("range end index 9 out of range")
        raise ValueError("so do zarr's own")

    volume = open_volume(make_volume(tmp_path / "v.zarr", ARRAY))
    monkeypatch.setattr(zarr.Array, "__getitem__", giving_up)
    with pytest.raises(DataError, match="the native codecs gave up: range end index 9 out of range"):
        volume.read(ALL)


def test_an_index_that_is_written_anew_is_looked_at_again(tmp_path):
    shard = sharded(tmp_path)
    volume = open_volume(str(tmp_path / "v.zarr"))
    volume.read(ALL)
    reindexed(shard, INDICES["a length of 2**62"])
    with pytest.raises(DataError, match="index"):
        volume.read(ALL)


def test_what_is_called_by_a_url_of_a_file_is_looked_at_as_a_file(tmp_path):
    path = Path(make_volume(tmp_path / "v z.zarr", ARRAY))
    url = f"file://{tmp_path}/v%20z.zarr"
    np.testing.assert_array_equal(open_volume(url).read(SOME)[0], ARRAY[SOME.slices()])
    (path / "c/1/0/2").unlink()
    (path / "c/1/0/2").mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        open_volume(url).read(ALL)


def test_an_archive_that_is_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "scans.zip")
    with pytest.raises(InputError, match="no regular file"):
        open_volume(f"zip://scan.zarr::file://{tmp_path}/scans.zip")


@pytest.mark.parametrize("scheme", ["file://", "FILE://", "local://", "file://localhost"])
def test_metadata_that_are_a_pipe_are_not_opened_whatever_they_are_called_by(tmp_path, scheme):
    (tmp_path / "v.zarr").mkdir()
    os.mkfifo(tmp_path / "v.zarr" / "zarr.json")
    with pytest.raises(InputError, match="no regular file"):
        open_volume(f"{scheme}{tmp_path}/v.zarr")
