"""Whatever ends a run, a resume gives the bytes of an undisturbed one and redoes nothing that was committed."""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import begin, cli, environment
from support.outputs import chunks, marked, wait_for_blocks
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError, OutputError
from unet_engine.output.completion import finish
from unet_engine.output.header import Header
from unet_engine.output.layout import Layout
from unet_engine.output.output import Output
from unet_engine.plan.box import Box

pytestmark = pytest.mark.long

SHAPE = (27, 30, 37)
OPTIONS = {"output": "logits", "dtype": "float32", "threads": 2}  # no run is over at once, however many cores
FLAGS = [f for key, value in OPTIONS.items() for f in (f"--{key}", value)]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A volume, a network that takes its time, and the chunks of an undisturbed run: (volume, model, chunks)."""
    folder = tmp_path_factory.mktemp("crash")
    volume = make_volume(folder / "scan.zarr", np.random.default_rng(2).integers(0, 255, SHAPE, np.uint8))
    model = fake_model(folder, latency_ms=4)
    whole = unet_engine.run(volume, model=model, out=str(folder / "whole.zarr"), **OPTIONS)
    return volume, model, chunks(whole.out)


def stamps(out, plan, blocks):
    """When the chunks of `blocks` were written."""
    root, found = Path(out) / "0" / "c" / "0", {}
    for index in blocks:
        for cell in plan.write_box(index).cells(plan.chunk):
            path = root.joinpath(*(str(l // c) for l, c in zip(cell.lo, plan.chunk, strict=True)))
            found[str(path)] = (path.stat().st_mtime_ns, path.stat().st_ino)
    return found


@pytest.mark.parametrize("chains", share([2, 4]))
def test_kill_at_random_moments(tmp_path, case, chains):
    """Three kills a chain, most of them of a run that resumes another killed one."""
    volume, model, whole = case
    plan = unet_engine.make_plan(volume, model=model, **OPTIONS)
    moments, kills, kept = random.Random(7), 0, 0
    for chain in range(chains):
        out = tmp_path / f"{chain}.zarr"
        for _ in range(3):
            kills += _killed(["run", "--in", volume, "--model", model, "--out", out, "--resume", *FLAGS], out, moments)
        committed = marked(out)
        before = stamps(out, plan, committed)
        result = unet_engine.run(volume, model=model, out=str(out), resume=True, **OPTIONS)
        assert chunks(out) == whole
        assert stamps(out, plan, committed) == before
        assert not committed or result.windows_inferred < plan.window_count
        assert not list(out.rglob(".journal"))
        if committed:
            assert result.blocks_written == plan.block_count - len(committed)
        kept += len(committed)
    assert kills >= 2 * chains, "runs were over before they were killed: make them slower"
    assert kept, "no kill came after a block was committed: choose other moments"


def _killed(args, out, moments):
    """Start, wait until there are some more blocks than before, and a moment, and kill. Whether the run was still going
    on."""
    wanted = len(marked(out)) + moments.choice([-1, 0, 1, 2])
    process = begin(*args)
    while process.poll() is None and (len(marked(out)) < wanted or (wanted >= 0 and not (out / "zarr.json").exists())):
        time.sleep(0.002)
    time.sleep(moments.random() * (0.7 if wanted < 0 else 0.04))
    process.kill()
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.parametrize("number", share([signal.SIGTERM, signal.SIGINT, signal.SIGHUP], 2))
def test_signals_end_a_run_so_that_it_can_be_resumed(tmp_path, case, number):
    volume, model, whole = case
    out = tmp_path / "out.zarr"
    process = begin("run", "--in", volume, "--model", model, "--out", out, *FLAGS)
    wait_for_blocks(out, process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said
    done = cli("run", "--in", volume, "--model", model, "--out", out, "--resume", "--json", *FLAGS)
    assert done.code == 0
    assert done.json["windows_inferred"] < done.json["windows_planned"]
    assert chunks(out) == whole


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.4])
def test_signals_before_the_first_block_end_in_one_line(tmp_path, case, delay):
    """While libraries are imported, a signal comes out of them as whatever they make of it."""
    process = begin("run", "--in", case[0], "--model", case[1], "--out", tmp_path / "out.zarr", "--resume", *FLAGS)
    time.sleep(delay)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    if process.returncode != -signal.SIGTERM:  # Python itself was still starting
        assert process.returncode == 130
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("unet-engine: interrupted")


@pytest.fixture
def half(tmp_path, case, monkeypatch):
    """The output of a run whose network failed half way: (path, committed blocks)."""
    volume, model, _ = case
    out = str(tmp_path / "half.zarr")
    with monkeypatch.context() as patch:
        calls, start = [], FakeBackend.start

        def failing(self, slot):
            calls.append(slot)
            if len(calls) > 200:
                raise BackendError("enough")
            start(self, slot)

        patch.setattr(FakeBackend, "start", failing)
        with pytest.raises(BackendError, match="enough"):
            unet_engine.run(volume, model=model, out=out, **OPTIONS)
    assert 0 < len(marked(out)) < unet_engine.make_plan(volume, model=model, **OPTIONS).block_count
    return out, marked(out)


def resumed(case, out):
    volume, model, _ = case
    return unet_engine.run(volume, model=model, out=out, resume=True, **OPTIONS)


def test_half_written_chunks_are_written_again(case, half):
    """A kill while a chunk is written leaves part of a file. Those of committed blocks are whole, all others may be
    anything."""
    out, committed = half
    plan = unet_engine.make_plan(case[0], model=case[1], **OPTIONS)
    for index in set(plan.block_range.points()) - committed:
        for cell in plan.write_box(index).cells(plan.chunk):
            corner = [str(l // c) for l, c in zip(cell.lo, plan.chunk, strict=True)]
            path = Path(out, "0", "c", "0", *corner)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"(\xb5/\xfd torn")
    resumed(case, out)
    assert chunks(out) == case[2]


def test_leftovers_of_a_kill_while_marking_mean_nothing(case, half):
    out, committed = half
    journal = next(Path(out).glob("0/.journal/*"))
    (journal / "0.0.1f2e3d.partial").write_bytes(b"")
    (journal / "9.partial").write_bytes(b"")
    assert resumed(case, out).blocks_written == unet_engine.make_plan(
        case[0], model=case[1], **OPTIONS
    ).block_count - len(committed)
    assert chunks(out) == case[2]


def test_resume_of_a_run_killed_before_its_array_was_made(case, half):
    out, _ = half
    shutil.rmtree(Path(out, "0"))
    assert resumed(case, out).windows_inferred > 0
    assert chunks(out) == case[2]


def test_resume_of_a_run_killed_before_its_header_was_written(tmp_path, case):
    out = tmp_path / "out.zarr"
    out.mkdir()
    (out / "zarr.0123.partial").write_text("{")
    resumed(case, str(out))
    assert chunks(out) == case[2]


def test_resume_of_a_run_killed_after_it_said_complete(case, half, tmp_path):
    """The markers that were left behind go away."""
    out, _ = half
    shutil.copytree(Path(out, "0", ".journal"), tmp_path / "journal")
    resumed(case, out)
    shutil.copytree(tmp_path / "journal", Path(out, "0", ".journal"))
    assert resumed(case, out).windows_inferred == 0
    assert not Path(out, "0", ".journal").exists()


@pytest.mark.parametrize("way", ["resume", "finish"])
def test_the_lock_of_a_run_killed_as_it_ended_goes(tmp_path, case, way):
    volume, model, _ = case
    out = str(tmp_path / "out.zarr")
    unet_engine.run(volume, model=model, out=out, **OPTIONS)
    for name in (".lock", ".lock.1.3"):
        Path(out, "0", name).touch()
    if way == "resume":
        unet_engine.run(volume, model=model, out=out, resume=True, **OPTIONS)
    else:
        finish(out)
    assert not list(Path(out, "0").glob(".lock*"))


def test_resume_of_a_complete_output_does_nothing(tmp_path, case):
    volume, model, whole = case
    args = ["run", "--in", volume, "--model", model, "--out", tmp_path / "out.zarr", "--resume", "--json", *FLAGS]
    first = cli(*args)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.zarr").rglob("*")}
    second = cli(*args)
    assert (first.code, second.code) == (0, 0)
    assert (second.json["windows_inferred"], second.json["blocks_written"]) == (0, 0)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out.zarr").rglob("*")} == before
    assert chunks(tmp_path / "out.zarr") == whole


def test_resume_where_there_is_nothing_yet_begins(tmp_path, case):
    resumed(case, str(tmp_path / "out.zarr"))
    assert chunks(tmp_path / "out.zarr") == case[2]


def test_resume_with_another_number_of_workers_and_budget(case, half):
    out, _ = half
    unet_engine.run(case[0], model=case[1], out=out, resume=True, memory="3GiB", **{**OPTIONS, "threads": 3})
    assert chunks(out) == case[2]


def test_what_was_committed_before_an_error_stays(case, half):
    out, committed = half
    plan = unet_engine.make_plan(case[0], model=case[1], **OPTIONS)
    here = chunks(out)
    assert committed
    for place in stamps(out, plan, committed):
        name = str(Path(place).relative_to(Path(out) / "0" / "c"))
        assert here[name] == case[2][name]


# --- disk full ---


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB, and a function that gives it another size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a file system of our own cannot be mounted here: {made.stderr.strip()}")
    try:
        yield disk, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_disk_full_and_then_not(small_disk, case):
    (disk, remount), (volume, model, whole) = small_disk, case
    (disk / "ballast").write_bytes(bytes(200_000))
    args = ["run", "--in", volume, "--model", model, "--out", disk / "out.zarr", "--json", *FLAGS]
    said = cli(*args)
    assert said.code == OutputError.exit_code
    assert said.error.startswith(f"unet-engine: {disk / 'out.zarr'}: the disk is full")
    assert "--resume" in said.error
    assert "Traceback" not in said.err
    committed = marked(disk / "out.zarr")
    assert committed
    remount("size=4m")
    done = cli(*args, "--resume")
    assert done.code == 0
    assert done.json["blocks_written"] == done.json["blocks_planned"] - len(committed)
    assert chunks(disk / "out.zarr") == whole


def test_disk_full_from_the_start(small_disk, case):
    disk, remount = small_disk
    (disk / "ballast").write_bytes(bytes(256 * 1024))
    args = ["run", "--in", case[0], "--model", case[1], "--out", disk / "out.zarr", *FLAGS]
    said = cli(*args)
    assert said.code == OutputError.exit_code
    assert "disk is full" in said.error
    remount("size=4m")
    assert cli(*args, "--resume").code == 0
    assert chunks(disk / "out.zarr") == case[2]


def test_read_only_disk(small_disk, case):
    disk, remount = small_disk
    remount("ro")
    said = cli("run", "--in", case[0], "--model", case[1], "--out", disk / "out.zarr", *FLAGS)
    assert said.code == OutputError.exit_code
    assert str(disk / "out.zarr") in said.error
    assert "cannot be written" in said.error
    assert "Traceback" not in said.err


def test_two_runs_never_write_one_output(tmp_path, case):
    """The second one is refused while the first one lives, and --overwrite does not pull the output from under it."""
    volume, model, whole = case
    out = tmp_path / "shared.zarr"
    first = begin("run", "--in", volume, "--model", model, "--out", out, *FLAGS)
    wait_for_blocks(out, first)
    first.send_signal(signal.SIGSTOP)  # or a busy machine may let it end before the second one begins
    for option in ("--resume", "--overwrite"):
        said = cli("run", "--in", volume, "--model", model, "--out", out, option, *FLAGS)
        assert said.code == OutputError.exit_code
        assert "is being written by another run" in said.error
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert chunks(out) == whole
    assert not (out / "0" / ".lock").exists()


# --- several writers ---

WRITER = """
import json, os, random, signal, sys, time
import numpy as np
from unet_engine.plan.box import Box
from unet_engine.output.output import Layout, Output

facts = json.load(open(sys.argv[1]))
moments = random.Random(3)
for _ in range(facts["kills"]):
    told, tell = os.pipe()
    if not (child := os.fork()):
        output = Output(facts["out"], Layout(**facts["layout"]), facts["digest"])
        voxels = np.load(facts["voxels"])
        os.write(tell, b"x")
        while True:
            for lo, hi in facts["boxes"]:
                output.write(Box(tuple(lo), tuple(hi)), voxels[(slice(None), *map(slice, lo, hi))])
    os.read(told, 1)
    time.sleep(moments.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def test_a_writer_killed_at_random_moments_takes_nothing_from_blocks_another_one_marked(tmp_path, case):
    """A worker thought lost may still be writing what others wrote and marked. Whenever it dies, the output is
    whole."""
    volume, model, whole = case
    plan = unet_engine.make_plan(volume, model=model, **OPTIONS)
    out = tmp_path / "out.zarr"
    unet_engine.run(volume, model=model, out=str(out), **OPTIONS)
    np.save(tmp_path / "voxels.npy", result_of(out))
    header = all_but_complete(out)
    facts = {
        "out": str(out), "digest": header.digest, "voxels": str(tmp_path / "voxels.npy"), "kills": 40,
        "boxes": [(box.lo, box.hi) for box in map(plan.write_box, plan.block_range.points()) if not box.is_empty],
        "layout": layout(plan),
    }  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    command = [sys.executable, "-c", WRITER, str(tmp_path / "facts.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as writers:
        kills = sum(chunks(out) == whole for _ in writers.stdout)
    assert (writers.returncode, kills) == (0, facts["kills"])
    assert list(out.glob("0/.journal/*/stage/*/*")), "no kill came in the middle of a write: choose other moments"
    finish(str(out))
    assert chunks(out) == whole
    assert {p.relative_to(out).parts[:2] for p in out.rglob("*")} == {
        ("zarr.json",),
        ("0",),
        ("0", "c"),
        ("0", "zarr.json"),
    }


def all_but_complete(out):
    """The header of an output made to look as it does after its last block and before its end."""
    header = Header.of(str(out))
    assert header.complete
    header.revoke()
    assert header.begin()
    for index in itertools.product(*header.blocks):
        header.mark(index)
    assert not header.complete
    return header


def layout(plan, dtype="float32"):
    """What the output of a run with `OPTIONS` looks like, as `Layout` takes it."""
    sizes = {"shape": plan.roi.shape, "chunk": plan.chunk, "channels": 1, "dtype": dtype}
    return {
        "names": "zyx",
        "stored": "zyx",
        **sizes,
        "spacing": (1,) * 3,
        "translation": (0,) * 3,
        "unit": None,
        "classes": ["a"],
    }


@pytest.fixture
def lost(tmp_path, case):
    """A worker that has written one block and was then forgotten, its block, and the output: (worker, index, box,
    values, path)."""
    volume, model, _ = case
    plan = unet_engine.make_plan(volume, model=model, **OPTIONS)
    out = tmp_path / "lost.zarr"
    unet_engine.run(volume, model=model, out=str(out), **OPTIONS)
    values = result_of(out)
    header = all_but_complete(out)
    worker = Output(str(out), Layout(**layout(plan)), header.digest)
    index = next(i for i in plan.block_range.points() if not plan.write_box(i).is_empty)
    box = plan.write_box(index)
    worker.write(box, values[(slice(None), *box.slices())])
    return worker, index, box, values[(slice(None), *box.slices())], out


def test_a_worker_that_comes_back_after_the_end_leaves_nothing(case, lost):
    worker, index, box, values, out = lost
    finish(str(out))
    for _ in range(2):
        worker.write(box, values)
        worker.mark(index)
    assert chunks(out) == case[2]
    assert {p.name for p in (out / "0").iterdir()} == {"c", "zarr.json"}


def test_a_worker_that_comes_back_after_its_output_was_replaced_touches_nothing(case, lost):
    worker, index, box, values, out = lost
    volume, model, _ = case
    with pytest.MonkeyPatch.context() as patch:  # the other run is not over yet
        patch.setattr(Header, "finish", lambda *_: None)
        unet_engine.run(volume, model=model, out=str(out), overwrite=True, blend="constant", **OPTIONS)
    before = chunks(out)
    with pytest.raises(OutputError, match="was removed or replaced"):
        worker.write(box, values)
    with pytest.raises(OutputError, match="was removed or replaced"):
        worker.mark(index)
    assert chunks(out) == before
    assert len(list((out / "0" / ".journal").iterdir())) == 1
    finish(str(out))


def test_a_kill_while_an_output_is_overwritten_leaves_one_that_is_done_again(tmp_path, case, monkeypatch):
    """Not one that says it is complete and lacks chunks."""
    volume, model, whole = case
    out = tmp_path / "out.zarr"
    unet_engine.run(volume, model=model, out=str(out), **OPTIONS)

    def killed(path, **_):
        next(Path(path).rglob("c/*/*/*/*")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            unet_engine.run(volume, model=model, out=str(out), overwrite=True, **OPTIONS)
    result = unet_engine.run(volume, model=model, out=str(out), resume=True, **OPTIONS)
    assert result.windows_inferred == result.windows_planned
    assert chunks(out) == whole


def test_chunks_of_nothing_but_zeros_are_not_stored(tmp_path):
    looks = Layout("zyx", "zyx", (8,) * 3, (4,) * 3, None, "uint8", (1,) * 3, (0,) * 3, None, ("a",))
    output = Output.create(str(tmp_path / "o.zarr"), looks, "d", {"identity": {}, "blocks": [[[0, 1]]] * 3})
    output.header.begin()
    values = np.zeros((8, 8, 8), np.uint8)
    values[5, 1, 1] = 7
    output.write(Box.of_shape((8, 8, 8)), values)
    assert list(chunks(tmp_path / "o.zarr")) == ["1/0/0"]
    np.testing.assert_array_equal(result_of(tmp_path / "o.zarr"), values)
