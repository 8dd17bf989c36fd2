"""Azure, spoken by Azurite on loopback; and Google Cloud Storage, whose emulators do not speak the XML protocol that obstore
uses, by a stand-in of ours."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.google import google_cloud
from support.s3 import faulty, upload
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.storage import objects, patience, stores

pytest.importorskip("obstore", reason="obstore is not installed")

IMAGE = np.random.default_rng(6).integers(1, 255, (12, 16, 18), dtype=np.uint8)
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which everybody knows."""


@pytest.fixture(autouse=True)
def _nobody(monkeypatch, tmp_path):
    """No settings or credentials but those of the test."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(patience.SECONDS, "5")


@pytest.fixture
def google(monkeypatch):
    with google_cloud(monkeypatch):
        yield "gs://lab"


@pytest.fixture
def azure(monkeypatch, tmp_path):
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed (npm install -g azurite)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = subprocess.Popen(
        [program, "--blobPort", str(port), "--location", str(tmp_path / "azurite"), "--silent", "--skipApiVersionCheck"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
    text = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={KEY};BlobEndpoint={endpoint};"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    until = time.monotonic() + 90
    while time.monotonic() < until:
        with socket.socket() as there:
            if there.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    _make_container(endpoint)
    yield "az://lab"
    running.terminate()
    running.wait(timeout=20)


def _make_container(endpoint):
    """obstore makes none: by one request, signed as the protocol has it (Shared Key)."""
    import base64
    import hashlib
    import hmac
    from email.utils import formatdate

    date = formatdate(usegmt=True)
    said = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n/devstoreaccount1/devstoreaccount1/lab\nrestype:container"
    text = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + said
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date,
        "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey devstoreaccount1:{signature}",
    }
    request = urllib.request.Request(f"{endpoint}/lab?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()


@pytest.mark.parametrize("cloud", share(["azure", "google"]))
def test_a_run_from_cloud_to_cloud_gives_the_bytes_of_the_disk(request, tmp_path, cloud):
    root = request.getfixturevalue(cloud)
    local = make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    source = zarr.open_array(local, mode="r")
    place = stores.store_of(f"{root}/scan.zarr").location(f"{root}/scan.zarr")
    zarr.create_array(place, data=source[...], chunks=source.chunks)
    model = fake_model(tmp_path)
    here = cli("run", "--in", local, "--model", model, "--out", tmp_path / "o.zarr", "--output", "logits")
    assert here.code == 0, here.err
    arguments = ("run", "--in", f"{root}/scan.zarr", "--model", model, "--output", "logits", "--json")
    there = cli(*arguments)
    assert there.code == 0, there.err
    assert there.json["out"] == f"{root}/scan-id.zarr"
    result = zarr.open_array(stores.store_of(there.json["out"]).location(there.json["out"]), path="0", mode="r")
    assert result[...].tobytes() == result_of(str(tmp_path / "o.zarr")).tobytes()
    again = cli(*arguments, "--resume")
    assert again.code == 0, again.err
    assert again.json["windows_inferred"] == 0
    replaced = cli(*arguments, "--overwrite")
    assert replaced.code == 0, replaced.err


def _image(tmp_path):
    return Path(make_volume(str(tmp_path / "a.zarr"), IMAGE, axes="zyx", ome="0.5", chunks=(5, 8, 6)))


def _without_account(name, data):
    """What differs from run to run is in the header of each group of labels."""
    document = json.loads(data) if name.endswith("zarr.json") else None
    if document:
        document.get("attributes", {}).pop("unet_engine", None)
    return document or data


@pytest.mark.slow
def test_labels_are_put_into_an_image_at_google_whoever_lists_others_meanwhile(monkeypatch, tmp_path):
    """The list is replaced on the condition that it is of the generation that was read."""
    local, model = _image(tmp_path), fake_model(tmp_path)
    with google_cloud(monkeypatch) as google:
        for file in filter(Path.is_file, local.rglob("*")):
            google.put(f"lab/plate/a.zarr/{file.relative_to(local)}", file.read_bytes())
        put, meanwhile = google.put, []

        def others(name, data, match=None):
            if name.endswith("/labels/zarr.json") and match not in (None, "0") and not meanwhile:
                document = json.loads(google.objects[name][1])
                document["attributes"]["ome"]["labels"].append("theirs")
                meanwhile.append(put(name, json.dumps(document).encode()))
            return put(name, data, match)

        google.put = others
        for name in ("one", "two"):
            for image in ("gs://lab/plate/a.zarr", local):
                said = cli("run", "--in", image, "--model", model, "--into", name)
                assert said.code == 0, said.err
        there = {key.removeprefix("lab/plate/a.zarr/"): data for key, (_, data) in google.objects.items()}
    assert meanwhile, "two was listed on a condition, which did not hold"
    assert json.loads(there.pop("labels/zarr.json"))["attributes"]["ome"]["labels"] == ["one", "theirs", "two"]
    here = {str(file.relative_to(local)): file.read_bytes() for file in local.rglob("*") if file.is_file()}
    del here["labels/zarr.json"]
    assert set(here) == set(there)
    for name, data in here.items():
        assert _without_account(name, there[name]) == _without_account(name, data), name


@pytest.mark.slow
def test_workers_of_a_cluster_put_the_same_labels_into_an_image_in_a_bucket(monkeypatch, tmp_path):
    local, model, found = _image(tmp_path), fake_model(tmp_path), {}
    with faulty(monkeypatch) as (_, client):
        for name, more in (("alone", ()), ("cluster", ("--workers", "2"))):
            upload(client, local, f"{name}/a.zarr")
            said = cli("run", "--in", f"s3://lab/{name}/a.zarr", "--model", model, "--into", "one", *more)
            assert said.code == 0, said.err
            keys = [one["Key"] for one in client.list_objects_v2(Bucket="lab", Prefix=f"{name}/")["Contents"]]
            found[name] = {
                key.removeprefix(f"{name}/"): client.get_object(Bucket="lab", Key=key)["Body"].read() for key in keys
            }
    assert {key: _without_account(key, data) for key, data in found["alone"].items()} == {
        key: _without_account(key, data) for key, data in found["cluster"].items()
    }


@pytest.mark.parametrize("cloud", ["google", "azure"])
def test_of_two_that_make_one_group_the_first_does(request, cloud):
    path = request.getfixturevalue(cloud) + "/o.zarr"
    for maker in ("first", "second"):
        stores.store_of(path).create_group(path, {"maker": maker})
    assert dict(stores.open_group(path, "r").attrs) == {"maker": "first"}


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://lab/a/b.zarr", objects.Place("s3", "lab", "a/b.zarr")),
        ("S3://lab//a//b.zarr/", objects.Place("s3", "lab", "a/b.zarr")),
        ("gcs://lab", objects.Place("gs", "lab", "")),
        ("abfss://lab@mine.dfs.core.windows.net/a", objects.Place("az", "lab", "a", "mine")),
        ("https://host/a", None), ("zip://a::s3://lab/b.zip", None), ("s3://key:secret@lab/a", None), ("a/b", None),
    ],
)  # fmt: skip
def test_what_a_url_names(url, place):
    assert objects.place_of(url) == place


@pytest.mark.parametrize(
    ("said", "config"),
    [
        ({}, {"skip_signature": True, "region": "us-east-1"}),
        ({"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "eu-west-1"}, {}),
        ({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"},
         {"endpoint": "http://b", "region": "us-east-1", "skip_signature": True}),
    ],
)  # fmt: skip
def test_who_asks_s3_is_said_by_the_environment(monkeypatch, said, config):
    """And is nobody where that says nothing."""
    monkeypatch.setattr(objects, "_profile", lambda: (None, None))
    monkeypatch.setattr(objects, "_region", lambda bucket: "us-east-1")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert objects._s3(objects.Place("s3", "lab", ""), {}) == (config, None)


def test_profiles_are_those_of_amazons_own_tools(monkeypatch, tmp_path):
    pytest.importorskip("botocore", reason="botocore is not installed")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = abc\naws_secret_access_key = verysecret123\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    config, provider = objects._s3(objects.Place("s3", "lab", ""), {})
    assert config == {}
    assert (provider()["access_key_id"], provider()["secret_access_key"]) == ("abc", "verysecret123")
    from unet_engine.redaction import redacted

    assert "verysecret123" not in redacted("no such key verysecret123")


def test_where_a_bucket_lies_is_asked_of_s3(monkeypatch):
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.send_response(301)
            self.send_header("x-amz-bucket-region", "eu-central-1")
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(objects, "S3", f"http://127.0.0.1:{server.server_port}")
    assert objects._region("lab") == "eu-central-1"
    server.shutdown()
    server.server_close()


def test_what_fsspec_was_told_is_taken_over(monkeypatch):
    import fsspec.config

    monkeypatch.setitem(
        fsspec.config.conf, "s3", {"endpoint_url": "http://h", "key": "k", "secret": "s", "anon": False}
    )
    assert objects._from_fsspec("s3") == {
        "endpoint": "http://h", "access_key_id": "k", "secret_access_key": "s", "skip_signature": False,
    }  # fmt: skip
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"s3": 1}})
    assert objects._from_fsspec("s3") is None
    assert not objects.usable("s3://lab/scan.zarr")


def test_a_connection_string_of_azure():
    text = "DefaultEndpointsProtocol=https;AccountName=mine;AccountKey=a2V5cw==;EndpointSuffix=core.windows.net"
    assert objects._connection(text) == {"account_name": "mine", "account_key": "a2V5cw=="}
