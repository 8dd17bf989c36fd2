"""Labels put into the image that they are of, in a bucket: as on a disk, and whatever stops on the way, who reads the
image finds it as it was, or with all of them."""

import json
import threading

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.images import SCAN, V2, V3, image
from support.s3 import keys, laboratory, upload
from support.volumes import fake_model
from unet_engine.errors import OutputError, ResumeError, SettingsError
from unet_engine.postprocess import into, into_store, working
from unet_engine.storage import durability, patience
from unet_engine.storage.remote_files import RemoteFile

URL = "s3://lab/plate/a.zarr"
SMALL = SCAN[:, :4, :12, :12]


@pytest.fixture
def lab(monkeypatch, tmp_path):
    with laboratory(monkeypatch, tmp_path) as found:
        yield found


@pytest.fixture
def model(tmp_path):
    (tmp_path / "m").mkdir()
    return fake_model(tmp_path / "m", channels_in=1, channels_out=1, activation="sigmoid")


def run(path, model, name="cells", **options):
    return unet_engine.run(str(path), model=model, into=name, blend="crop", **options)


def stored(client):
    return {key: client.get_object(Bucket="lab", Key=key)["Body"].read() for key in keys(client)}


def restore(client, kept):
    for key in set(stored(client)).difference(kept):
        client.delete_object(Bucket="lab", Key=key)
    for key, data in kept.items():
        client.put_object(Bucket="lab", Key=key, Body=data)


def plain(name, data):
    """A file without what differs from run to run."""
    if name.rpartition("/")[2] not in ("zarr.json", ".zattrs", ".zmetadata"):
        return data
    document = json.loads(data)

    def cut(value):
        return {k: cut(v) for k, v in value.items() if k != "unet_engine"} if isinstance(value, dict) else value

    return cut(document)


def listed(client):
    names = {k.removeprefix("plate/a.zarr/labels/"): json.loads(d) for k, d in stored(client).items() if "a.zarr/labels/" in k
             and k.count("/") == 3 and k.endswith((".zattrs", "zarr.json"))}  # fmt: skip
    said = names.get(".zattrs") or names.get("zarr.json", {}).get("attributes", {}).get("ome", {})
    return said.get("labels", [])


@pytest.mark.parametrize(
    ("version", "consolidated"),
    [pytest.param(*case, marks=pytest.mark.slow) for case in ((V2, True), (V2, False), (V3, True), (V3, False))],
)
def test_the_image_is_what_it_would_be_on_a_disk(lab, tmp_path, model, version, consolidated):
    proxy, client = lab
    path = image(tmp_path / "a.zarr", version, levels=2, scan=SMALL, consolidated=consolidated)
    upload(client, path, "plate/a.zarr")
    for name in ("one", "two"):
        run(path, model, name)
    run(URL, model, "one")
    proxy.fault = lambda number, method, path: ("503", "lost", "cut")[number % 3] if number % 4 == 0 else None
    result = run(URL, model, "two")
    proxy.fault = lambda *_: None
    assert (result.out, result.complete) == (f"{URL}/labels/two", True)
    here = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    there = {key.removeprefix("plate/a.zarr/"): data for key, data in stored(client).items()}
    assert set(there) == set(here)
    for name, data in here.items():
        assert plain(name, there[name]) == plain(name, data), name
    assert run(URL, model, "two", resume=True).already_complete
    said = cli("finish", f"{URL}/labels/two", "--json")
    assert (said.code, said.json.get("complete")) == (0, True), said.err


@pytest.mark.slow
@pytest.mark.parametrize(("version", "earlier"), [(V3, True), (V2, False), (V3, False), (V2, True)])
def test_whatever_moment_all_stops_at_the_image_is_as_it_was_or_has_them(lab, tmp_path, model, monkeypatch, version,
                                                                         earlier):  # fmt: skip
    """From some request on nothing is answered any more, as after a kill."""
    proxy, client = lab
    upload(client, image(tmp_path / "a.zarr", version, levels=2, scan=SMALL, consolidated=True), "plate/a.zarr")
    if earlier:
        run(URL, model, overlap=0.25)
    before = stored(client)
    with monkeypatch.context() as context:
        context.setattr(into, "put_in", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(URL, model, overwrite=earlier)
    begun, place = stored(client), into.place_of(f"{URL}/labels/cells")
    digest = into_store._run_of(place.work)
    monkeypatch.setenv(patience.SECONDS, "0")
    seen, whole = set(), None
    for writes in (1, 5, 12, 20, 28, 36, 1000):
        left = iter(range(writes))
        proxy.fault = lambda _, method, __, left=left: (
            "drop" if method in ("PUT", "DELETE", "POST") and next(left, None) is None else None
        )
        try:
            into.put_in(place, durability.ON_DISK, overwrite=True)
            done = True
        except OutputError:
            done = False
        proxy.fault = lambda *_: None
        now = stored(client)
        in_image = {key: data for key, data in now.items() if not key.startswith("plate/.a.zarr")}
        if "cells" in listed(client):
            seen.add("there")
            assert len(into_store._levels(place)) == 2
        else:
            seen.add("not there")
            inside = "plate/a.zarr/labels/cells/"
            if not earlier:
                said = {
                    k: v for k, v in in_image.items() if not k.startswith(inside) and not k.endswith("labels/.zgroup")
                }
                assert said == before
        if done:
            break
        if not working.settled(place.path, digest):
            into.put_in(place, durability.ON_DISK, overwrite=True)
        assert listed(client) == ["cells"]
        assert [key for key in stored(client) if key.startswith("plate/.")] == []
        found = {key: plain(key, data) for key, data in stored(client).items()}
        assert whole in (None, found)
        whole = found
        restore(client, begun)
    assert seen == {"there", "not there"}
    assert run(URL, model, resume=True).already_complete


@pytest.mark.slow
def test_what_is_there_is_kept_unless_it_is_ours_and_that_is_said(lab, tmp_path, model):
    _, client = lab
    path = image(tmp_path / "a.zarr", levels=1, scan=SMALL)
    zarr.open_group(str(path), mode="r+").create_group("labels/theirs")
    upload(client, path, "plate/a.zarr")
    client.put_object(Bucket="lab", Key="plate/a.zarr/labels/stray/0/c/0/0/0", Body=b"of somebody else")
    before = stored(client)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises((OutputError, ResumeError)):
            run(URL, model, "theirs", **options)
    assert stored(client) == before
    with pytest.raises(OutputError, match=r"holds 1 objects, e\.g\. 0/c/0/0/0"):
        run(URL, model, "stray")
    run(URL, model)
    with pytest.raises(OutputError, match="--overwrite"):
        run(URL, model)
    with pytest.raises(ResumeError, match="another run"):
        run(URL, model, resume=True, overlap=0.25)
    run(URL, model, overwrite=True, overlap=0.25, components=True)
    assert listed(client) == ["cells"]
    assert run(URL, model, resume=True, overlap=0.25, components=True).already_complete


def test_who_lists_at_the_same_moment_loses_nothing(lab):
    def adding(name):
        def changed(found):
            names = json.loads(found or b"[]")
            return None if name in names else json.dumps([*names, name]).encode()

        RemoteFile("s3://lab/list").change(changed)

    threads = [threading.Thread(target=adding, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(json.loads(RemoteFile("s3://lab/list").content())) == list(range(6))


def test_an_image_that_is_a_whole_bucket_or_on_a_web_server_takes_none(lab, tmp_path, model):
    _, client = lab
    path = image(tmp_path / "a.zarr", levels=1, scan=SMALL)
    for file in (p for p in path.rglob("*") if p.is_file()):
        client.put_object(Bucket="lab", Key=str(file.relative_to(path)), Body=file.read_bytes())
    with pytest.raises(SettingsError, match="whole bucket"):
        run("s3://lab", model)
    assert np.all([key.count(".unet-engine") == 0 for key in stored(client)])
