"""Where the time goes: every moment of every thread is in exactly one stage, a trace is bounded, and who does not ask
pays nothing."""

import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of
from unet_engine.output.layout import Layout
from unet_engine.output.output import Output
from unet_engine.paths import is_local
from unet_engine.pipeline import host
from unet_engine.plan.box import Box
from unet_engine.profiling import stages, tracing
from unet_engine.profiling.recorder import PLAIN
from unet_engine.profiling.stages import (
    ADD,
    DECODE,
    ENCODE,
    ENCODE_WRITE,
    GATHER,
    OTHER,
    READ,
    READ_DECODE,
    WAITING,
    WRITE,
    Snapshot,
    Stages,
    Track,
    TrackFacts,
)
from unet_engine.volumes.formats import open_volume

LOCAL = {"device", "read", "write"}


@pytest.fixture
def profiled(ramp, model, monkeypatch):
    """A run of 8 blocks with a profile, of a volume that is read by block: (its result, its trace)."""
    monkeypatch.setattr("unet_engine.execution.local.MOST", 0)
    result = unet_engine.run(ramp[1], model=model, out="out.zarr", profile="where", memory=2**40)
    return result, json.loads(Path("where/trace.json").read_text())


def tracks_of(trace):
    """Events by track, outer before inner."""
    found = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            found.setdefault((event["pid"], event["tid"]), []).append(event)
    return found


def outermost(events):
    """The events that no other one contains. Fails where two overlap without one containing the other."""
    kept, open_ = [], []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        begin, end = event["ts"], event["ts"] + event["dur"]
        while open_ and open_[-1] <= begin + 1e-3:
            open_.pop()
        if open_:
            assert end <= open_[-1] + 1e-3, "events overlap"
        else:
            kept.append(event)
        open_.append(end)
    return kept


def check_trace(trace):
    for event in trace["traceEvents"]:
        assert event.keys() >= {"ph", "ts", "dur", "pid", "tid", "name"}
        assert event["ph"] in "XM"
        assert event["ts"] >= 0
        assert event["dur"] >= 0
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "M"}
    assert named >= tracks_of(trace).keys()
    for (pid, _), events in tracks_of(trace).items():
        top = outermost(events)
        for before, after in itertools.pairwise(top):
            assert after["ts"] == pytest.approx(before["ts"] + before["dur"], abs=0.01)
        others = [e for (p, _), es in tracks_of(trace).items() if p == pid for e in es]
        wall = max(e["ts"] + e["dur"] for e in others) - min(e["ts"] for e in others)
        assert sum(e["dur"] for e in top) == pytest.approx(wall, abs=0.1)


def test_a_trace_is_valid_nested_and_adds_up_to_the_wall_time(profiled):
    result, trace = profiled
    check_trace(trace)
    walls = [sum(v for k, v in row.items() if k != "threads") for row in result.stages.values()]
    assert walls == pytest.approx([walls[0]] * len(walls), rel=1e-3)
    assert walls[0] <= result.seconds
    wanted = {
        "normalise and gather",
        "network",
        "halo add",
        "merge",
        "activation",
        "encode",
        "read",
        "decode",
        "waiting",
    }
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "X"} >= wanted
    assert trace["otherData"]["totals"] == result.stages


def test_every_stage_is_on_the_thread_that_does_it(profiled):
    stages_of = profiled[0].stages
    assert stages_of.keys() == LOCAL
    assert stages_of["device"].keys() >= {"normalise and gather", "copy to device", "network", "halo add"}
    assert stages_of["read"].keys() >= {"read", "decode", "waiting"}
    assert stages_of["write"].keys() >= {"activation", "encode", "write", "waiting"}


def test_the_trace_says_the_same_as_the_totals(profiled):
    """Self times of the spans in the trace, by name, are the totals: nothing of so short a run is left out."""
    result, trace = profiled
    spent = {}
    for events in tracks_of(trace).values():
        for event in events:
            inner = sum(
                e["dur"] for e in outermost([
                    e for e in events
                    if e is not event and event["ts"] <= e["ts"]
                    and e["ts"] + e["dur"] <= event["ts"] + event["dur"] + 1e-3
                ])
            )  # fmt: skip
            spent[event["name"]] = spent.get(event["name"], 0) + (event["dur"] - inner) / 1e6
    for name in ("normalise and gather", "network", "halo add", "activation"):
        assert spent[name] == pytest.approx(sum(row.get(name, 0) for row in result.stages.values()), abs=2e-3)


def test_a_profile_changes_no_byte(ramp, model, profiled):
    plain = unet_engine.run(ramp[1], model=model, out="plain.zarr")
    assert plain.stages is None
    assert plain.profile == ()
    assert (result_of("plain.zarr") == result_of("out.zarr")).all()


def test_without_a_profile_a_recorder_that_does_nothing_is_handed_on(ramp, model, monkeypatch):
    seen = []
    made = host.HostPipeline.__init__
    monkeypatch.setattr(host.HostPipeline, "__init__", lambda self, *args: seen.append(args) or made(self, *args))
    monkeypatch.setattr(stages.Stages, "__init__", lambda self: pytest.fail("nobody asked for a profile"))
    unet_engine.run(ramp[1], model=model, out="out.zarr")
    for _, networks, _, recorder, *_ in seen:
        assert recorder is PLAIN
        assert networks
        assert all("backends" in type(network).__module__ for network in networks)
    assert seen
    assert PLAIN.span(ADD) is PLAIN.span(GATHER)  # one context for all: nothing is allocated
    work = [1, 2]
    assert PLAIN.fed(work) is work
    assert not any(PLAIN.takes_apart("read") for _ in range(20))


@pytest.mark.slow
def test_each_worker_of_a_cluster_is_a_process_of_the_trace(tmp_path):
    voxels = np.random.default_rng(1).integers(1, 200, (40, 40, 40), np.uint8)
    volume = make_volume(tmp_path / "scan.zarr", voxels)
    model = fake_model(tmp_path, latency_ms=5)
    said = cli(
        "run",
        "--in",
        volume,
        "--model",
        model,
        "--out",
        "out.zarr",
        "--workers",
        2,
        "--profile",
        "where.json",
        "--json",
    )
    assert said.code == 0, said.err
    trace = json.loads(Path("where.json").read_text())
    check_trace(trace)
    names = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert len(names) == 2
    assert all(name.startswith("tls://") for name in names)
    assert said.json["stages"]["device"]["threads"] == 2
    assert said.json["stages"]["device"]["network"] > 0
    assert said.json["stages"]["tasks"].keys() >= {"read", "decode", "activation", "encode", "write"}
    assert said.json["profile"] == ["where.json", "where.svg"]


def test_the_command_shows_a_table_and_stores_the_totals(ramp, model):
    said = cli("run", "--in", ramp[1], "--model", model, "--out", "out.zarr", "--profile", "--json")
    assert said.code == 0
    assert "normalise and gather" in said.err
    assert "wall time" in said.err
    assert Path("out-profile/stages.svg").read_text().startswith("<svg")
    header = json.loads(Path("out.zarr/zarr.json").read_text())["attributes"]["unet_engine"]["summary"]
    assert header["stages"] == said.json["stages"]
    assert header["stages"].keys() == LOCAL


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [("s3://bucket/trace", 2, "local disk"), ("trace.png", 2, "NAME.json"), ("taken/trace", 8, "cannot be written"),
     (" ", 2, "empty")],
)  # fmt: skip
def test_a_place_that_cannot_be_is_refused_before_the_run(ramp, model, place, code, words):
    Path("taken").write_text("a file")
    said = cli("run", "--in", ramp[1], "--model", model, "--out", "out.zarr", "--profile", place)
    assert said.code == code
    assert words in said.error
    assert not Path("out.zarr").exists()


# --- reading and decoding ---


def reads(path, count=9):
    recorder = Stages()
    volume = open_volume(path)
    box = Box.of_shape(volume.shape)
    for _ in range(count):
        assert (volume.read(box, recorder) == volume.read(box)).all()
    return recorder.track().ns


def test_native_reads_are_taken_apart_by_samples(tmp_path):
    path = make_volume(tmp_path / "a.zarr", np.ones((16, 16, 16), np.uint8))
    ns = reads(path)
    assert ns[READ]
    assert ns[DECODE]
    assert ns[READ_DECODE]
    facts = TrackFacts("read_0", WAITING, tuple(ns))
    seconds = Snapshot(0, 10**12, (facts,)).seconds(facts)
    assert READ_DECODE not in seconds
    assert sum(seconds.values()) == pytest.approx(1000)
    assert seconds[READ] / seconds[DECODE] == pytest.approx(ns[READ] / ns[DECODE])


def test_of_shards_the_sum_is_told(tmp_path):
    path = make_volume(tmp_path / "a.zarr", np.ones((16, 16, 16), np.uint8), chunks=(4, 4, 4), shards=(8, 8, 8))
    ns = reads(path)
    assert ns[READ_DECODE]
    assert not ns[READ]


def test_what_zarr_decodes_itself_is_timed_at_the_store(tmp_path):
    path = make_volume(tmp_path / "a.zarr", np.ones((16, 16, 16), np.uint8), zarr_format=2, order="F")
    assert not open_volume(path).has_native_codecs
    ns = reads(path)
    assert ns[READ]
    assert ns[DECODE]
    assert not ns[READ_DECODE]


# --- encoding and writing ---


def writes(path, count=9):
    recorder, values = Stages(), np.random.default_rng(0).integers(0, 99, (8, 8, 8), np.uint8)
    looks = Layout("zyx", "zyx", (8,) * 3, (4,) * 3, None, "uint8", (1.0,) * 3, (0.0,) * 3, None, ())
    Output.create(path, looks, "d", {"identity": {}, "blocks": [[[0, 1]]] * 3}).header.begin()
    output = Output(path, looks, "d", recorder)
    for _ in range(count):
        output.write(Box.of_shape(values.shape), values)
    assert (result_of(path) == values).all() if is_local(path) else (output.array[...] == values).all()
    return recorder.track().ns


def test_native_writes_are_taken_apart_by_samples_and_leave_nothing_behind(tmp_path):
    ns = writes(str(tmp_path / "o.zarr"))
    assert ns[ENCODE]
    assert ns[WRITE]
    assert ns[ENCODE_WRITE]
    assert not list((tmp_path / "o.zarr").rglob("*.again"))


def test_what_is_sent_to_a_store_is_encoded_first():
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    ns = writes("memory://stages/o.zarr")
    assert ns[ENCODE]
    assert ns[WRITE]
    assert not ns[ENCODE_WRITE]


# --- bookkeeping ---


def spanned(recorder, stage, function, *, begins_block=False):
    """`function`, each call of which is a span, and the beginning of a block."""

    def call():
        with recorder.block(stage) if begins_block else recorder.span(stage):
            return function()

    return call


def test_spans_nest_and_a_stage_gets_its_self_time(monkeypatch):
    now = [0]
    monkeypatch.setattr(stages.time, "perf_counter_ns", lambda: now[0])
    recorder = Stages()
    inner = spanned(recorder, ADD, lambda: passes(20))

    def passes(time):
        now[0] += time

    def outer():
        inner()
        passes(10)
        inner()

    spanned(recorder, GATHER, outer)()
    with recorder.span(OTHER):
        inner()
    ns = recorder.track().ns
    assert (ns[ADD], ns[GATHER], ns[OTHER]) == (60, 10, 0)


def test_a_span_that_fails_ends():
    recorder = Stages()
    with pytest.raises(ZeroDivisionError):
        spanned(recorder, ADD, lambda: 1 / 0)()
    assert recorder.track().ns[ADD]
    assert recorder.track().inside == recorder.track().ns[ADD]


def test_threads_have_tracks_of_their_own_and_those_of_one_name_share_one():
    recorder = Stages()
    work = spanned(recorder, ADD, lambda: None)
    for _ in range(5):
        thread = threading.Thread(target=work, name="read_0")
        thread.start()
        thread.join()
    work()
    names = [track.name for track in recorder.snapshot(100).tracks]
    assert sorted(names) == sorted(["read_0", threading.current_thread().name])
    assert len(recorder.snapshot(100).tracks[0].spans) == 5


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_however_long_the_run_a_trace_is_bounded_and_totals_are_exact(groups):
    track, now = Track(), 0
    limit = 1024
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "SPANS", limit)
        patch.setattr(stages, "OF_A_GROUP", limit // 2)
        for size in groups:
            track.next_group()
            for _ in range(size):
                track.add(ADD, now, now + 7)
                now += 7
                assert len(track.spans) <= 4 * limit
    assert track.ns[ADD] == 7 * sum(groups)
    kept = {row[3] for row in zip(*[iter(track.spans)] * 4, strict=True)}
    assert kept <= {g for g in range(len(groups) + 1) if g % track.stride == 0}


def test_what_is_kept_of_a_long_run_is_spread_over_it_and_gaps_are_named():
    track = Track()
    for block in range(20_000):
        track.next_group()
        for k in range(8):
            begin = 1000 * block + 100 * k
            track.add(ADD, begin, begin + 100)
    rows = list(zip(*[iter(track.spans)] * 4, strict=True))
    assert stages.SPANS // 4 <= len(rows) <= stages.SPANS
    assert rows[0][1] < 200_000
    assert rows[-1][1] > 19_000_000
    facts = TrackFacts("MainThread", OTHER, tuple(track.ns), tuple(rows), track.stride)
    trace = tracing.trace({"cpu": Snapshot(0, 20_000_000, (facts,))})
    check_trace(trace)
    gaps = sum(e["dur"] for e in trace["traceEvents"] if e["name"] == tracing.LEFT_OUT)
    assert gaps == pytest.approx(20_000 * (1 - 0.8 / track.stride), rel=0.01)
    assert trace["otherData"]["totals"]["device"]["halo add"] == pytest.approx(0.016)


def test_of_many_workers_each_sends_fewer_spans():
    recorder = Stages()
    work = spanned(recorder, ADD, lambda: None, begins_block=True)
    for _ in range(5000):
        work()
    [facts] = recorder.snapshot(256).tracks
    assert 128 <= len(facts.spans) <= 256
    assert all(group % facts.stride == 0 for *_, group in facts.spans)
    assert facts.ns == tuple(recorder.track().ns)
    [alone] = recorder.snapshot(1).tracks
    assert len(alone.spans) <= 1
    assert recorder.snapshot().tracks[0].spans == ()


def test_a_trace_is_written_as_it_is_made(tmp_path):
    recorder = Stages()
    spanned(recorder, ADD, lambda: None)()
    processes = {"cpu": recorder.snapshot(10)}
    place = tracing.Place.of(str(tmp_path / "t.json"), "out.zarr")
    assert not place.trace.exists()
    place.write(processes)
    assert json.loads(place.trace.read_text()) == json.loads(json.dumps(tracing.trace(processes)))


def test_snapshots_travel():
    recorder = Stages()
    spanned(recorder, ADD, lambda: None)()
    snapshot = recorder.snapshot()
    assert stages.from_dict(json.loads(json.dumps(stages.as_dict(snapshot)))) == snapshot
