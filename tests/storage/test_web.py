"""Volumes behind web servers of all manners, and zipped ones, on a disk and behind a URL."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.fault_proxy import FaultProxy
from support.s3 import faulty
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from support.web_server import WebServer
from unet_engine import api
from unet_engine.commands.report import plan_facts, plan_lines
from unet_engine.errors import InputError, OutputError
from unet_engine.execution import local
from unet_engine.execution.choose import planned
from unet_engine.plan.dealing import dealing
from unet_engine.prepare.keeping import fetch_factor, fetched_at_most
from unet_engine.settings.settings import Settings
from unet_engine.storage import patience, stores
from unet_engine.storage.kept import CACHE
from unet_engine.storage.remote import located
from unet_engine.volumes.formats import open_volume

pytestmark = pytest.mark.long

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

IMAGE = np.random.default_rng(5).integers(1, 255, (12, 16, 18), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv(patience.SECONDS, "2")


def whole(path):
    volume = open_volume(path)
    from unet_engine.plan.box import Box

    return volume.read(Box.of_shape(volume.shape))[0]


def sharded(folder):
    """An OME-Zarr with one level in shards, of which ranges are asked for."""
    group = zarr.create_group(str(folder / "scan.zarr"), zarr_format=3)
    group.create_array("0", data=IMAGE, chunks=(4, 4, 6), shards=(8, 8, 18), dimension_names=["z", "y", "x"])
    scale = [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    image = {"version": "0.5", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


@pytest.mark.parametrize("sharding", ["chunks", "shards"])
@pytest.mark.parametrize(
    "manners",
    [{}, {"ranges": False}, {"lengths": False}, {"ranges": False, "lengths": False}, {"heads": False},
     {"query": "X-Amz-Signature=abcdef123"}],
    ids=lambda manners: "-".join(f"{k}={v}" for k, v in manners.items()) or "all",
)  # fmt: skip
def test_servers_of_all_manners_give_the_same_voxels(tmp_path, manners, sharding):
    if sharding == "shards":
        sharded(tmp_path)
    else:
        make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    with WebServer(tmp_path, **manners) as server:
        url = f"{server.url}/scan.zarr" + (f"?{manners['query']}" if "query" in manners else "")
        np.testing.assert_array_equal(whole(url), IMAGE)
        assert open_volume(url).spacing == ((2.0, 1.0, 1.0) if sharding == "shards" else None)
        part = open_volume(url)
        from unet_engine.plan.box import Box

        box = Box((3, 5, 7), (9, 13, 17))
        np.testing.assert_array_equal(part.read(box)[0], IMAGE[box.slices()])


def test_a_run_reads_from_the_web_and_tells_that_nothing_is_written_there(tmp_path):
    make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    model = fake_model(tmp_path)
    with WebServer(tmp_path) as server:
        url = f"{server.url}/scan.zarr"
        said = cli("run", "--in", url, "--model", model, "--out", tmp_path / "web.zarr", "--strict", "--json")
        assert said.code == 0, said.err
        here = cli("run", "--in", tmp_path / "scan.zarr", "--model", model, "--out", tmp_path / "disk.zarr")
        assert here.code == 0, here.err
        assert result_of(str(tmp_path / "web.zarr")).tobytes() == result_of(str(tmp_path / "disk.zarr")).tobytes()
        refused = cli("run", "--in", url, "--model", model)
        assert refused.code == OutputError.exit_code, refused.err
        assert "a web server can be read, not written to" in refused.error
        assert "--out" in refused.error


def test_a_chunk_that_is_absent_is_the_fill_value_and_one_that_fails_is_not(tmp_path):
    """A file system of the web took any fault for a file that is not there."""
    make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    next(p for p in (tmp_path / "scan.zarr").rglob("*") if p.is_file() and p.name not in ("zarr.json",)).unlink()
    expected = zarr.open_array(str(tmp_path / "scan.zarr"), mode="r")[...]
    assert (expected == 0).any()
    with WebServer(tmp_path) as server:
        proxy = FaultProxy(*server.address)
        url = f"{proxy.url}/scan.zarr"
        np.testing.assert_array_equal(whole(url), expected)
        volume = open_volume(url)
        proxy.fault = lambda number, method, path: "500" if "/c/" in path else None
        from unet_engine.plan.box import Box

        with pytest.raises(InputError, match=r"/c/.*: 500 Internal Server Error, asked \d+ times"):
            volume.has_data(Box.of_shape(IMAGE.shape))
        with pytest.raises(InputError, match="500 Internal Server Error"):
            volume.read(Box.of_shape(IMAGE.shape))
        proxy.close()


def test_metadata_above_a_level_that_fail_do_not_lose_the_spacing(tmp_path):
    sharded(tmp_path)
    with WebServer(tmp_path) as server:
        proxy = FaultProxy(*server.address)
        proxy.fault = lambda number, method, path: "503" if path.endswith("scan.zarr/zarr.json") else None
        with pytest.raises(InputError, match=r"scan.zarr/zarr.json: 503 Service Unavailable"):
            open_volume(f"{proxy.url}/scan.zarr/0")
        proxy.fault = lambda *_: None
        assert open_volume(f"{proxy.url}/scan.zarr/0").spacing == (2.0, 1.0, 1.0)
        proxy.close()


@pytest.mark.parametrize("fault", ["cut", "short", "long", "drop", "429"])
def test_bodies_of_the_web_that_break_are_asked_for_again(tmp_path, monkeypatch, fault):
    make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    with WebServer(tmp_path) as server:
        proxy = FaultProxy(*server.address)
        proxy.fault = lambda number, *_: fault if number % 5 == 0 else None
        np.testing.assert_array_equal(whole(f"{proxy.url}/scan.zarr"), IMAGE)
        assert len(proxy.faults) > 3
        proxy.close()


@pytest.mark.parametrize("what", ["zarr.json", "c/0/0/0"])
def test_a_body_that_never_ends_is_one_line_and_ends(tmp_path, what):
    make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    with WebServer(tmp_path) as server:
        proxy = FaultProxy(*server.address)
        proxy.fault = lambda number, method, path: "endless" if path.endswith(f"scan.zarr/{what}") else None
        model = fake_model(tmp_path)
        said = cli("run", "--in", f"{proxy.url}/scan.zarr", "--model", model, "--out", tmp_path / "o.zarr")
        assert said.code in (3, 4), said.err
        said_of_it = "has more than" if what == "zarr.json" else "bytes 0 to 249 were asked for"
        assert said_of_it in said.error
        assert what in said.error
        proxy.close()


@pytest.mark.parametrize(
    ("root", "key", "url"),
    [
        ("https://h/a.zarr", "0/zarr.json", "https://h/a.zarr/0/zarr.json"),
        ("https://h/a.zarr/?sig=x%2Fy", "zarr.json", "https://h/a.zarr/zarr.json?sig=x%2Fy"),
        ("https://h/a.zarr?x", "", "https://h/a.zarr?x"),
    ],
)
def test_what_is_behind_the_question_mark_stays_there(root, key, url):
    assert located(root, key) == url


# --- archives ---


def zipped(folder, name, inside, compression):
    archive = folder / name
    with zipfile.ZipFile(archive, "w", compression) as opened:
        root = folder / "scan.zarr"
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            opened.write(file, inside + str(file.relative_to(root)))
    return archive


@pytest.mark.parametrize("where", ["disk", "web", "bucket"])
@pytest.mark.parametrize(
    ("name", "inside", "compression"),
    share(
        [
            ("scan.ozx", "", zipfile.ZIP_STORED),
            ("scan.zip", "scan.zarr/", zipfile.ZIP_DEFLATED),
            ("scan.ozx", "", zipfile.ZIP_DEFLATED),
            ("scan.zip", "scan.zarr/", zipfile.ZIP_STORED),
        ],
        quick=2,
    ),
)
def test_zipped_volumes_are_read_where_they_are(tmp_path, monkeypatch, where, compression, name, inside):
    sharded(tmp_path)
    archive = zipped(tmp_path, name, inside, compression)
    if where == "disk":
        return check(str(archive))
    if where == "web":
        with WebServer(tmp_path) as server:
            return check(f"{server.url}/{name}")
    with faulty(monkeypatch) as (proxy, client):
        client.put_object(Bucket="lab", Key=f"x/{name}", Body=archive.read_bytes())
        proxy.fault = lambda number, *_: "503" if number % 4 == 0 else None
        return check(f"s3://lab/x/{name}")


def check(path):
    for one in (path, f"{path}/0"):
        np.testing.assert_array_equal(whole(one), IMAGE)
        assert open_volume(one).spacing == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("around", ["", "scan.zarr/"])
def test_a_zip_of_zarr_2_begins_where_its_metadata_lie(tmp_path, around):
    """Which begin with a dot, as what file managers add does; a group with one level, an array with one chunk."""
    group = zarr.create_group(tmp_path / "scan.zarr", zarr_format=2)
    voxels = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    group.create_array("0", data=voxels, chunks=(4, 4, 4), chunk_key_encoding={"name": "v2", "separator": "/"})
    scale = {"type": "scale", "scale": [3, 2, 1]}
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    levels = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    archive = zipped(tmp_path, "scan.zip", around, zipfile.ZIP_STORED)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("__MACOSX/._0", b"")
        opened.writestr(".DS_Store", b"")
    assert open_volume(str(archive)).spacing == (3.0, 2.0, 1.0)
    (tmp_path / "scan.zarr").rename(tmp_path / "image.zarr")
    (tmp_path / "image.zarr/0").rename(tmp_path / "scan.zarr")
    np.testing.assert_array_equal(whole(str(zipped(tmp_path, "level.zip", around, zipfile.ZIP_STORED))), voxels)


def test_a_zip_that_is_read_in_parts_over_the_web_is_not_fetched_whole(tmp_path):
    big = np.random.default_rng(0).integers(0, 2**16, (32, 64, 64), dtype=np.uint16)
    make_volume(str(tmp_path / "scan.zarr"), big, chunks=(8, 16, 16))
    archive = zipped(tmp_path, "scan.zip", "", zipfile.ZIP_STORED)
    from unet_engine.plan.box import Box

    with WebServer(tmp_path) as server:
        volume = open_volume(f"{server.url}/scan.zip")
        box = Box((1, 1, 1), (7, 9, 9))
        np.testing.assert_array_equal(volume.read(box)[0], big[box.slices()])
        assert all(span for method, path, span in server.seen if method == "GET" and "scan.zip" in path)
        asked = sum(int(s.split("-")[1]) + 1 - int(s.split("=")[1].split("-")[0]) for _, _, s in server.seen if s)
        assert asked < archive.stat().st_size


def test_a_zip_over_the_web_that_is_replaced_is_told_by_what_the_server_says_of_it(tmp_path):
    from unet_engine.plan.box import Box

    sharded(tmp_path)
    zipped(tmp_path, "scan.zip", "", zipfile.ZIP_STORED)
    with WebServer(tmp_path) as server:
        volume = open_volume(f"{server.url}/scan.zip")
        before = volume.token(Box((0, 0, 0), (1, 1, 1)))
        assert before is not None
        assert volume.token(Box((0, 0, 0), (1, 1, 1))) == before
        zipped(tmp_path, "scan.zip", "", zipfile.ZIP_DEFLATED)
        assert volume.token(Box((0, 0, 0), (1, 1, 1))) != before


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
@pytest.mark.parametrize("where", ["disk", "web"])
def test_a_damaged_zip_is_one_line(tmp_path, damage, where):
    make_volume(str(tmp_path / "scan.zarr"), IMAGE, chunks=(5, 8, 6))
    archive = zipped(tmp_path, "scan.zip", "", zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    at = data.index(b"c/1/1/1") + 40
    data[at] ^= 255
    archive.write_bytes({"cut": data[: len(data) // 2], "flipped": bytes(data), "text": b"no zip"}[damage])
    with WebServer(tmp_path) as server:
        path = str(archive) if where == "disk" else f"{server.url}/scan.zip"
        said = cli("run", "--in", path, "--model", fake_model(tmp_path), "--out", tmp_path / "o.zarr")
    assert said.code in (3, 4), said.err
    assert "scan.zip" in said.error
    assert "Traceback" not in said.err


def test_an_archive_is_no_place_to_write_to(tmp_path):
    make_volume(str(tmp_path / "scan.zarr"), IMAGE)
    with WebServer(tmp_path) as server:
        said = cli(
            "run", "--in", tmp_path / "scan.zarr", "--model", fake_model(tmp_path), "--out", f"{server.url}/o.zip"
        )
    assert said.code in (2, 8), said.err
    assert json.dumps(said.error).count("unet-engine") <= 2
    assert stores.store_of("s3://lab/o.zip/0").recognises("s3://lab/o.zip/0")


LARGER = np.random.default_rng(0).integers(1, 255, (64, 64, 96), np.uint8)


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_the_plan_says_what_workers_of_a_cluster_fetch_each_for_itself(tmp_path, workers):
    """As blocks are dealt: every chunk by each whose blocks read it. At most, whoever does them: by each block."""
    make_volume(str(tmp_path / "files/scan.zarr"), LARGER, chunks=(16, 16, 16), compressors=None)
    with WebServer(tmp_path / "files") as server:
        model = fake_model(tmp_path, window=(16, 16, 16))
        # memory: not what this machine has free beside what other tests left in this process
        asked = {"workers": workers, "memory": "64GiB"} if workers else {}
        prepared = planned(Settings.of(input=f"{server.url}/scan.zarr", model=model, overlap=0.5, **asked))
        facts, samples = plan_facts(prepared), sum(m == "GET" and "/c/" in path for m, path, _ in server.seen)
    plan, shares = prepared.job.plan, dealing(prepared.job.plan, workers)
    blocks = [task for column in plan.columns() for task in plan.tasks(column, lambda _: True)]
    reads = [
        (shares.share(next(plan.columns()), task.block.index) if shares else 0, cell.lo)
        for task in blocks
        for cell in task.read.cells((16, 16, 16))
    ]
    chunks = len({tuple(n // 16 for n in lo) for _, lo in reads})
    once = len({(share, tuple(n // 16 for n in lo)) for share, lo in reads}) / chunks
    most = (len(reads) + samples) / chunks
    row = dict(plan_lines(prepared))["fetch"]
    assert prepared.job.dealt == (workers if shares else 0)
    if workers == 2:
        assert (facts["fetch_factor"], facts["fetched_at_most"]) == pytest.approx(
            (once + samples / chunks, most), abs=1e-3
        )
        assert "where each worker does its share" in row
    elif workers:
        assert facts["fetch_factor"] == facts["fetched_at_most"] == pytest.approx(most, abs=1e-3)
        assert "at most, as each worker fetches what it reads" in row
    else:
        assert facts["fetch_factor"] == once == 1
        assert "fetched_at_most" not in facts
        assert "at most" not in row
    assert facts["fetch_processes"] == (workers or 1)


def test_devices_of_one_process_share_what_is_kept_and_the_plan_counts_it_so(monkeypatch, tmp_path):
    """Their columns go on at the same time. How often is a matter of who is first; no more than all blocks read."""
    looked = local.survey
    monkeypatch.setattr(local, "survey", lambda *args: replace(looked(*args), devices=("cpu", "cpu")))
    monkeypatch.setattr("unet_engine.storage.kept.BEFORE", 0)
    monkeypatch.setenv(CACHE, "0")
    voxels = np.random.default_rng(0).integers(1, 255, (128, 128), np.uint8)
    make_volume(str(tmp_path / "files/scan.zarr"), voxels, axes="yx", chunks=(16, 16), compressors=None)
    with WebServer(tmp_path / "files") as server:
        model = fake_model(tmp_path, axes="yx", window=(16, 16))
        out = str(tmp_path / "o.zarr")
        team = local.LocalTeam(
            Settings.of(input=f"{server.url}/scan.zarr", model=model, overlap=0.5, out=out, threads=1)
        )
        prepared = team.prepare()
        server.seen.clear()
        api.run_volume(team, prepared)
        fetched = [path for method, path, _ in server.seen if method == "GET" and "/c/" in path]
    assert prepared.job.plan.column_count == 2
    job, scan, said = prepared.job, prepared.survey.scan, plan_facts(prepared)["fetch_factor"]
    most = fetched_at_most(scan, job.plan, 0, 2, 0)
    assert len(fetched) / len(set(fetched)) <= most
    assert fetch_factor(scan, job.plan, job.kept) < said < most
    assert said == pytest.approx(fetch_factor(scan, job.plan, job.kept // 2), abs=0.001)
    assert "or so, as devices share" in dict(plan_lines(prepared))["fetch"]
