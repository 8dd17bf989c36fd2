"""Windows at once and threads for each: what is faster and gives the same bytes is taken, measured once, and told."""

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.untrained import untrained
from support.volumes import fake_model, make_volume, result_of
from unet_engine import cores, machine
from unet_engine.backends.base import Backend, Setup
from unet_engine.backends.libraries import open_backend
from unet_engine.model.file import open_model
from unet_engine.prepare import streams
from unet_engine.prepare.streams_choice import Timed, fastest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

USUAL = Timed(threads=16, window_threads=1, same=True, relative=1.0, worst=1.0)


def share(threads, each, worst, *, same=True):
    return Timed(threads=threads, window_threads=each, same=same, relative=worst, worst=worst)


# --- which there are, and which is taken ---


@pytest.mark.parametrize(
    ("count", "whole", "nodes", "library", "found"),
    [
        (1, 1, [1], "openvino", []),
        (2, 2, [2], "openvino", [(1, 2)]),
        (2, 2, [2], "onnxruntime", []),  # each of its calls has one thread
        (4, 2, [4], "onnxruntime", [(2, 1)]),  # two threads of each core
        (8, 8, [8], "openvino", [(4, 2), (2, 4), (1, 8)]),
        (8, 4, [8], "openvino", [(4, 1), (4, 2), (2, 2), (2, 4), (1, 4), (1, 8)]),
        (16, 16, [8, 8], "openvino", [(8, 2), (4, 4), (2, 8)]),  # no window is shared by two nodes
        (6, 6, [6], "openvino", [(3, 2), (1, 4)]),
        (64, 64, [16] * 4, "pytorch", [(32, 2), (16, 4), (8, 8), (4, 16)]),
    ],
)
def test_shares_of_the_same_cores(monkeypatch, count, whole, nodes, library, found):
    monkeypatch.setattr(cores, "whole", lambda: whole)
    monkeypatch.setattr(cores, "nodes", lambda: [frozenset(range(n)) for n in nodes])
    assert [(s.threads, s.window_threads) for s in streams.candidates(count, library)] == found


@pytest.mark.parametrize(
    ("timed", "windows", "taken"),
    [
        ([share(8, 2, 0.9)], 10_000, (8, 2)),
        ([share(8, 2, 0.98)], 10_000, (16, 1)),  # as good as the same
        ([share(8, 2, 0.9, same=False)], 10_000, (16, 1)),
        ([share(8, 1, 0.8), share(8, 2, 0.9)], 10_000, (8, 1)),  # threads of one core are in each other's way
        ([share(8, 2, 1.1), share(2, 8, 1.4)], 10_000, (16, 1)),
        ([share(8, 2, 1.1), share(2, 8, 1.4)], 8, (8, 2)),  # a thread for each would leave half of the cores idle
        ([share(8, 2, 1.1), share(2, 8, 1.4)], 2, (2, 8)),
        ([share(8, 2, 1.1), share(2, 8, 1.4)], 16, (16, 1)),
        ([], 3, (16, 1)),
    ],
)
def test_the_fastest_for_so_many_windows(timed, windows, taken):
    best = fastest(timed, USUAL, windows)
    assert (best.threads, best.window_threads) == taken


# --- runs ---


@pytest.fixture(autouse=True)
def two_cores(tmp_path, monkeypatch):
    """Nothing is known, and what a share takes is said by the test."""
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "cpu_count", lambda: 2)
    monkeypatch.setattr(cores, "whole", lambda: 2)
    monkeypatch.setattr(streams, "BUDGET", 1e9)
    monkeypatch.setattr(streams, "REOPENING", 0.0)


@pytest.fixture
def takes(monkeypatch):
    """A function that says what windows take with two threads each; and which were timed."""
    order = []

    def pretend(relative):
        def seconds(host, count):
            order.append((host.setup.threads, host.setup.window_threads))
            return relative if host.setup.window_threads == 2 else 1.0

        monkeypatch.setattr(streams, "_seconds", seconds)
        return order

    return pretend


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    noise = np.random.default_rng(0).normal(size=(40, 32, 32)).astype(np.float32)
    return make_volume(folder / "scan.zarr", noise, chunks=(16, 16, 16)), folder


@pytest.fixture(scope="module")
def models(scene):
    return {norm: untrained(scene[1], 32, norm, norm=norm, base=4) for norm in ("batch", "instance")}


def run(scene, model, out, **options):
    return unet_engine.run(
        scene[0], model=model, out=str(out), backend="openvino", precision="fp32", output="logits", device="cpu",
        **options,
    )  # fmt: skip


def test_what_is_faster_is_taken_measured_once_and_told(scene, models, takes, tmp_path):
    order, model = takes(0.5), models["batch"]
    usual = run(scene, model, tmp_path / "usual.zarr", threads=2)
    assert order == []
    assert usual.streams_choice["reason"] == "as it was asked for"
    first = run(scene, model, tmp_path / "first.zarr")
    choice = first.streams_choice
    assert (choice["threads"], choice["window_threads"]) == (1, 2)
    assert order[:4] == [(2, 1), (1, 2)] * 2, "in turn"
    assert "1×2 takes 0.50 of the time" in choice["reason"]
    count = len(order)
    again = run(scene, model, tmp_path / "again.zarr")
    assert again.streams_choice["reason"].startswith("measured before")
    assert (again.streams_choice["threads"], len(order)) == (1, count)
    for other in (first, again):
        assert other.digest == usual.digest
        np.testing.assert_array_equal(result_of(other.out), result_of(usual.out))
    said = cli("info", "--json", model)
    assert said.json["streams"] == ["windows of 32×32×32: 1×2 takes 0.50 of the time"]
    said = cli("plan", "--in", scene[0], "--model", model, "--backend", "openvino", "--precision", "fp32")
    assert "1 window at a time, 2 threads each, on 2 core(s): measured before" in " ".join(said.out.split())


def test_what_is_slower_is_left(scene, models, takes, tmp_path):
    takes(1.2)
    choice = run(scene, models["batch"], tmp_path / "o.zarr").streams_choice
    assert (choice["threads"], choice["window_threads"]) == (2, 1)
    assert choice["timed"][0]["relative"] == 1.2


def test_other_cores_are_measured_anew(scene, models, takes, tmp_path, monkeypatch):
    order = takes(0.5)
    run(scene, models["batch"], tmp_path / "a.zarr")
    count = len(order)
    monkeypatch.setattr(cores, "model_name", lambda: "another processor")
    run(scene, models["batch"], tmp_path / "b.zarr")
    assert len(order) == 2 * count


def test_threads_that_give_other_bytes_are_never_taken(scene, models, takes, tmp_path, monkeypatch):
    order, model = takes(0.1), models["batch"]
    infer = Backend.infer
    monkeypatch.setattr(Backend, "infer", lambda self, batch: infer(self, batch) + self.setup.window_threads)
    choice = run(scene, model, tmp_path / "o.zarr").streams_choice
    assert (choice["threads"], choice["window_threads"]) == (2, 1)
    assert order == [], "not even timed"
    assert "would give other bytes" in choice["reason"]


def test_a_short_run_measures_nothing(scene, models, takes, tmp_path, monkeypatch):
    order = takes(0.1)
    monkeypatch.setattr(streams, "BUDGET", 0.03)
    choice = run(scene, models["batch"], tmp_path / "o.zarr").streams_choice
    assert (choice["threads"], choice["window_threads"], order) == (2, 1, [])
    assert "of so short a run" in choice["reason"]


def test_a_network_is_not_opened_again_for_little(scene, models, takes, tmp_path, monkeypatch):
    """What was found is known to the next run, which opens it so at once."""
    takes(0.5)
    monkeypatch.setattr(streams, "REOPENING", 1e9)
    runs = [run(scene, models["batch"], tmp_path / f"{n}.zarr") for n in range(2)]
    assert [r.streams_choice["window_threads"] for r in runs] == [1, 2]
    assert runs[0].digest == runs[1].digest


def test_several_volumes_keep_the_network_as_the_first_has_it(scene, models, takes, tmp_path, monkeypatch):
    takes(0.5)
    opened = []
    monkeypatch.setattr("unet_engine.backends.opening.open_backend", lambda name, setup: (
        opened.append((setup.threads, setup.window_threads)), open_backend(name, setup))[1])  # fmt: skip
    other = make_volume(tmp_path / "other.zarr", np.ones((32, 32, 40), np.float32), chunks=(16, 16, 16))
    said = cli("run", "--in", scene[0], other, "--model", models["batch"], "--out", tmp_path / "out" / "{stem}.zarr",
               "--backend", "openvino", "--precision", "fp32", "--device", "cpu")  # fmt: skip
    assert said.code == 0, said.err
    assert opened == [(2, 1), (1, 2), (1, 2)], "the usual, the one timed beside it, and what is taken"


# --- asked for ---


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_threads_that_were_asked_for_name_the_run_where_bytes_are_others(scene, models, tmp_path, norm):
    plain = run(scene, models[norm], tmp_path / "plain.zarr", threads=2)
    asked = run(scene, models[norm], tmp_path / "asked.zarr", window_threads=2)
    assert (asked.streams_choice["threads"], asked.streams_choice["window_threads"]) == (1, 2)
    same = np.array_equal(result_of(asked.out), result_of(plain.out))
    assert (asked.digest == plain.digest) == same
    assert any("--window-threads 2" in note for note in asked.plan_notes) != same
    if norm == "batch":
        assert same
    other = "--json", "--in", scene[0], "--model", models[norm], "--backend", "openvino", "--precision", "fp32"
    assert cli("plan", *other, "--output", "logits", "--window-threads", 2).json["digest"] == asked.digest


@pytest.mark.parametrize("name", ["onnxruntime", "fake"])
def test_a_library_with_one_thread_for_each_window_refuses_more(scene, models, tmp_path, name):
    pytest.importorskip("onnxruntime")
    model = models["batch"] if name == "onnxruntime" else fake_model(tmp_path)
    said = cli("plan", "--in", scene[0], "--model", model, "--backend", name, "--window-threads", 2)
    assert said.code == 6, said.err
    assert f"--window-threads 2: {name} infers each window with one thread here; leave it out" in said.err


def test_on_a_gpu_there_are_none(scene, tmp_path):
    said = cli("plan", "--in", scene[0], "--model", fake_model(tmp_path), "--device", "simulated",
               "--window-threads", 2)  # fmt: skip
    assert said.code == 6, said.err
    assert "--window-threads 2 is for the CPU, and simulated infers; leave it out" in said.err


# --- which of them keep bytes ---


@pytest.mark.parametrize(
    ("library", "norm", "precision"),
    [
        ("openvino", "batch", "fp32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("openvino", "none", "fp32"), ("openvino", "batch", "bf16"), ("pytorch", "batch", "fp32"))
        ),
    ],
)
def test_convolutions_and_batchnorm_give_the_same_bytes_for_any_threads(tmp_path, library, norm, precision):
    """What is free to be chosen is so because of this; for each network it is looked at again before it is."""
    from unet_engine.backends.libraries import record

    if precision not in record(library).precisions("cpu"):
        pytest.skip(f"this processor does not compute in {precision}")
    model = open_model(untrained(tmp_path, 32, norm=norm, base=8), None)
    answers = set()
    for threads in (1, 2, 4):
        network = open_backend(library, Setup(model, (32, 32, 32), window_threads=threads, precision=precision))
        answers.add(network.infer(streams.noise(network.setup)).tobytes())
        network.close()
    assert len(answers) == 1
