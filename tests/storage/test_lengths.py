"""What a remote store keeps as a chunk and is far too long is not read to its end."""

import http.server
import json
import threading

import fsspec
import numpy as np
import pytest
import zarr

from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.storage.lengths import longest_stored
from unet_engine.volumes.formats import open_volume

SENT = 2**28
"""Bytes that the server sends at most: what is read stays far below."""


class Endless(http.server.BaseHTTPRequestHandler):
    """One chunk, which never ends, whatever range is asked for."""

    sent = 0

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if name == ".zarray":
            body = json.dumps({
                "zarr_format": 2, "shape": [8, 8, 8], "chunks": [8, 8, 8], "dtype": "|u1", "fill_value": 0, "order": "C",
                "compressor": None, "filters": None,
            }).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif name == "0.0.0":
            self.send_response(200)
            self.end_headers()
            while Endless.sent < SENT:
                self.wfile.write(bytes(2**16))
                Endless.sent += 2**16
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.timeout(60)
def test_a_server_that_sends_without_end_is_given_up():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        volume = open_volume(f"http://127.0.0.1:{server.server_address[1]}/scan.zarr")
        with pytest.raises(DataError, match="far more than a chunk of this array takes"):
            volume.read(Box((0, 0, 0), (8, 8, 8)))
        server.shutdown()
    assert Endless.sent < SENT // 4


def test_an_object_that_is_far_too_long_is_not_asked_for_whole():
    url = "memory://lengths/scan.zarr"
    array = zarr.create_array(
        url, shape=(16, 16), chunks=(8, 8), dtype="u1", compressors=None, fill_value=0, storage_options={}
    )
    array[...] = np.arange(256).reshape(16, 16)
    assert np.array_equal(open_volume(url).read(Box((0, 0), (16, 16)))[0], np.arange(256).reshape(16, 16))
    fsspec.filesystem("memory").pipe("/lengths/scan.zarr/c/0/1", bytes(2**20))
    with pytest.raises(DataError, match="far more than a chunk"):
        open_volume(url).read(Box((0, 0), (16, 16)))


def test_no_chunk_that_codecs_make_is_too_long():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 64), np.uint8)
    for options in ({}, {"shards": (64, 64, 64), "chunks": (4, 4, 4)}, {"compressors": zarr.codecs.GzipCodec(level=1)}):
        store = zarr.storage.MemoryStore()
        array = zarr.create_array(store, **{"chunks": (64, 64, 64), "data": noise} | options)
        stored = [len(value) for key, value in store._store_dict.items() if "c/" in key]
        assert stored
        assert max(stored) <= longest_stored(array)
