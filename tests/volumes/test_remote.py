"""Input and output behind the S3 protocol, spoken by a real server on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from support.command_line import begin, cli, command
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from support.web_server import WebServer
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import OutputError
from unet_engine.output.journal import RemoteJournal
from unet_engine.output.layout import Layout
from unet_engine.output.output import Output
from unet_engine.pipeline.glances import KEPT, Glances
from unet_engine.plan.box import Box
from unet_engine.storage import stores, tokens
from unet_engine.volumes.witness import Witness

pytest.importorskip("s3fs", reason="s3fs is not installed")
moto = pytest.importorskip("moto.server", reason="moto is not installed")

IMAGE = np.random.default_rng(4).integers(0, 255, (20, 24, 30), dtype=np.uint8)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A server with an empty bucket ``lab``; the environment tells every process where it is."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    for name, value in options.items():
        monkeypatch.setitem(os.environ, f"FSSPEC_S3_{name.upper()}", value)
    monkeypatch.setitem(os.environ, "AWS_DEFAULT_REGION", "us-east-1")
    import fsspec.config
    import s3fs

    monkeypatch.setitem(fsspec.config.conf, "s3", options)  # read from the environment once, when it is imported
    files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    files.mkdir("lab")
    yield options
    files.rm("lab", recursive=True)  # what the server keeps outlives it in this process
    server.stop()


def test_from_bucket_to_bucket_gives_the_bytes_of_the_disk(s3: dict[str, Any], tmp_path: Path) -> None:
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    local = make_volume(str(tmp_path / "scan.zarr"), IMAGE)
    model = fake_model(tmp_path)
    here = command("run", "--in", local, "--model", model, "--out", tmp_path / "o.zarr", "--output", "logits", "--json")
    there = command("run", "--in", "s3://lab/scan.zarr", "--model", model, "--output", "logits", "--json")
    assert there.code == 0, there.err
    assert there.json["out"] == "s3://lab/scan-id.zarr"
    assert there.json["windows_inferred"] == there.json["windows_planned"]
    stored = np.asarray(zarr.open_array("s3://lab/scan-id.zarr/0", mode="r", storage_options=s3)[...])
    assert stored.tobytes() == result_of(here.json["out"]).tobytes()


def test_a_remote_run_that_failed_can_be_resumed(s3: dict[str, Any], tmp_path: Path) -> None:
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    model = Path(fake_model(tmp_path, fail_at=120))
    arguments = (
        "run",
        "--in",
        "s3://lab/scan.zarr",
        "--model",
        model,
        "--out",
        "s3://lab/o.zarr",
        "--output",
        "logits",
    )
    assert cli(*arguments, "--json").code == 6
    assert cli(*arguments).code == 8, "it exists"
    model.write_text(model.read_text().replace("fail_at = 120", "fail_at = 0"))
    said = cli(*arguments, "--resume")
    assert said.code == 9, "another model file is another run"
    said = cli(*arguments, "--overwrite", "--json")
    assert said.code == 0, said.err
    again = cli(*arguments, "--resume", "--json")
    assert again.json["windows_inferred"] == 0


@pytest.mark.slow
def test_parts_on_a_bucket_give_the_bytes_of_one_run(s3: dict[str, Any], tmp_path: Path) -> None:
    """Begun at once, where nothing locks: both may make the output, and one of them, or the last to end, completes
    it."""
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    model = fake_model(tmp_path, latency_ms=2)
    arguments = ("run", "--in", "s3://lab/scan.zarr", "--model", model, "--output", "logits", "--json")
    processes = [begin(*arguments, "--out", "s3://lab/parts.zarr", "--part", f"{i}/2") for i in (1, 2)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err[-900:] for _, err in said]
    assert any(json.loads(out.splitlines()[-1])["complete"] for out, _ in said)
    assert cli(*arguments, "--out", "s3://lab/whole.zarr").code == 0
    import s3fs

    files = s3fs.S3FileSystem(**s3, skip_instance_cache=True)
    stored = {name: files.find(f"lab/{name}.zarr/0") for name in ("parts", "whole")}
    assert [key.split("/", 2)[2] for key in stored["parts"]] == [key.split("/", 2)[2] for key in stored["whole"]]
    for one, other in zip(stored["parts"], stored["whole"], strict=True):
        assert files.cat(one) == files.cat(other)
    made = zarr.open_group("s3://lab/parts.zarr", mode="r", storage_options=s3).attrs["unet_engine"]
    assert made["complete"]
    assert [part["part"] for part in made["summary"]["parts"]] == ["1/2", "2/2"]
    again = cli("finish", "s3://lab/parts.zarr", "--json")
    assert again.code == 0, again.err
    assert again.json["blocks"] == made["summary"]["blocks"]


def test_what_others_write_into_a_folder_that_was_listed_is_read(s3: dict[str, Any]) -> None:
    """File systems keep lists of folders: another part's marker was listed as missing to whoever had looked before."""
    stores.store_of("s3://lab/seen.zarr").create_group("s3://lab/seen.zarr", {})
    journal = RemoteJournal(stores.open_group("s3://lab/seen.zarr", "r+").store_path / "0", "digest")
    journal.put_all({"0.0.0": b"first"})
    assert list(journal.names()) == ["0.0.0"]
    import s3fs

    other = s3fs.S3FileSystem(**s3, skip_instance_cache=True, use_listings_cache=False)
    folder = other.find("lab/seen.zarr/0")[0].rpartition("/")[0]
    other.pipe_file(f"{folder}/0.0.1", b"second")
    assert journal.contents(sorted(journal.names())) == [b"first", b"second"]


@pytest.mark.slow
def test_finish_of_remote_parts_tells_what_is_missing(s3: dict[str, Any], tmp_path: Path) -> None:
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    arguments = ("run", "--in", "s3://lab/scan.zarr", "--model", fake_model(tmp_path), "--out", "s3://lab/o.zarr")
    assert cli(*arguments, "--part", "2/3").code == 0
    said = cli("finish", "s3://lab/o.zarr")
    assert said.code == OutputError.exit_code
    assert "s3://lab/o.zarr lacks " in said.error
    assert "not finished: 1/3, 3/3" in said.error
    assert "does not exist" in cli("finish", "s3://lab/nowhere.zarr").error


def test_chunks_are_put_and_neither_read_nor_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those that stick out of the array, or hold nothing."""
    from zarr.storage import FsspecStore

    looks = Layout("zyx", "zyx", (6, 6, 6), (4, 4, 4), 2, "float32", (1.0,) * 3, (0.0,) * 3, None, ("a", "b"))
    output = Output.create("memory://requests/o.zarr", looks, "d", {"identity": {}, "blocks": [[[0, 1]]] * 3})
    values = np.random.default_rng(0).random((2, 6, 6, 6), dtype=np.float32)
    values[1, :4, :4, :4] = 0
    asked = []
    for name in ("get", "delete", "set"):
        real = getattr(FsspecStore, name)

        async def noted(self: Any, key: str, *rest: Any, _name: str = name, _real: Any = real, **more: Any) -> Any:
            asked.append((_name, key))
            return await _real(self, key, *rest, **more)

        monkeypatch.setattr(FsspecStore, name, noted)
    for _ in range(2):
        asked.clear()
        output.write(Box.of_shape((6, 6, 6)), values)
        assert {name for name, _ in asked} == {"set"}
        assert len({key for _, key in asked}) == len(asked) == 15
    np.testing.assert_array_equal(zarr.open_array("memory://requests/o.zarr/0", mode="r")[...], values)


@pytest.mark.parametrize("empty", [None, [0.0]], ids=["every window", "empty windows skipped"])
def test_an_input_that_goes_away_is_told(
    s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: list[float] | None
) -> None:
    import s3fs

    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    files, windows, start = s3fs.S3FileSystem(**s3, skip_instance_cache=True), [], FakeBackend.start

    def starting(self: FakeBackend, slot: int) -> None:
        windows.append(slot)
        if len(windows) == 40:
            files.rm("lab/scan.zarr", recursive=True)
        start(self, slot)

    monkeypatch.setattr(FakeBackend, "start", starting)
    model = fake_model(tmp_path, **({"empty": empty} if empty else {}))
    said = cli("run", "--in", "s3://lab/scan.zarr", "--model", model, "--out", tmp_path / "o.zarr")
    assert said.code == 3, said.err
    assert "s3://lab/scan.zarr is gone while it was read" in said.error


def test_metadata_are_not_asked_for_again_where_every_chunk_is_there(
    s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But once, at the end."""
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    looks, confirm = [], Witness.confirm
    monkeypatch.setattr(Witness, "confirm", lambda self: (looks.append(self.path), confirm(self)))
    said = cli("run", "--in", "s3://lab/scan.zarr", "--model", fake_model(tmp_path), "--out", tmp_path / "o.zarr")
    assert said.code == 0, said.err
    assert len(looks) == 1


def rewriting(monkeypatch: pytest.MonkeyPatch, s3: dict[str, Any], at: int, array: Any) -> None:
    """Another volume of the same shape lies there once the network was given its window number `at`."""
    windows, start = [], FakeBackend.start

    def starting(self: FakeBackend, slot: int) -> None:
        windows.append(slot)
        if len(windows) == at:
            make_volume("s3://lab/scan.zarr", array, storage_options=s3, overwrite=True)
        start(self, slot)

    monkeypatch.setattr(FakeBackend, "start", starting)


@pytest.mark.parametrize("how", ["told", "strict"])
@pytest.mark.parametrize("what", share(["input", "mask"]))
def test_a_remote_volume_that_is_rewritten_while_it_is_read_is_told(
    s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, what: str
) -> None:
    """Stores keep no times that could be compared with ours, but tags: some are asked for before and after."""
    make_volume("s3://lab/scan.zarr", IMAGE + (IMAGE == 0), storage_options=s3)
    local = make_volume(str(tmp_path / "other.zarr"), IMAGE)
    rewriting(monkeypatch, s3, 100, IMAGE // 2 + 1)
    places = {"input": "s3://lab/scan.zarr"} if what == "input" else {"input": local, "mask": "s3://lab/scan.zarr"}
    flags = ["--in", places["input"], *(["--mask", places["mask"]] if "mask" in places else [])]
    model = fake_model(tmp_path)
    said = cli(
        "run",
        *flags,
        "--model",
        model,
        "--out",
        tmp_path / "o.zarr",
        "--threads",
        "1",
        *["--strict"] * (how == "strict"),
    )
    assert said.code == (3 if how == "strict" else 0), said.err
    assert "of s3://lab/scan.zarr" in said.err
    assert "--overwrite" in said.err


def test_a_remote_volume_that_is_left_alone_is_asked_little_and_nothing_is_said(
    s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_volume("s3://lab/scan.zarr", IMAGE, storage_options=s3)
    asked, info = [], tokens.token
    monkeypatch.setattr("unet_engine.volumes.zarr_volume.token", lambda place: (asked.append(place), info(place))[1])
    model = fake_model(tmp_path)
    said = cli(
        "run", "--in", "s3://lab/scan.zarr", "--model", model, "--out", tmp_path / "o.zarr", "--strict", "--json"
    )
    assert said.code == 0, said.err
    assert said.json["notes"] == []
    assert 0 < len(asked) <= 2 * said.json["blocks_planned"]


def test_of_many_boxes_some_are_kept_and_each_is_as_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        asked = 0

        def token(self, box: Box) -> tuple[str, str]:
            self.asked += 1
            return "it", str(box)

    source, kept = Source(), Glances()
    for x in range(10_000):
        kept.take(source, Box((x,), (x + 1,)), [(x,)])  # type: ignore[arg-type]
    assert source.asked < 10 * KEPT
    found = sorted(glance.box.lo[0] for glance in kept._kept.values())
    assert len(found) == KEPT
    assert 0.3 < sum(x < 5000 for x in found) / KEPT < 0.7
    assert list(kept.changed()) == []


@pytest.mark.parametrize("packing", ["blosc", "zstd", "gzip", "zlib", "bz2", "shards"])
def test_another_process_reads_it_as_this_one(tmp_path, packing):
    """Dask's workers are given what was opened here, with whatever codecs and whatever is kept of a store."""
    import pickle

    from numcodecs import BZ2, Blosc, GZip, Zlib, Zstd

    from unet_engine.volumes.formats import open_volume

    if packing == "shards":
        zarr.create_array(tmp_path / "v.zarr", data=IMAGE, chunks=(5, 6, 10), shards=(10, 12, 30))
    else:
        codec = {"blosc": Blosc(), "zstd": Zstd(), "gzip": GZip(), "zlib": Zlib(), "bz2": BZ2()}[packing]
        zarr.create_array(
            tmp_path / "v.zarr", data=IMAGE, chunks=(8, 8, 8), zarr_format=2, compressors=codec, order="F"
        )
    with WebServer(tmp_path) as server:
        for path in (str(tmp_path / "v.zarr"), f"{server.url}/v.zarr"):
            volume = open_volume(path, "zyx")
            volume.keep(2**20, None)
            there = pickle.loads(pickle.dumps(volume))
            box = Box((3, 0, 5), (17, 20, 30))
            assert np.array_equal(there.read(box)[0], IMAGE[box.slices()])
