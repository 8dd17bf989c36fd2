"""Many volumes by one command: the same bytes as one by one, one network, each with a journal of its own."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import begin, cli, command
from support.volumes import fake_model, make_volume, result_of
from support.waiting import PATIENCE
from unet_engine.backends.fake import FakeBackend
from unet_engine.batches import inputs
from unet_engine.batches.outputs import out_of, out_of_one
from unet_engine.errors import BatchError, InputError, PlanError

SHAPES = [(16, 16, 16), (20, 12, 9), (8, 8, 8), (24, 24, 16)]


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(3)
    folder = tmp_path / "scans"
    folder.mkdir()
    return [
        make_volume(folder / f"s{i}.zarr", rng.normal(size=shape).astype(np.float32)) for i, shape in enumerate(SHAPES)
    ]


@pytest.fixture
def model(tmp_path):
    return fake_model(tmp_path)


LOGITS = ("--output", "logits")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("how", ["paths", "behind", "glob", "folder", "csv", "jsonl"])
def test_however_they_are_named_the_bytes_are_those_of_single_runs(scans, model, tmp_path, how):
    folder = tmp_path / "scans"
    if how == "csv":
        (folder / "list.csv").write_text("input,out\n" + "".join(f"s{i}.zarr,../out/s{i}.zarr\n" for i in range(4)))
    if how == "jsonl":
        rows = [{"input": path, "out": f"{tmp_path}/out/s{i}.zarr"} for i, path in enumerate(scans)]
        (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "paths": [word for path in scans for word in ("--in", path)],
        "behind": ["--in", *scans],
        "glob": ["--in", f"{folder}/*.zarr"],
        "folder": ["--in", str(folder)],
        "csv": ["--in", str(folder / "list.csv")],
        "jsonl": ["--in", str(folder / "list.jsonl")],
    }[how]
    out = [] if how in ("csv", "jsonl") else ["--out", "out/{stem}.zarr"]
    said = cli("run", *given, "--model", model, *out, *LOGITS)
    assert said.code == 0, said.err
    for i, path in enumerate(scans):
        alone = unet_engine.run(path, model=model, out=f"alone{i}.zarr", output="logits")
        group = zarr.open_group(f"out/s{i}.zarr", mode="r")
        assert group.attrs["unet_engine"]["digest"] == alone.digest
        np.testing.assert_array_equal(result_of(f"out/s{i}.zarr"), result_of(alone.out))


def test_the_network_is_loaded_once(scans, model, monkeypatch):
    opened = []
    before = FakeBackend.__init__
    monkeypatch.setattr(FakeBackend, "__init__", lambda self, *a, **k: (opened.append(1), before(self, *a, **k))[1])
    assert cli("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr").code == 0
    assert len(opened) == 1


def test_the_next_volume_is_read_while_this_one_is_inferred(scans, tmp_path, monkeypatch):
    """Its first block is there when the network is handed on."""
    from unet_engine.pipeline.worker import Worker

    slow = fake_model(tmp_path, latency_ms=20, name="slow")
    reads, ends = [], []
    read, close = Worker.read, Worker.give
    monkeypatch.setattr(Worker, "read", lambda self, task: (reads.append(self.job.volume), read(self, task))[1])
    monkeypatch.setattr(Worker, "give", lambda self: (ends.append((self.job.volume, len(reads))), close(self))[1])
    assert cli("run", "--in", *scans[:2], "--model", slow, "--out", "out/{stem}.zarr").code == 0
    first, count = ends[0]
    assert scans[1] in reads[:count]
    assert first == scans[0]


def test_volumes_that_do_not_fit_together_wait(scans, model, monkeypatch):
    """Where the memory holds the plan of one, the next reads nothing before this one has ended."""
    from unet_engine.execution.relay import Leg
    from unet_engine.pipeline.worker import Worker

    monkeypatch.setattr(Leg, "_fits", lambda self: False)
    events = []
    read, give = Worker.read, Worker.give
    monkeypatch.setattr(Worker, "read", lambda self, task: (events.append(self.job.volume), read(self, task))[1])
    monkeypatch.setattr(Worker, "give", lambda self: (events.append("end"), give(self))[1])
    assert cli("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr").code == 0
    runs = " ".join(events).split("end")
    assert [set(run.split()) for run in runs[:4]] == [{path} for path in scans]


def test_memory_is_that_of_both_plans(scans, model):
    from unet_engine.execution.relay import Leg, Relay

    relay = Relay()
    legs = [relay.leg(), relay.leg()]
    for leg, needs in zip(legs, (60, 50), strict=True):
        leg._own, leg.needs = type("Own", (), {"base": 100, "budget": 209})(), needs
    assert not Leg._fits(legs[1])
    legs[0].needs = 59
    assert Leg._fits(legs[1])


# --- failures ---


def test_failures_are_collected_and_listed(scans, model, tmp_path):
    broken = zarr.open_array(scans[1], mode="r+")
    broken[0, 0, 0] = np.nan
    results = tmp_path / "results.jsonl"
    given = ["run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", "--results", results]
    said = cli(*given, "--keep-going")
    assert said.code == 11
    assert scans[1] in said.error
    assert "1 of 4 volumes failed" in said.error
    assert "NaN" in said.error
    found = {line["input"]: line for line in lines(results)}
    assert [found[path]["status"] for path in scans] == ["done", "failed", "done", "done"]
    assert found[scans[1]]["error"]["type"] == "DataError"
    assert found[scans[1]]["error"]["exit_code"] == 4
    for i in (0, 2, 3):
        assert zarr.open_group(f"out/s{i}.zarr", mode="r").attrs["unet_engine"]["complete"]
    broken[0, 0, 0] = 0
    said = cli(*given, "--resume")
    assert said.code == 0, said.err
    assert [line["status"] for line in lines(results)[4:]].count("already complete") == 3
    assert said.err.count("already complete") >= 3


def test_the_first_failure_ends_it_with_its_own_code(scans, model, tmp_path):
    zarr.open_array(scans[0], mode="r+")[0, 0, 0] = np.inf
    results = tmp_path / "results.jsonl"
    said = cli("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", "--results", results)
    assert said.code == 4
    assert scans[0] in said.error
    assert "--keep-going" in said.error
    assert lines(results)[0]["status"] == "failed"
    assert not (tmp_path / "out" / "s3.zarr").exists()


def test_the_first_failure_may_be_of_any_kind_and_names_its_volume_once(scans, model, tmp_path):
    small = cli("run", "--in", *scans[:2], "--model", model, "--out", "o/{stem}.zarr", "--memory", "1MiB")
    assert small.code == PlanError.exit_code, small.err
    assert f"unet-engine: {scans[0]}: the smallest plan needs" in small.error
    assert small.error.endswith("; --keep-going runs the others")
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr/zarr.json").write_text("{")
    for options, code in (((), InputError.exit_code), (("--keep-going",), BatchError.exit_code)):
        said = cli("run", "--in", "bad.zarr", scans[0], "--model", model, "--out", "p/{stem}.zarr", "--overwrite",
                   *options)  # fmt: skip
        assert said.code == code, said.err
        assert said.error.count("bad.zarr") == 1, said.error


def test_a_network_that_fails_is_loaded_again_for_the_next(scans, tmp_path):
    """Windows may still be in it."""
    model = fake_model(tmp_path, fail_at=30, name="fails")
    said = cli("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", "--keep-going", *LOGITS,
               "--threads", 2)  # fmt: skip  # of one volume all windows could be in the network at once
    assert said.code == 11
    alone = fake_model(tmp_path, name="fine")
    for i in (1, 2):
        unet_engine.run(scans[i], model=alone, out=f"alone{i}.zarr", output="logits")
        np.testing.assert_array_equal(result_of(f"out/s{i}.zarr"), result_of(f"alone{i}.zarr"))


def test_a_network_that_failed_while_the_next_volume_was_planned_is_not_used(scans, tmp_path, monkeypatch):
    from unet_engine.execution import local

    prepare, failed = local.prepare, threading.Event()

    def slowly(*args, ready, **kwargs):
        prepared = prepare(*args, ready=ready, **kwargs)
        if ready:
            failed.wait(PATIENCE)
        return prepared

    def give(worker):
        failed.set()
        return before(worker)

    before = local.Worker.give
    monkeypatch.setattr(local, "prepare", slowly)
    monkeypatch.setattr(local.Worker, "give", give)
    model = fake_model(tmp_path, fail_at=30, name="fails")
    said = cli("run", "--in", *scans[:2], "--model", model, "--out", "out/{stem}.zarr", "--keep-going",
               "--threads", 2)  # fmt: skip
    assert "1 failed, 1 done" in said.err


def test_different_models_are_loaded_one_after_the_other(scans, model, tmp_path):
    """Of volumes beside which a file names another one."""
    other = fake_model(tmp_path / "scans2", name="other", window=(4, 4, 4))
    moved = make_volume(tmp_path / "scans2" / "m.zarr", np.ones((8, 8, 8), np.float32))
    (tmp_path / "scans2" / "unet-engine.toml").write_text(f'model = "{other}"\n')
    (tmp_path / "scans" / "unet-engine.toml").write_text("")
    (tmp_path / "models").mkdir()
    near = fake_model(tmp_path / "scans")
    (tmp_path / "scans" / "unet-engine.toml").write_text(f'model = "{near}"\n')
    said = cli("run", "--in", scans[0], moved, scans[1], "--out", "out/{stem}.zarr")
    assert said.code == 0, said.err
    names = [
        zarr.open_group(f"out/{s}.zarr", mode="r").attrs["unet_engine"]["model"]["name"] for s in ("s0", "m", "s1")
    ]
    assert names == ["id", "other", "id"]


# --- refused before anything runs ---


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("out.zarr", "is one place for"),
        ("out/{parent}.zarr", "would both be written"),
        ("out/{what}.zarr", "{stem}"),
        ("out/{stem", "expected '}'"),
        ("out/{number:q}.zarr", "number"),
        ("out/{stem!r}.zarr", "{stem}"),
    ],
)
def test_one_place_for_two_is_refused(scans, model, out, part, tmp_path):
    said = cli("run", "--in", *scans, "--model", model, "--out", out)
    assert said.code == 2
    assert part in said.error
    assert not (tmp_path / "out").exists()


def test_outputs_in_one_another_or_over_an_input_are_refused(scans, model, tmp_path):
    rows = [{"input": scans[0], "out": "a.zarr"}, {"input": scans[1], "out": "a.zarr/b.zarr"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "would both be written" in cli("run", "--in", "list.jsonl", "--model", model).error
    rows[1]["out"] = scans[0]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = cli("run", "--in", "list.jsonl", "--model", model, "--overwrite")
    assert said.code == 2
    assert "overlaps the input" in said.error


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("l.csv", "path,out\na,b\n", "no column input"),
        ("l.csv", "input\na,b\n", "more values"),
        ("l.csv", "input,modle\na,b\n", "'modle'"),
        ("l.csv", "input\n", "no volume"),
        ("l.jsonl", "{", "line 1"),
        ("l.jsonl", "[1]", "no JSON object"),
        ("l.jsonl", '{"out": "a"}', "no volume"),
        ("l.jsonl", '{"input": "a", "trust": true}', "'trust'"),
        ("l.jsonl", '{"input": "a", "input": "b"}', "line 1: it says 'input' twice"),
        ("l.jsonl", '\n{"input": "a", "level": NaN}', "l.jsonl, line 2: --level"),
        ("l.jsonl", '{"input": ' + "[" * 100_000, "one JSON object a line"),
        ("l.csv", "input,input\na,b\n", "line 1: it says 'input' twice"),
        ("l.csv", 'input,roi\na,\nb,"0:8\nc,\n', "close its quotes"),
        ("l.csv", "input,level\na,\nb,top\n", "l.csv, line 3: --level"),
        ("l.csv", f"input\n{'a' * 200_000}\n", "line 2: field larger than"),
    ],
)
def test_lists_that_make_no_sense(model, tmp_path, name, text, part):
    (tmp_path / name).write_text(text)
    said = cli("run", "--in", name, "--model", model)
    assert said.code in (2, 3)
    assert part in said.error


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "\ufeffinput , out\r\n\r\n{} , o/1.zarr\r\n"),
        ("l.csv", "input,out,roi\n{},o/1.zarr\n"),
        ("l.jsonl", '\ufeff\r\n{{"input": "{}", "out": "o/1.zarr"}}\r\n'),
    ],
)
def test_lists_as_programs_write_them(scans, name, text, tmp_path):
    (tmp_path / name).write_text(text.format(scans[0]), newline="")
    (found,) = inputs.expanded([str(tmp_path / name)])
    assert (found.input, found.settings) == (scans[0], {"out": str(tmp_path / "o/1.zarr")})


def test_a_glob_that_matches_nothing(model):
    said = cli("run", "--in", "nothing/*.zarr", "--model", model)
    assert said.code == 3
    assert "nothing there" in said.error


# --- parts, resumed, planned ---


def test_parts_deal_volumes(scans, model, tmp_path):
    given = ["run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr"]
    assert cli(*given, "--part", "1/3").code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s0.zarr", "s3.zarr"]
    assert cli(*given, "--part", "2/3").code == 0
    assert cli(*given, "--part", "3/3").code == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"s{i}.zarr" for i in range(4)]
    said = cli("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", "--part", "9/9")
    assert said.code == 0
    assert "nothing to do" in said.err


def test_a_kill_leaves_all_resumable(scans, tmp_path):
    model = fake_model(tmp_path / "k", latency_ms=15)
    running = begin("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", *LOGITS, "--threads", 1)
    while not (tmp_path / "out" / "s1.zarr").exists() and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    running.communicate()
    assert running.returncode == -9
    said = command("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", *LOGITS, "--resume")
    assert said.code == 0, said.err
    for i, path in enumerate(scans):
        unet_engine.run(path, model=model, out=f"alone{i}.zarr", output="logits")
        np.testing.assert_array_equal(result_of(f"out/s{i}.zarr"), result_of(f"alone{i}.zarr"))


def test_a_signal_ends_all_resumable_and_leaves_their_lines(scans, tmp_path):
    model = fake_model(tmp_path / "k", latency_ms=60)
    given = ["run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr", "--results", "r.jsonl"]
    running = begin(*given, "--threads", 1)
    while not (tmp_path / "out" / "s0.zarr").exists() and running.poll() is None:
        time.sleep(0.01)
    running.terminate()
    said = running.communicate()[1]
    assert running.returncode == 130
    assert said.strip().splitlines()[-1].endswith("run the same command with --resume")
    assert lines(tmp_path / "r.jsonl")[0]["status"] == "interrupted"
    assert cli(*given, "--threads", 16, "--resume").code == 0


def test_a_dry_run_writes_nothing(scans, model, tmp_path):
    said = cli("run", "--in", *scans, "missing.zarr", "--model", model, "--out", "out/{stem}.zarr", "--dry-run")
    assert said.code == 11
    assert "would be written to out/s3.zarr" in said.err
    assert "missing.zarr" in said.error
    assert not (tmp_path / "out").exists()
    said = cli("run", "--in", scans[0], "--model", model, "--out", "out.zarr", "--dry-run", "--json")
    assert said.json["out"] == "out.zarr"
    assert not (tmp_path / "out.zarr").exists()


def test_no_thread_is_left(scans, model):
    before = set(threading.enumerate())
    assert cli("run", "--in", *scans, "--model", model, "--out", "out/{stem}.zarr").code == 0
    assert {t.name for t in set(threading.enumerate()) - before if t.name.startswith("volume")} == set()


@pytest.mark.parametrize("name", ["q?x", "a b", "p%20q", "h#1", "[1]", "{s}", "日本", "c,d"])
def test_odd_names_are_kept_and_one_volume_is_named_as_several_are(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    model = fake_model(tmp_path)
    np.save(f"{name}.npy", np.zeros((8, 8, 8), np.float32))
    said = cli("run", "--in", f"{name}.npy", "--model", model, "--out", "out/{stem}-{number:02}.zarr")
    assert said.code == 0, said.err
    assert [path.name for path in Path("out").iterdir()] == [f"{name}-01.zarr"]
    assert out_of("{name}/{stem}", f"a/{name}.npy", 2) == f"{name}.npy/{name}"
    assert out_of_one("o/{other}.zarr", "a.npy") == "o/{other}.zarr"


def test_what_convert_made_is_a_volume_and_what_a_run_made_is_none(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", np.zeros((8, 8, 8), np.uint8))
    assert cli("convert", "v.npy", "made.zarr").code == 0
    said = cli("run", "--in", "*.zarr", "--model", model, "--out", "labels-{stem}.zarr")
    assert said.code == 0, said.err
    assert cli("convert", "labels-made.zarr", "copied.zarr").code == 0
    assert [item.input for item in inputs.expanded(["*.zarr"])] == ["made.zarr"]
    with pytest.raises(InputError, match=r"only outputs of earlier runs are called so, such as labels-made\.zarr"):
        inputs.expanded(["labels-*.zarr"])
