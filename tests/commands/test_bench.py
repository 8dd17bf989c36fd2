"""`unet-engine bench`: it measures in turn, finds the best within its time, proposes only what is proved, and says what
it did."""

import itertools
import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import unet_engine
from support.command_line import cli, environment
from support.paths import BENCHMARKS
from support.volumes import fake_model, make_volume
from unet_engine.backends.libraries import library, record
from unet_engine.commands.bench import offer, peak
from unet_engine.commands.bench.command import Request, own_subject
from unet_engine.commands.bench.meter import Meter, machine_limits
from unet_engine.commands.bench.offer import Wanted, allowed, runnable, setup_of, space_of
from unet_engine.commands.bench.page import page
from unet_engine.commands.bench.search import LEAST, Space, search
from unet_engine.commands.bench.space import Configuration, Field, Group, region
from unet_engine.commands.bench.sweep import options_of
from unet_engine.errors import UnetEngineError
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model
from unet_engine.model.verdict import Calibration, Figures, Thresholds, Verdict
from unet_engine.plan.box import Box
from unet_engine.profiling import charts
from unet_engine.units import times

CPU = Group("cpu", "openvino", "fp32")
SPEC = open_model(shipped_model("cells_3d.onnx")).spec
PLANE_SPEC = open_model(shipped_model("cells_2d.onnx")).spec


def verdict(model, window=None, *, passed=True):
    """That bf16 of a model on OpenVINO passed, or not, here."""
    figures = Figures(
        windows=4,
        voxels=100,
        nonfinite=0,
        max_error=0.01,
        mean_error=0.001,
        agreement=1.0,
        classes=("a",),
        dice=(1.0,),
        lost=(),
        one_class=False,
    )
    return Verdict(
        precision="bf16", backend="openvino", library=library("openvino", "cpu"), model=model.sha256, network=None,
        rest="fp32",
        window=window or model.spec.window, normalization=str(model.spec.normalization), passed=passed, emulated=False,
        reason="as told",
        figures=figures, thresholds=Thresholds(dice=0.999),
        calibration=Calibration(
            volume="v", fingerprint="f", windows=4, held_out=4, seed=0, quantiles=((0, 1, 2, 3, 4),)
        ),
        seconds_per_window=1.0, fp32_seconds_per_window=2.0,
    )  # fmt: skip


# --- what there is to try ---


@given(st.sampled_from([SPEC, PLANE_SPEC]), st.lists(st.integers(20, 600), min_size=3, max_size=3))
def test_windows_to_try_are_taken_by_the_model_and_fit_the_volume(spec, shape):
    where = Field(spec, tuple(shape[: len(spec.axes)]))
    tried = [*where.ladder(), *where.finer()]
    assert where.ladder()
    for window in tried:
        spec.check_window(window)
        if window != spec.window:
            assert all(w <= size for w, size in zip(window, where.shape, strict=True))


def test_windows_are_counted_as_a_run_counts_them(ramp, model):
    spec = open_model(model).spec
    for window in ((8, 8, 8), (12, 12, 12), (8, 12, 16)):
        plan = unet_engine.make_plan(ramp[1], model=model, window=window)
        assert Field(spec, ramp[0].shape).windows(window) == plan.window_range.size


def test_every_pose_of_a_window_is_counted():
    spec, plain = PLANE_SPEC.model_copy(update={"mirror_axes": "yx"}), open_model(shipped_model("cells_2d.onnx"))
    model = replace(plain, spec=spec)
    alone, mirrored = (Field.of(model, (900, 900), 0.5, tta) for tta in ("none", None))
    assert mirrored.windows(spec.window) == alone.windows(spec.window)
    assert mirrored.rate(spec.window, 8.0) == alone.rate(spec.window, 8.0) / 4
    turned, (side, _), step = Field.of(model, (900, 900), 0.5, "turns"), spec.window, spec.window_step[1]
    assert turned.fits((side, side))
    assert alone.fits((side, side + step))
    assert not turned.fits((side, side + step))
    both = Field.of(open_model(f"{plain.path},{plain.path}"), (900, 900), 0.5, "none")
    assert both.rate(spec.window, 8.0) == alone.rate(spec.window, 8.0) / 2


def test_planes_of_a_volume_count_for_a_network_in_2d(tmp_path):
    volume = make_volume(tmp_path / "scan.zarr", np.ones((5, 40, 40), np.uint8))
    model = fake_model(tmp_path, axes="yx")
    plan = unet_engine.make_plan(volume, model=model)
    assert Field(open_model(model).spec, (5, 40, 40)).windows((8, 8)) == plan.window_range.size


@given(st.lists(st.integers(64, 700), min_size=3, max_size=3), st.integers(1, 500))
def test_a_region_takes_about_as_many_windows_as_asked(shape, wanted):
    where, window = Field(SPEC, tuple(shape)), (64, 64, 64)
    box = region(where, window, wanted)
    assert all(0 < h <= s for h, s in zip(box.hi, shape, strict=True))
    needed = math.prod(len(a.meeting(0, h)) for a, h in zip(where.axes(window), box.hi, strict=True))
    assert needed >= min(0.75 * wanted, where.windows(window))
    assert needed <= max(1, 2 * wanted)  # an axis of two windows cannot lose less than half


# --- the search ---


def surface(where, overhead, knee, slope, gain):
    """Windows per second of a made-up network: a cost per call, one per voxel, more of it beyond the cache; batches
    save part of the first."""

    def rate(candidate):
        voxels = math.prod(candidate.window)
        per_voxel = 1e-7 * (1 + slope * max(0.0, math.log2(voxels / knee)))
        return 1 / (overhead * (1 - gain * (1 - 1 / candidate.batch)) + voxels * per_voxel)

    return rate


@given(
    st.floats(0, 0.05), st.floats(2**14, 2**22), st.floats(0, 0.4), st.floats(0, 0.5),
    st.lists(st.integers(150, 900), min_size=3, max_size=3), st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(0.03, 2**16, 0.3, 0.3, [192, 384, 384], 0)
@example(0.03125, 1112321.0, 0.3125, 0.0, [281, 301, 559], 0)  # 104³ lies far below the line between 96³ and 128³
@example(0.035, 482057.0, 0.356, 0.492, [630, 439, 501], 0)  # 80³ in batches of 4, between sizes measured alone
def test_the_choice_is_within_five_percent_of_the_best(overhead, knee, slope, gain, shape, seed):
    """Of all windows and batches there are, on a machine whose figures scatter by one percent."""
    where, noise = Field(SPEC, tuple(shape)), np.random.default_rng(seed)
    truth = surface(where, overhead, knee, slope, gain)
    space = Space((CPU,), where.ladder(), (1, 4), lambda _: True)
    found = search(space, where, lambda c: truth(c) * noise.normal(1, 0.01), lambda: False)
    everything = [Configuration(CPU, w, b) for w in {*where.finer(), *where.ladder()} for b in (1, 4)]
    best = max(where.rate(c.window, truth(c)) for c in everything)
    chosen = found.best()[0]
    assert where.rate(chosen.window, truth(chosen)) >= 0.95 * best
    assert sum(map(len, found.samples.values())) <= len(everything)


def test_within_a_round_all_are_measured_once_and_the_best_most_often():
    where, seen = Field(SPEC, (384, 384, 384)), []
    truth = surface(where, 0.01, 2**16, 0.3, 0.0)

    def measure(candidate):
        seen.append(candidate)
        return truth(candidate)

    found = search(Space((CPU,), where.ladder(), (1,), lambda _: True), where, measure, lambda: False)
    rounds = [len(list(same)) for _, same in itertools.groupby(seen)]
    assert (
        max(rounds) <= 2 or len({*seen[-LEAST:]}) == 1
    )  # two where one round ends and the next begins, more where one is left
    most = max(map(len, found.samples.values()))
    assert len(found.samples[found.best()[0]]) == most >= 3
    assert min(map(len, found.samples.values())) < most


def test_when_time_is_up_every_way_to_compute_was_measured_once():
    where = Field(SPEC, (384, 384, 384))
    ways = tuple(Group("cpu", name, "fp32") for name in ("openvino", "onnxruntime", "pytorch"))
    found = search(Space(ways, where.ladder(), (1, 4), lambda _: True), where, lambda _: 1.0, lambda: True)
    assert {c.group for c in found.samples} == set(ways)
    assert all(len(rates) == 1 for rates in found.samples.values())


def test_what_cannot_run_is_asked_once():
    where, asked = Field(SPEC, (384, 384, 384)), []

    def measure(candidate):
        asked.append(candidate)
        return None if candidate.window[0] > 64 else 1.0

    found = search(Space((CPU,), where.ladder(), (1,), lambda _: True), where, measure, lambda: False)
    assert max(c.window[0] for c in found.samples) <= 64
    large = [c for c in asked if c.window[0] > 64]
    assert len(large) == len(set(large)) > 0


# --- the gate ---


def test_only_what_the_gate_passed_may_be_proposed():
    model = open_model(shipped_model("cells_3d.onnx"))
    fp32, bf16, int8 = (Configuration(Group("cpu", "openvino", p), model.spec.window) for p in ("fp32", "bf16", "int8"))
    assert allowed(model, fp32)
    assert not allowed(model, bf16)
    assert not allowed(model, int8)
    proved = replace(model, verdicts=(verdict(model),))
    assert allowed(proved, bf16)
    assert not allowed(proved, replace(bf16, window=(32, 32, 32)))
    assert not allowed(replace(model, verdicts=(verdict(model, passed=False),)), bf16)


def test_a_window_that_was_proved_is_tried():
    model = open_model(shipped_model("cells_3d.onnx"))
    proved = replace(model, verdicts=(verdict(model, (52, 52, 52)),))
    where = Field(model.spec, (192, 192, 192))
    assert (52, 52, 52) in space_of(proved, where, Wanted()).windows
    assert (52, 52, 52) not in space_of(model, where, Wanted()).windows


def test_int8_without_a_network_is_not_even_tried():
    model = open_model(shipped_model("cells_3d.onnx"))
    assert "int8" not in {g.precision for g in offer.groups(model, Wanted())}


# --- measuring ---


def test_a_configuration_is_measured_in_a_process_of_its_own_and_failures_are_told():
    model = open_model(shipped_model("cells_3d.onnx"))
    good, bad = Configuration(CPU, (16, 16, 16)), Configuration(Group("cpu", "onnxruntime", "bf16"), (16, 16, 16))
    with Meter(lambda c: setup_of(model, Wanted(threads=1), c), least_rate=0.0) as meter:
        meter.load([good, bad])
        assert meter(good) > 0
        assert meter(bad) is None
        assert "does not run bf16" in meter.failed[bad]
        assert meter.peaks[good] > 20e6
        process = meter.held[good].process
        assert process.is_alive()
    assert not process.is_alive()


def test_what_is_too_slow_to_be_run_is_left_out():
    model = open_model(shipped_model("cells_3d.onnx"))
    slow = Configuration(CPU, (16, 16, 16))
    with Meter(lambda c: setup_of(model, Wanted(threads=1), c), least_rate=1e9) as meter:
        assert meter(slow) is None
        assert "too slow" in meter.failed[slow]
    with Meter(lambda c: setup_of(model, Wanted(threads=1), c), least_rate=1e9, own=slow.window) as meter:
        assert meter(slow) > 0


@pytest.mark.slow
def test_the_machine_reaches_something(monkeypatch):
    monkeypatch.setattr(peak, "SECONDS", 0.03)
    assert peak.product_rate("cpu", "fp32", 1) > 1e8
    assert peak.product_rate("cpu", "int4", 1) is None
    monkeypatch.setattr(peak, "COPIED", 2**22)
    assert peak.copy_rate(2) > 1e7
    found = machine_limits("cuda:0", ("fp32",), 1)
    assert found["flops"] == {} or found["flops"]["fp32"] > 0


# --- the command ---


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A sweep of the fake network on a small volume: (what was said, JSON, HTML)."""
    folder = tmp_path_factory.mktemp("bench")
    volume = make_volume(folder / "scan.zarr", np.random.default_rng(0).integers(1, 200, (40, 44, 48), np.uint8))
    model = fake_model(folder, latency_ms=4)
    files = folder / "b.json", folder / "b.html"
    options = ["--seconds", 12, "--batches", 1, "--json", files[0], "--html", files[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_engine.commands.bench.sweep.REPEATS", 2)
        said = cli("bench", "--model", model, "--in", volume, *options)
    assert said.code == 0, said.err
    return said, json.loads(files[0].read_text()), files[1].read_text()


def test_the_table_names_the_best_and_its_command_runs(measured):
    said, facts, _ = measured
    [found] = facts["sweeps"]
    best = found["best"]
    assert re.search(r"fake .*best", said.out)
    assert found["command"] in said.out
    run = cli(*shlex.split(found["command"])[1:], "--out", "out.zarr", "--json")
    assert run.code == 0
    assert best["end_to_end"]["efficiency"]["median"] > 0.1
    scores = [r["end_to_end"]["voxels_per_second"] for r in found["rows"] if r["end_to_end"]]
    assert best["end_to_end"]["voxels_per_second"] == max(scores)


def test_the_figures_fit_one_another(measured):
    [found] = measured[1]["sweeps"]
    where = Field(open_model(found["model"]).spec, tuple(found["shape"]))
    tried = {tuple(r["window"]) for r in found["rows"]}
    told = " ".join(note for note in found["notes"] if "time was up" in note)
    assert all((w in tried) != (times(w) in told) for w in where.ladder())  # a slow machine tries fewer
    for row in [r for r in found["rows"] if r["windows_per_second"]]:  # the others are too slow to be run
        spread = row["windows_per_second"]
        assert spread["least"] <= spread["median"] <= spread["most"]
        assert row["bare_voxels_per_second"] == pytest.approx(where.rate(tuple(row["window"]), spread["median"]))
        assert row["bare_peak_rss_bytes"] > 20e6
        if run := row["end_to_end"]:
            assert run["voxels_per_second"] == pytest.approx(
                row["bare_voxels_per_second"] * run["efficiency"]["median"]
            )
            assert max(held for _, held in run["memory"]) <= run["peak_rss_bytes"] * 1.02
            assert run["stages"]["device"]["network"] > 0


def test_the_page_stands_alone(measured):
    text = measured[2]
    assert text.count("<svg") == 4
    assert not re.search(r"<script|<link|<img|@import|url\(|src=|href=", text)
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    assert page(measured[1]) == text


@pytest.mark.slow
def test_an_unproved_precision_is_measured_and_not_proposed(tmp_path, tiny_onnx):
    """Only bf16 is asked for, and nothing has proved it: there are figures and no proposal, and no run."""
    pytest.importorskip("openvino")
    if "bf16" not in record("openvino").precisions("cpu"):
        pytest.skip("this processor does not compute in bf16")
    volume = make_volume(tmp_path / "scan.zarr", np.ones((32, 32, 32), np.uint8))
    options = [
        "--precision",
        "bf16",
        "--backend",
        "openvino",
        "--windows",
        "16,16,16",
        "--batches",
        "1",
        "--seconds",
        10,
        "--json",
        "-",
    ]
    said = cli("bench", "--model", tiny_onnx, "--in", volume, *options)
    assert said.code == 0, said.err
    [found] = said.json["sweeps"]
    assert found["best"] is None
    assert found["command"] is None
    assert found["rows"][0]["windows_per_second"]["median"] > 0
    assert not any(row["proved"] or row["end_to_end"] for row in found["rows"])
    assert "not proved" in said.err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--model", "none.onnx", "--in", "scan.zarr"], 5, "does not exist"),
        (["--model", "id.fake.toml", "--in", "none.zarr"], 3, "does not exist"),
        (["--model", "id.fake.toml"], 2, "belong together"),
        (["--head", "two"], 2, "--head two: the demo models have one output"),
        (["--seconds", "3"], 2, "too short"),
        (["--model", "id.fake.toml", "--in", "scan.zarr", "--seconds", "2"], 2, "too short"),
        (["--model", "id.fake.toml", "--in", "scan.zarr", "--windows", "9,9,9"], 5, "nearest: 8 or 12"),
        (["--windows", "x"], 2, "--windows"),
        (["--windows", "0,8,8"], 2, "--windows"),
        (["--windows", "64,64", "--windows", "64,64,64"], 2, "--windows"),
        (["--batches", "0"], 2, "--batches"),
        (["--batches", "two"], 2, "--batches"),
        (["--overlap", "1"], 2, "--overlap"),
        (["--threads", "0"], 2, "--threads"),
        (["--backend", "nosuch"], 6, "there is no back end"),
        (["--precision", "fp99"], 2, "--precision"),
        (["--devices", "cuda:77"], 6, "--devices"),
        (["--backend", "onnxruntime", "--precision", "bf16"], 2, "nothing is left to measure"),
        (["--html", "missing/b.html"], 8, "--html"),
        (["--json", "."], 8, "--json"),
    ],
)
def test_bad_input_ends_in_one_line_before_anything_is_measured(ramp, model, monkeypatch, options, code, words):
    monkeypatch.setattr("unet_engine.commands.bench.command._limits", lambda *_: pytest.fail("it began to measure"))
    said = cli("bench", *options)
    assert said.code == code, said.err
    assert words in said.error


def test_the_output_that_is_meant_is_measured_and_is_in_the_command(ramp, tmp_path):
    onnx = pytest.importorskip("onnx")
    image = onnx.helper.make_tensor_value_info("x", 1, [1, 1, 8, 8, 8])
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 1, 8, 8, 8]) for name in ("one", "two")]
    nodes = [onnx.helper.make_node("Neg", ["x"], ["one"]), onnx.helper.make_node("Exp", ["x"], ["two"])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [image], ends), opset_imports=[onnx.helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    onnx.save(model, tmp_path / "two.onnx")
    request = Request(str(tmp_path / "two.onnx"), ramp[1], ignore_spacing=True)
    with pytest.raises(UnetEngineError, match="--head"):
        own_subject(request, print)
    subject = own_subject(replace(request, head="two"), print)
    assert subject.model.rewriting.output == "two"
    assert subject.options[subject.options.index("--head") + 1] == "two"


@pytest.mark.slow
def test_a_scan_of_another_spacing_is_counted_on_the_networks_grid_and_run_on_its_own(tmp_path, monkeypatch):
    """Mirrors and two networks count, too; the region that is run is in voxels of the scan."""
    volume = make_volume(
        tmp_path / "scan.zarr", np.random.default_rng(0).integers(1, 200, (24, 40, 48), np.uint8), axes="zyx", ome="0.5",
        scale=(1.0, 1.0, 1.0), unit="millimeter",
    )  # fmt: skip
    spec = {"spacing": [2.0, 0.5, 1.0], "spacing_unit": "millimeter", "resampling": {}, "mirror_axes": "yx"}
    models = [fake_model(tmp_path, name=name, **spec) for name in "ab"]
    subject = own_subject(Request(",".join(models), volume), print)
    assert subject.volume.shape == (12, 80, 48)
    where = Field.of(subject.model, subject.volume.shape, 0.5, None, subject.scan.shape)
    assert where.calls == 8
    plan = unet_engine.make_plan(volume, model=",".join(models))
    assert (where.windows((8, 8, 8)), where.calls) == (plan.window_range.size, plan.calls)
    assert where.rate((8, 8, 8), 100.0) == 24 * 40 * 48 * 100.0 / plan.call_count
    assert subject.stored_box(Box((0, 0, 0), (6, 40, 48))) == Box((0, 0, 0), (12, 20, 48))
    assert subject.stored_box(Box((0, 0, 0), (12, 80, 48))) == Box((0, 0, 0), (24, 40, 48))
    monkeypatch.setattr("unet_engine.commands.bench.sweep.REPEATS", 1)
    said = cli(
        "bench",
        "--model",
        ",".join(models),
        "--in",
        volume,
        "--seconds",
        30,
        "--batches",
        1,
        "--json",
        tmp_path / "b.json",
    )
    assert said.code == 0, said.err
    [found] = json.loads((tmp_path / "b.json").read_text())["sweeps"]
    assert found["shape"] == [24, 40, 48]
    assert found["best"]["end_to_end"]["voxels_per_second"] > 0


def test_a_run_that_fails_says_why(tmp_path):
    from unet_engine.commands.bench.whole import run_whole

    with pytest.raises(UnetEngineError, match="does not exist"):
        run_whole(["--in", str(tmp_path / "none.zarr"), "--model", "none.onnx"])


# --- charts ---


@pytest.mark.parametrize("log", [False, True])
def test_charts_are_xml_with_every_point_inside(log):
    line = charts.Line("a & b", [(1, 2), (10, 300), (100, 0.5)], [(1, 3), (200, 310), (0.1, 0.6)])
    root = ElementTree.fromstring(charts.lines([line], charts.Axes("x", "y", log_x=log, log_y=log)))
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3
    assert all(70 <= float(c.get("cx")) <= 590 and 14 <= float(c.get("cy")) <= 274 for c in circles)
    ElementTree.fromstring(charts.lines([], charts.Axes("x", "y")))


def test_a_chart_has_room_for_ranges_across_and_round_numbers_on_its_logarithmic_axis():
    line = charts.Line("a", [(1, 30), (18, 60)], across=[(1, 1), (11, 47)], labels=["first", "last"])
    root = ElementTree.fromstring(charts.lines([line], charts.Axes("x", "y", log_x=True, log_y=True, title="both")))
    texts = {e.text: e for e in root.iter() if e.tag.endswith("text")}
    assert {"both", "0.5", "1", "2", "5", "10", "20", "50", "100"} <= set(texts)
    ranges = [e for e in root.iter() if e.tag.endswith("line") and e.get("stroke") == charts.COLOURS[0]]
    widest = max(float(e.get("x2")) for e in ranges if not e.get("stroke-width"))
    assert 500 < widest < 590
    assert texts["last"].get("text-anchor") == "end"
    assert texts["first"].get("text-anchor") == "start"


def test_a_stacked_bar_is_as_long_as_its_parts():
    names = ("a", "b", "waiting")
    root = ElementTree.fromstring(charts.stacked({"one": {"a": 1, "b": 3}, "two": {"waiting": 2.0}}, names, "s"))
    bars = [e for e in root.iter() if e.tag.endswith("rect") and e.get("height") == "26"]
    widths = [float(b.get("width")) for b in bars]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    assert widths[0] + widths[1] == pytest.approx(2 * widths[2], rel=0.01)


# --- the scripts that measure all this ---


@pytest.mark.slow
def test_the_benchmarks_run_at_toy_size(tmp_path):
    folder = BENCHMARKS
    for name, words in (("profile_overhead.py", "profiled ÷ plain"), ("bench_search.py", "chosen ÷ best")):
        command = [sys.executable, str(folder / name), "--quick", "--json", str(tmp_path / "figures.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment(), check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert json.loads((tmp_path / "figures.json").read_text())


def test_a_gpus_batch_is_an_option_of_the_run_and_a_cpus_is_not():
    gpu, cpu = (Group(device, "onnxruntime", "fp32") for device in ("cuda:0", "cpu"))
    for batch in (1, 4):
        assert options_of(Configuration(gpu, (64, 64, 64), batch))[-2:] == ["--batch", str(batch)]
        assert "--batch" not in options_of(Configuration(cpu, (64, 64, 64), batch))
        assert runnable(Configuration(gpu, (64, 64, 64), batch))
    assert runnable(Configuration(cpu, (64, 64, 64), 1))
    assert not runnable(Configuration(cpu, (64, 64, 64), 4))
