"""What networks and stores do on bad days: nothing is read or written wrongly, what passes is asked for again, and what
does not is one line that names key and cause."""

import asyncio
import itertools
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from support.command_line import begin, cli
from support.fault_proxy import FAULTS
from support.s3 import SECRET, faulty, upload
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from support.waiting import wait_until
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import InputError, OutputError, StoreError
from unet_engine.plan.box import Box
from unet_engine.storage import patience, stores
from unet_engine.volumes.formats import open_volume

pytestmark = pytest.mark.long

IMAGE = np.random.default_rng(4).integers(0, 255, (12, 16, 18), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv(patience.STALLED, "1")


# --- patience ---


def asked(*answers, seconds="5", monkeypatch=None):
    """What comes of a request that fails with each of `answers` in turn, and the pauses between."""
    left, pauses, renewed = list(answers), [], []

    async def ask():
        if left and (found := left.pop(0)) is not None:
            raise found
        return "there"

    async def slept(pause):
        pauses.append(pause)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience.asyncio, "sleep", slept)
        patch.setenv(patience.SECONDS, seconds)
        found = asyncio.run(patience.patiently(ask, "s3://lab/key", lambda: renewed.append(1)))
    return found, pauses, len(renewed)


@pytest.mark.parametrize(
    "error",
    [
        patience.Answered(500), patience.Answered(502), patience.Answered(503), patience.Answered(429),
        patience.Answered(408), patience.Broken("cut off"), TimeoutError(), ConnectionResetError(),
        BrokenPipeError(), OSError(110, "timed out"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_may_pass_is_asked_for_again(error):
    assert asked(error, error, error)[0] == "there"


@pytest.mark.parametrize("error", [FileNotFoundError("k"), KeyError("k"), ValueError("k"), NotADirectoryError("k")])
def test_what_is_no_trouble_of_a_store_is_raised_as_it_is(error):
    with pytest.raises(type(error)):
        asked(error)


@pytest.mark.parametrize("error", [patience.Answered(400), patience.Answered(501), patience.Answered(409)], ids=repr)
def test_what_does_not_pass_is_told_at_once(error):
    with pytest.raises(StoreError, match=rf"^s3://lab/key: {error.status} [A-Z][\w ]+$"):
        asked(error, None)


def test_refused_credentials_are_renewed_once():
    refused = patience.Answered(403, "ExpiredToken")
    assert asked(refused)[::2] == ("there", 1)
    with pytest.raises(StoreError, match=r"s3://lab/key: 403 Forbidden \(ExpiredToken\), asked 2 times") as told:
        asked(refused, refused, refused)
    assert told.value.refused
    assert "credentials" in told.value.advice


def test_pauses_grow_to_a_bound_and_are_drawn(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 10.0)
    runs = [asked(*[patience.Answered(500)] * 9, seconds="1000")[1] for _ in range(20)]
    for number, pauses in enumerate(zip(*runs, strict=True)):
        most = min(10.0, 0.2 * 2**number)
        assert all(most / 2 <= pause <= most for pause in pauses)
        assert len(set(pauses)) == 20


def test_a_store_that_says_how_long_is_left_alone_so_long():
    pauses = asked(patience.Answered(503, "", "7"), patience.Answered(429, "", "100000"), seconds="1000")[1]
    assert 7 <= pauses[0] <= 8.4
    assert patience.LONGEST_WISH <= pauses[1] <= 1.2 * patience.LONGEST_WISH


def test_patience_ends():
    with pytest.raises(StoreError, match=r"503 Service Unavailable$"):
        asked(patience.Answered(503), seconds="0")
    now, asked_at = [0.0], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(patience.SECONDS, "9")
        patch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now[0]))

        async def ask():
            asked_at.append(now[0])
            raise patience.Answered(503)

        async def slept(pause):
            now[0] += pause

        patch.setattr(patience.asyncio, "sleep", slept)
        with pytest.raises(StoreError, match=r"asked \d+ times in \d\.\d s"):
            asyncio.run(patience.patiently(ask, "key"))
    assert len(asked_at) > 1
    assert asked_at[-1] < 9


# --- a volume behind faults ---


@pytest.fixture
def stored(tmp_path):
    """The image on a disk, in 18 chunks."""
    path = tmp_path / "scan.zarr"
    make_volume(str(path), IMAGE, chunks=(5, 8, 6))
    return path


EACH_TIME = ("cut", "stall", "lost")


@pytest.mark.parametrize("fault", share(sorted(FAULTS, key=lambda fault: fault not in EACH_TIME), quick=len(EACH_TIME)))
def test_each_fault_is_survived_with_the_right_bytes(monkeypatch, tmp_path, stored, fault):
    """Every third request fails, or every ninth, reading and writing."""
    monkeypatch.setenv(patience.STALLED, "0.5" if fault == "stall" else "10")
    with faulty(monkeypatch, stall=0.8) as (proxy, client):
        upload(client, stored, "scan.zarr")
        every = 9 if fault in ("stall", "endless", "short") else 3
        proxy.fault = lambda number, *_: fault if number % every == 0 else None
        arguments = ("--model", fake_model(tmp_path), "--output", "logits")
        here = cli("run", "--in", stored, *arguments, "--out", tmp_path / "o.zarr")
        assert here.code == 0, here.err
        there = cli("run", "--in", "s3://lab/scan.zarr", *arguments, "--out", "s3://lab/o.zarr")
        assert there.code == 0, there.err
        assert len(proxy.faults) > 5
        proxy.fault = lambda *_: None
        result = zarr.open_array(stores.store_of("s3://lab/o.zarr").location("s3://lab/o.zarr"), path="0", mode="r")
        assert result[...].tobytes() == result_of(str(tmp_path / "o.zarr")).tobytes()


@pytest.mark.slow
def test_ten_thousand_requests_of_all_faults_and_no_wrong_chunk(monkeypatch, tmp_path):
    image = np.random.default_rng(0).integers(0, 2**16, (64, 64, 64), dtype=np.uint16)
    local = tmp_path / "scan.zarr"
    make_volume(str(local), image, chunks=(8, 8, 8))
    with faulty(monkeypatch, stall=1.2) as (proxy, client):
        upload(client, local, "scan.zarr")
        turn = itertools.cycle([f for f in FAULTS if f != "stall"] * 3 + ["stall", "403"])
        proxy.fault = lambda number, *_: next(turn) if number % 7 == 0 else None
        rounds, wrong, whole = 0, 0, Box.of_shape(image.shape)
        while len(proxy.seen) < 10_000:
            wrong += int((open_volume("s3://lab/scan.zarr").read(whole)[0] != image).sum())
            copy = f"s3://lab/copy{rounds}.zarr"
            stores.store_of(copy).create_group(copy, {})
            stores.open_group(copy, "r+").create_array("0", data=image, chunks=(8, 8, 8))
            wrong += int((open_volume(f"{copy}/0").read(whole)[0] != image).sum())
            rounds += 1
        assert wrong == 0
        assert len(proxy.faults) > 1_000


def test_a_store_that_goes_on_failing_is_one_line_and_the_run_is_resumed(monkeypatch, tmp_path, stored):
    monkeypatch.setenv(patience.SECONDS, "0.3")
    with faulty(monkeypatch) as (proxy, client):
        upload(client, stored, "scan.zarr")
        model = fake_model(tmp_path)
        arguments = ("run", "--in", "s3://lab/scan.zarr", "--model", model, "--out", tmp_path / "o.zarr", "--json")
        proxy.fault = lambda number, method, path: "503" if number > 45 and "/c/" in path else None
        said = cli(*arguments)
        assert said.code == InputError.exit_code, said.err
        line = [one for one in said.err.splitlines() if "503" in one]
        assert len(line) == 1
        assert "s3://lab/scan.zarr" in line[0]
        assert "/c/" in line[0]
        assert "503 Service Unavailable (SlowDown), asked " in line[0]
        assert "--resume" in line[0]
        assert "Traceback" not in said.err
        proxy.fault = lambda *_: None
        again = cli(*arguments, "--resume")
        assert again.code == 0, again.err
        whole = cli("run", "--in", stored, "--model", model, "--out", tmp_path / "w.zarr")
        assert whole.code == 0
        assert result_of(str(tmp_path / "o.zarr")).tobytes() == result_of(str(tmp_path / "w.zarr")).tobytes()


@pytest.mark.parametrize("what", share(["GET", "PUT"]))
def test_credentials_that_expire_in_mid_run_lose_nothing(monkeypatch, tmp_path, stored, what):
    with faulty(monkeypatch) as (proxy, client):
        upload(client, stored, "scan.zarr")
        model, windows, start = fake_model(tmp_path), [], FakeBackend.start
        expired = []

        def starting(self, slot):
            windows.append(slot)
            if len(windows) == 2:
                expired.append(1)
            start(self, slot)

        monkeypatch.setattr(FakeBackend, "start", starting)
        proxy.fault = lambda number, method, path: "expired" if expired and method == what else None
        out = "s3://lab/o.zarr" if what == "PUT" else tmp_path / "o.zarr"
        arguments = ("run", "--in", "s3://lab/scan.zarr", "--model", model, "--out", out, "--json", "--memory", "6GiB")
        said = cli(*arguments)
        assert said.code == (InputError if what == "GET" else OutputError).exit_code, said.err
        assert "403 Forbidden (ExpiredToken)" in said.error
        assert "check the credentials" in said.error
        assert SECRET not in said.err + said.out
        expired.clear()
        proxy.fault = lambda *_: None
        again = cli(*arguments, "--resume")
        assert again.code == 0, again.err
        assert again.json["windows_inferred"] <= again.json["windows_planned"]


def test_a_run_that_is_killed_on_a_bucket_is_resumed_to_the_same_bytes(monkeypatch, tmp_path, stored):
    with faulty(monkeypatch) as (proxy, client):
        upload(client, stored, "scan.zarr")
        proxy.fault = lambda number, *_: "500" if number % 11 == 0 else None
        model = fake_model(tmp_path, latency_ms=4)
        arguments = ("run", "--in", "s3://lab/scan.zarr", "--model", model, "--output", "logits", "--json")
        process = begin(*arguments, "--out", "s3://lab/o.zarr")
        wait_until(lambda: any("/.journal/" in s.path and s.method == "PUT" for s in list(proxy.seen)))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        again = cli(*arguments, "--out", "s3://lab/o.zarr", "--resume")
        assert again.code == 0, again.err
        whole = cli(*arguments, "--out", tmp_path / "w.zarr")
        assert whole.code == 0, whole.err
        place = stores.store_of("s3://lab/o.zarr").location("s3://lab/o.zarr")
        stored_bytes = zarr.open_array(place, path="0", mode="r")[...].tobytes()
        assert stored_bytes == result_of(str(tmp_path / "w.zarr")).tobytes()


# --- creation ---


def test_of_many_that_make_one_group_exactly_one_does(monkeypatch):
    """By a request with a condition, which fails where anything is; also where its answer is lost."""
    from concurrent.futures import ThreadPoolExecutor

    with faulty(monkeypatch) as (proxy, _):
        proxy.fault = lambda number, method, path: "lost" if number % 4 == 0 and method == "PUT" else None
        for round_ in range(5):
            path = f"s3://lab/o{round_}.zarr"
            with ThreadPoolExecutor(8) as pool:
                store = stores.store_of(path)
                list(pool.map(store.create_group, [path] * 8, [{"maker": who} for who in range(8)]))
            first = dict(stores.open_group(path, "r").attrs)
            stores.store_of(path).create_group(path, {"maker": "late"})
            assert dict(stores.open_group(path, "r").attrs) == first
