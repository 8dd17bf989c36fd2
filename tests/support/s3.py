"""A real server of the S3 protocol on loopback, and a proxy of the tests in front of it."""

import logging
import os
from contextlib import contextmanager
from functools import cache

import pytest

from support.fault_proxy import FaultProxy
from unet_engine.storage import patience


@cache
def _running():
    """Of moto, one for all tests of a process (it takes half a second to stop): its host and port, and a client."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    from moto import backends

    services = list(backends.list_of_moto_modules())  # for each request it looks through its own folder, twice
    backends.list_of_moto_modules = lambda: services
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="test", aws_secret_access_key="test",
        region_name="us-east-1",
    )  # fmt: skip
    return host, port, client


@contextmanager
def server():
    """Of moto, with an empty bucket ``lab``."""
    host, port, client = _running()
    client.create_bucket(Bucket="lab")
    try:
        yield host, port, client
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="lab"):
            if found := [{"Key": one["Key"]} for one in page.get("Contents", ())]:
                client.delete_objects(Bucket="lab", Delete={"Objects": found})
        client.delete_bucket(Bucket="lab")


SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@contextmanager
def faulty(monkeypatch, **options):
    """The same behind a `FaultProxy`, which the environment of this process and its children names."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    with server() as (host, port, client):
        proxy = FaultProxy(host, port, **options)
        for name in [name for name in os.environ if name.startswith(("FSSPEC_", "AWS_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        try:
            yield proxy, client
        finally:
            proxy.close()


@contextmanager
def laboratory(monkeypatch, tmp_path):
    """The same for an engine that waits little before it asks again, with a cache of its own: (proxy, client)."""
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv(patience.SECONDS, "5")
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    with faulty(monkeypatch) as found:
        yield found


def keys(client):
    """Of all objects in the bucket."""
    return [one["Key"] for one in client.list_objects_v2(Bucket="lab").get("Contents", ())]


def upload(client, folder, prefix):
    """Put all files below `folder` under `prefix` of the bucket."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        client.put_object(Bucket="lab", Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes())
