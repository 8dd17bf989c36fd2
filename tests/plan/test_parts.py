"""Parts of one output: a partition that all machines agree on, the same bytes as one run, and the last one to end
completes it."""

from __future__ import annotations

import errno
import itertools
import json
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import unet_engine
from support.command_line import begin, cli, command
from support.outputs import chunks, marked, wait_for_blocks
from support.plans import SIZES, make, plans
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import OutputError, ResumeError
from unet_engine.output.completion import conclude
from unet_engine.output.header import Header, spans
from unet_engine.output.layout import Layout
from unet_engine.output.locks import hold
from unet_engine.output.output import Output
from unet_engine.plan.grid import AxisGrid
from unet_engine.plan.memory import cut_columns, fit
from unet_engine.plan.plan import Plan

pytestmark = pytest.mark.long

# --- who does what ----------------------------------------------------------------------------------------------------


def parts_of(plan: Plan, n: int) -> list[Plan]:
    return [replace(plan, part=(i, n)) for i in range(1, n + 1)]


@given(plans(), st.integers(1, 40))
def test_parts_are_a_partition_of_blocks_and_voxels(plan: Plan, n: int) -> None:
    parts = parts_of(plan, n)
    blocks = Counter(index for part in parts for column in part.columns() for index in column.blocks.points())
    assert blocks == Counter(plan.block_range.points())
    written = Counter(
        x for part in parts for c in part.columns() for i in c.blocks.points() for x in part.write_box(i).points()
    )
    assert written == Counter(plan.roi.points())
    assert sum(part.block_count for part in parts) == plan.block_count
    assert sum(part.voxel_count for part in parts) == plan.roi.size
    idle = sum(part.block_count == 0 for part in parts)
    assert idle == max(0, n - plan.block_count), "a part without work, though there is some"
    assert {part.digest for part in parts} == {plan.digest}


@given(plans(), st.integers(1, 9), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=3, max_size=3))
@settings(max_examples=60)
def test_memory_cuts_parts_into_columns_and_changes_nothing_else(
    plan: Plan, n: int, devices: int, counts: list[int]
) -> None:
    for part in parts_of(replace(plan, cuts=((),) * len(plan.axes)), n):
        cut = cut_columns(part, counts[: len(plan.axes)])
        assert cut.share == part.share
        assert Counter(i for c in cut.columns() for i in c.blocks.points()) == Counter(
            i for box in part.share for i in box.points()
        )
        assert cut.column_count == len(list(cut.columns()))
        assert cut.window_count == sum(cut.column_windows(c).size for c in cut.columns()) >= part.window_count
        assert not part.share or cut.seam_factor >= part.seam_factor >= 1
        fitted = fit(part, SIZES, 0, 2**40, devices)
        assert fitted.share == part.share
        assert fitted.column_count >= min(devices, sum(box.size for box in part.share))


@given(plans(), st.integers(1, 40))
def test_a_part_has_one_box_or_two_that_cannot_be_joined(plan: Plan, n: int) -> None:
    for part in parts_of(plan, n):
        assert len(part.share) <= 2
        if len(part.share) == 2:
            a, b = part.share
            assert sum((p, q) != (r, s) for p, q, r, s in zip(a.lo, a.hi, b.lo, b.hi, strict=True)) > 1
            for axis in range(a.ndim):
                same = (a.lo[axis], a.hi[axis]) == (b.lo[axis], b.hi[axis])
                assert same or a.hi[axis] <= b.lo[axis] or b.hi[axis] <= a.lo[axis]


def test_parts_are_cut_where_fewest_windows_are_inferred_twice() -> None:
    """A slab of 4 by 16 by 16 blocks in four: across both long axes, not along one and not across the short one."""
    plan = make(tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in (512, 2048, 2048)))
    assert plan.block_range.shape == (4, 16, 16)
    (box,) = replace(plan, part=(1, 4)).share
    assert box.shape == (4, 8, 8)
    assert [p.share[0].lo for p in parts_of(plan, 4)] == [(0, 0, 0), (0, 0, 8), (0, 8, 0), (0, 8, 8)]
    assert 1 < sum(p.window_count for p in parts_of(plan, 4)) / plan.window_count < 1.05


def test_a_number_that_makes_no_boxes_is_dealt_from_the_next_that_does() -> None:
    """Seven of 4 by 4 blocks: eight boxes, of which one part gets two, here neighbours."""
    plan = make((AxisGrid(256, 64, 64), AxisGrid(256, 64, 64)), block=(1, 1))
    shares = [part.share for part in parts_of(replace(plan, chunk=(64, 64)), 7)]
    assert sorted(sum(box.size for box in share) for share in shares) == [2, 2, 2, 2, 2, 2, 4]
    assert all(len(share) == 1 for share in shares)


def test_a_part_of_a_large_plan_is_known_at_once() -> None:
    plan = make(tuple(AxisGrid.with_overlap(12800, 64, 0.5, 0, "gaussian") for _ in range(3)))
    part = replace(plan, part=(9967, 9973))
    assert part.block_count == pytest.approx(10**6 / 9973, rel=0.3)
    assert len(fit(part, SIZES, 0, 2**28, 1).share) == len(part.share)


def test_memory_of_a_part_is_that_of_its_boxes() -> None:
    """A part as wide as a poor machine's column needs no more columns, and less memory than the whole."""
    plan = make(tuple(AxisGrid.with_overlap(n, 64, 0.5, 0, "gaussian") for n in (1024, 2048, 2048)))
    part = replace(plan, part=(3, 16))
    assert fit(part, SIZES, 0, 2**34, 1).memory.total < fit(plan, SIZES, 0, 2**34, 1).memory.total
    poor = fit(part, SIZES, 0, 2**28, 1)
    assert poor.share == part.share
    assert poor.memory.total <= 2**28
    assert prod(part.share_shape) == plan.block_count / 16


# --- the same bytes ---------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
SHAPE = (24, 60, 64)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A volume most of which is empty, a mask, a network that takes its time and says what empty means; 2 by 4 by 4
    blocks."""
    folder = tmp_path_factory.mktemp("parts")
    image = np.zeros(SHAPE, np.uint8)
    image[3:20, 5:50, 30:] = RNG.integers(1, 255, (17, 45, 34))
    mask = np.ones(SHAPE, np.uint8)
    mask[:, :20, 40:] = 0
    volume = str(folder / "scan.zarr")
    stored = zarr.create_array(
        volume, shape=SHAPE, chunks=(8, 16, 16), dtype="u1", config={"write_empty_chunks": False}
    )
    stored[...] = image
    return Case(
        volume,
        make_volume(folder / "mask.zarr", mask),
        fake_model(folder, empty=[-5.1], activation="sigmoid"),
        fake_model(folder, name="slow", empty=[-5.1], activation="sigmoid", latency_ms=10),
    )


@dataclass(frozen=True)
class Case:
    volume: str
    mask: str
    model: str
    slow: str

    def run(self, out: Path, **options: Any) -> unet_engine.Result:
        return unet_engine.run(self.volume, **{"model": self.model, "out": str(out), "output": "logits", **options})

    def args(self, out: Path, *more: str, threads: int = 2) -> list[str]:
        """The slow network on the whole volume; over at once on no machine, however many cores it has."""
        return ["run", "--in", self.volume, "--model", self.slow, "--out", str(out), "--output", "logits",
                "--threads", str(threads), *more]  # fmt: skip


def header(out: Path | str) -> dict[str, Any]:
    return dict(zarr.open_group(str(out), mode="r").attrs["unet_engine"])


def only_the_result_is_left(out: Path) -> bool:
    return {p.relative_to(out).parts[:2] for p in out.rglob("*")} == {
        ("zarr.json",),
        ("0",),
        ("0", "zarr.json"),
        ("0", "c"),
    }


@pytest.mark.parametrize(
    ("n", "options"),
    share(
        [
            (1, {"output": "labels"}),
            (2, {"output": "probabilities"}),
            (3, {"output": "labels", "mask": True}),
            (5, {"output": "probabilities", "dtype": "float32", "mask": True}),
            (7, {"output": "logits", "roi": "1:23,3:60,5:61"}),
            (35, {"output": "labels"}),
        ],
        3,
    ),
)
def test_parts_in_any_order_give_the_bytes_of_one_run(
    case: Case, tmp_path: Path, n: int, options: dict[str, Any]
) -> None:
    """Whatever each machine is like: other threads, and other columns for other devices."""
    options = {**options, "device": "fake:0"} | ({"mask": case.mask} if options.get("mask") else {})
    whole = case.run(tmp_path / "whole.zarr", **options)
    out, order = tmp_path / "out.zarr", RNG.permutation(np.arange(1, n + 1))
    results = []
    for k, i in enumerate(order):
        machine = {"threads": 1 + k % 3, "device": "fake:0,fake:1"} if k % 2 else {}
        results.append(case.run(out, part=f"{i}/{n}", **{**options, **machine}))
    assert chunks(out) == chunks(whole.out)
    assert only_the_result_is_left(out)
    assert sum(r.blocks_written for r in results) == sum(r.blocks_planned for r in results) == whole.blocks_planned
    assert sum(r.voxels for r in results) == whole.voxels
    assert all(r.windows_planned == r.windows_inferred + r.windows_skipped for r in results)
    assert [r.complete for r in results[:-1]].count(True) == max(0, n - whole.blocks_planned) * 0
    assert results[-1].complete
    summary = header(out)["summary"]
    assert [part["part"] for part in summary["parts"]] == [f"{i}/{n}" for i in range(1, n + 1)]
    assert all(part["finished"] and part["host"] for part in summary["parts"])
    assert summary["windows_inferred"] == sum(r.windows_inferred for r in results)
    assert summary["blocks"] == summary["blocks_written"] == whole.blocks_planned
    assert summary["seconds"] == pytest.approx(sum(part["seconds"] for part in summary["parts"]), abs=0.01)


def test_a_finished_part_that_is_run_again_does_nothing(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    first = case.run(out, part="1/3")
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    again = case.run(out, part="1/3")
    assert (again.windows_inferred, again.blocks_written) == (0, 0)
    assert (again.windows_planned, again.blocks_planned) == (first.windows_planned, first.blocks_planned)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before
    for part in ("2/3", "3/3", "1/3"):
        result = case.run(out, part=part)
    assert (result.windows_inferred, result.complete) == (0, True)
    assert header(out)["summary"]["parts"][0]["windows_inferred"] == first.windows_inferred


def test_an_output_begun_as_parts_may_be_completed_by_a_resume_and_the_other_way_round(
    case: Case, tmp_path: Path
) -> None:
    whole = case.run(tmp_path / "whole.zarr")
    done = case.run(tmp_path / "a.zarr", part="2/4")
    rest = case.run(tmp_path / "a.zarr", resume=True)
    assert rest.blocks_written == whole.blocks_written - done.blocks_written
    assert header(tmp_path / "a.zarr")["summary"]["parts"][0]["part"] == "2/4"
    for part in ("2/4", "1/3", "3/3", "2/3"):
        last = case.run(tmp_path / "b.zarr", part=part)
    assert last.complete
    assert chunks(tmp_path / "a.zarr") == chunks(tmp_path / "b.zarr") == chunks(whole.out)


def test_surplus_parts_say_that_there_is_nothing_to_do(case: Case, tmp_path: Path) -> None:
    idle = next(i for i in range(1, 36) if not case.run(tmp_path / "o.zarr", part=f"{i}/35").blocks_planned)
    args = ["--in", case.volume, "--model", case.model, "--output", "logits", "--part", f"{idle}/35"]
    said = cli("run", *args, "--out", tmp_path / "o.zarr", "--json")
    assert said.code == 0
    assert f"part {idle}/35 has nothing to do: there are only 32 blocks" in said.err
    assert said.json["windows_planned"] == said.json["blocks_planned"] == 0
    assert not said.json["complete"]
    plan = cli("plan", *args, "--json").json
    assert any("nothing to do" in note for note in plan["notes"])


def test_plan_shows_a_part(case: Case, tmp_path: Path) -> None:
    args = ["--in", case.volume, "--model", case.model, "--output", "logits"]
    parts = [cli("plan", *args, "--part", f"{i}/4", "--json").json for i in range(1, 5)]
    whole = cli("plan", *args, "--json").json
    assert {p["digest"] for p in parts} == {whole["digest"]}
    assert sum(p["blocks_planned"] for p in parts) == whole["blocks_planned"]
    assert sum(p["windows_planned"] for p in parts) > whole["windows_planned"]
    result = case.run(tmp_path / "o.zarr", part="3/4")
    assert (result.windows_planned, result.blocks_planned) == (parts[2]["windows_planned"], parts[2]["blocks_planned"])


# --- at the same time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", share([2, 3]))
def test_parts_begun_at_once_make_one_output_and_one_of_them_completes_it(case: Case, tmp_path: Path, n: int) -> None:
    out = tmp_path / "out.zarr"
    processes = [begin(*case.args(out, "--part", f"{i}/{n}", "--json", threads=i)) for i in range(1, n + 1)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * n, said
    facts = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert any(f["complete"] for f in facts)
    assert sum(f["blocks_written"] for f in facts) == 32
    assert chunks(out) == chunks(case.run(tmp_path / "whole.zarr", model=case.slow).out)
    assert only_the_result_is_left(out)
    assert header(out)["complete"]
    assert len(header(out)["summary"]["parts"]) == n


def test_a_part_killed_and_run_again(case: Case, tmp_path: Path) -> None:
    """Meanwhile `finish` tells what is missing, and the other parts go on."""
    out = tmp_path / "out.zarr"
    process = begin(*case.args(out, "--part", "1/2"))
    wait_for_blocks(out, process, 3)
    process.kill()
    process.communicate()
    had = len(marked(out))
    other = command(*case.args(out, "--part", "2/2", "--json"))
    assert other.code == 0, other.err
    assert not other.json["complete"]
    assert f"unet-engine finish {out}" in other.err
    said = cli("finish", out)
    assert said.code == OutputError.exit_code
    assert f"lacks {16 - had} of 32 blocks, the first is (" in said.error
    assert "these parts have not finished: 1/2; run them again, e.g. with --part 1/2" in said.error
    again = command(*case.args(out, "--part", "1/2", "--json"))
    assert again.json["blocks_written"] == 16 - had
    assert again.json["complete"]
    assert only_the_result_is_left(out)
    assert chunks(out) == chunks(case.run(tmp_path / "whole.zarr", model=case.slow).out)


@pytest.mark.slow
def test_who_may_write_beside_a_part_and_who_may_not(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    process = begin(*case.args(out, "--part", "1/2"))
    wait_for_blocks(out, process)
    process.send_signal(signal.SIGSTOP)  # or a busy machine may let it end before the others begin
    twice = cli(*case.args(out, "--part", "1/2"))
    assert twice.code == OutputError.exit_code
    assert f"part 1/2 of {out} is being run already" in twice.error
    for option in ("--resume", "--overwrite"):
        whole = cli(*case.args(out, option))
        assert whole.code == OutputError.exit_code
        assert "is being written by another run" in whole.error
    process.send_signal(signal.SIGCONT)
    assert process.poll() is None, "it was over before the others were refused"
    other_count = command(*case.args(out, "--part", "3/3"))
    assert other_count.code == 0, "a part of another number of parts may write the same blocks"
    assert process.wait() == 0
    assert command(*case.args(out, "--part", "2/2")).code == 0
    assert header(out)["complete"]
    assert chunks(out) == chunks(case.run(tmp_path / "whole.zarr", model=case.slow).out)


def test_a_part_waits_in_vain_for_a_whole_run(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_engine.output.locks.PATIENCE", 0.2)
    out = tmp_path / "out.zarr"
    process = begin(*case.args(out))
    wait_for_blocks(out, process)
    said = cli(*case.args(out, "--part", "1/2"))
    assert said.code == OutputError.exit_code
    assert "is being written by another run, of all parts" in said.error
    assert "is being written by another run" in cli("finish", out).error or "lacks" in cli("finish", out).error
    process.kill()
    process.communicate()


def test_a_part_of_another_run_is_refused(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    case.run(out, part="1/2")
    with pytest.raises(ResumeError, match="model"):
        case.run(out, part="2/2", model=case.slow)
    with pytest.raises(ResumeError, match="output"):
        case.run(out, part="2/2", output="labels")


# --- the end ----------------------------------------------------------------------------------------------------------


def test_finish_completes_what_is_all_there(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill between the last block and the end."""
    out = tmp_path / "out.zarr"
    case.run(out, part="1/2")
    with monkeypatch.context() as patch:
        patch.setattr(Header, "finish", lambda *_: None)
        case.run(out, part="2/2")
    assert not header(out)["complete"]
    said = cli("finish", out, "--json")
    assert said.code == 0
    assert said.json["complete"]
    assert said.json["blocks"] == said.json["blocks_written"] == 32
    assert "complete, 32 blocks by 2 parts, " in said.err
    assert header(out)["complete"]
    assert only_the_result_is_left(out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    again = cli("finish", out, "--json")
    assert (again.code, again.json) == (0, said.json)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_finish_after_a_run_that_was_stopped(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    process = begin(*case.args(out))
    wait_for_blocks(out, process)
    process.terminate()
    process.communicate()
    said = cli("finish", out)
    assert said.code == OutputError.exit_code
    assert re.search(
        r"lacks \d+ of 32 blocks, the first is \(.*\); run the same command again with --resume", said.error
    )


def test_finish_names_parts_that_nobody_began(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    case.run(out, part="2/12")
    said = cli("finish", out)
    assert "not finished: 1/12, 3/12, 4/12, 5/12, 6/12, 7/12, 8/12, 9/12 and 3 more; run them again" in said.error


def test_finish_of_what_is_no_output_of_ours(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "theirs.zarr").create_array("0", data=np.ones((3, 3, 3)))
    (tmp_path / "file").write_text("x")
    for name, words in (
        ("nowhere.zarr", "does not exist"),
        ("theirs.zarr", "not an output"),
        ("file", "not an output"),
    ):
        said = cli("finish", tmp_path / name)
        assert said.code == OutputError.exit_code
        assert words in said.error
        assert "Traceback" not in said.err


LAYOUT = Layout("zyx", "zyx", (8, 8, 8), (4, 4, 4), None, "uint8", (1.0,) * 3, (0.0,) * 3, None, ("a",))
FACTS = {"identity": {"model": "a"}, "blocks": [[[0, 2]], [[0, 2]], [[0, 1]]]}


def at_once(n: int, work: Callable[[int], Any]) -> list[Any]:
    """What n threads get from `work`, or what they raise."""
    barrier = threading.Barrier(n)

    def begin_together(i: int) -> Any:
        barrier.wait()
        try:
            return work(i)
        except Exception as error:
            return error

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(begin_together, range(n)))


@pytest.mark.parametrize("attempt", range(10))
def test_of_parts_that_end_together_one_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    out = str(tmp_path / "out.zarr")
    output = Output.create(out, LAYOUT, "d", FACTS)
    blocks = list(itertools.product((0, 1), (0, 1), (0,)))
    completed, finish = [], Header.finish

    def counted(header: Header, summary: Any) -> None:
        completed.append(threading.get_ident())
        finish(header, summary)

    monkeypatch.setattr(Header, "finish", counted)

    def part(i: int) -> bool:
        with hold(out, (i + 1, 4)) as holding:
            if not output.header.begin():
                return True
            output.mark(blocks[i])
            output.header.journal.note((i + 1, 4), {"finished": True})
            return conclude(output.header, holding)

    ended = at_once(4, part)
    assert all(isinstance(e, bool) for e in ended), ended
    assert any(ended)
    assert len(completed) == 1
    assert header(out)["complete"]
    assert len(header(out)["summary"]["parts"]) == 4
    assert {p.name for p in Path(out, "0").iterdir()} == {"zarr.json"}


@pytest.mark.parametrize("attempt", range(5))
def test_of_different_runs_begun_at_once_on_one_output_one_wins(tmp_path: Path, attempt: int) -> None:
    out = str(tmp_path / "out.zarr")
    made = at_once(6, lambda i: Output.create(out, LAYOUT, f"d{i % 2}", {**FACTS, "identity": {"model": i % 2}}))
    winner = header(out)["identity"]["model"]
    for i, result in enumerate(made):
        assert isinstance(result, Output if i % 2 == winner else ResumeError), result
    assert {p.name for p in Path(out).iterdir()} == {"zarr.json", "0"}
    assert result_of(out).shape == (8, 8, 8)


def test_file_systems_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    Output.create(str(tmp_path / "out.zarr"), LAYOUT, "d", FACTS)
    assert not header(tmp_path / "out.zarr")["complete"]


def test_file_systems_without_locks_will_do(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    for i in (1, 2, 3):
        result = case.run(tmp_path / "out.zarr", part=f"{i}/3")
    assert result.complete
    assert only_the_result_is_left(tmp_path / "out.zarr")


@given(st.sets(st.integers(0, 30), min_size=1))
def test_indices_are_kept_as_spans(indices: set[int]) -> None:
    kept = spans(sorted(indices))
    assert [j for lo, hi in kept for j in range(lo, hi)] == sorted(indices)
    assert all(b[0] > a[1] for a, b in itertools.pairwise(kept))
