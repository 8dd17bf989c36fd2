"""What surrounds a GPU: the cores next to it, voxels read fast enough, and the script that checks it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import unet_engine
from support.command_line import cli, environment
from support.paths import BENCHMARKS
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine import machine
from unet_engine.cluster import affinity, worker_preload
from unet_engine.devices import opening
from unet_engine.devices.simulated import SimulatedDevice
from unet_engine.errors import BackendError
from unet_engine.model.shipped import shipped_model
from unet_engine.prepare import decoding
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings

# --- cores ---


class NvmlError(Exception):
    pass


def nvml(words: list[int], *, fails: bool = False) -> Any:
    """NVML with two GPUs whose cores `words` names."""

    def affinity_of(handle: str, size: int) -> list[int]:
        if fails:
            raise NvmlError("not supported")
        return words[:size]

    return SimpleNamespace(
        NVMLError=NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda i: f"GPU-{i}",
        nvmlDeviceGetHandleByUUID=lambda u: u,
        nvmlDeviceGetCpuAffinity=affinity_of,
    )


def test_the_cores_of_the_mask_are_those_next_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setitem(sys.modules, "pynvml", nvml([0b1010, 1 << 63]))
    assert affinity.cores_near("0") == {1, 3, 127}
    assert affinity.cores_near("GPU-5f") == {1, 3, 127}
    monkeypatch.setitem(sys.modules, "pynvml", nvml([0b1], fails=True))
    assert affinity.cores_near("0") == frozenset()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert affinity.cores_near("0") == frozenset()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_worker_stays_near_its_gpu_and_among_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, chosen = {2, 3, 9}, []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: chosen.append(set(cores)))
    monkeypatch.setitem(sys.modules, "pynvml", nvml([0b1110]))
    monkeypatch.setenv(worker_preload.GPUS, "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    worker = SimpleNamespace(name="job-1", http_server=SimpleNamespace(stop=lambda: None))
    worker_preload.dask_setup(worker)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert chosen == [{2, 3}]
    monkeypatch.setitem(sys.modules, "pynvml", nvml([0b10000]))
    worker_preload.dask_setup(worker)
    assert chosen == [{2, 3}], "cores it may not use are no choice"


# --- what is missing ---


def test_a_gpu_without_the_cuda_module_is_noted_and_an_error_under_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = make_volume(tmp_path / "v.zarr", np.ones((64, 64, 64), np.uint8))
    options = {
        "input": volume,
        "model": str(shipped_model("cells_3d.onnx")),
        "device": "cuda",
        "backend": "onnxruntime",
    }
    monkeypatch.setattr(machine, "gpu_count", lambda: 1)
    monkeypatch.setattr("unet_engine.backends.opening.unreachable", lambda: "")
    monkeypatch.setattr(
        "unet_engine.backends.opening.missing", lambda: "unet-engine was built without CUDA; reinstall it"
    )
    found = survey(Settings.of(**options))
    assert "windows are cut and stitched on the CPU: unet-engine was built without CUDA; reinstall it" in found.notes
    with pytest.raises(BackendError, match="--strict: windows are cut"):
        survey(Settings.of(**options, strict=True))
    monkeypatch.setattr("unet_engine.backends.opening.unreachable", lambda: "cuda-core is not installed; run: pip")
    with pytest.raises(BackendError, match=r"^cuda:0: cuda-core is not installed; run: pip, or use --device cpu$"):
        survey(Settings.of(**options))


def test_windows_are_inferred_on_a_gpu_without_the_cuda_module_and_stitched_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as on the CPU, by the ring that every network on a device can be put behind."""
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(4).integers(0, 99, (40, 24, 30)).astype(np.int16))
    model = fake_model(tmp_path, window=(16, 16, 16), channels_out=2, activation="softmax", margin=(2, 2, 2))
    options = {"model": model, "output": "probabilities"}
    on_cpu = unet_engine.run(volume, out=str(tmp_path / "cpu.zarr"), **options)
    device = SimulatedDevice()
    monkeypatch.setattr(machine, "gpu_count", lambda: 1)
    monkeypatch.setattr("unet_engine.backends.opening.unreachable", lambda: "")
    for place in ("backends.opening", "devices.opening"):
        monkeypatch.setattr(f"unet_engine.{place}.missing", lambda: "unet-engine was built without CUDA")
    monkeypatch.setattr("unet_engine.backends.libraries.open_device", lambda name: device)
    on_gpu = unet_engine.run(volume, gpus=1, out=str(tmp_path / "gpu.zarr"), **options)
    np.testing.assert_array_equal(result_of(on_gpu.out), result_of(on_cpu.out))
    assert device.counts["fake network"] > 8
    assert not device.counts["gather"]
    assert not device.living


@pytest.mark.skipif(machine.gpu_count() > 0, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(BackendError, match=r"^cuda:0: "):
        opening.open_device("cuda:0")


# --- reading ---


@pytest.mark.parametrize(
    ("needed", "found", "cores", "threads"),
    [(1.0, 16.0, 16, 2), (1e9, 1e9, 16, 16), (8.0, 16.0, 16, 12), (1e-9, 1.0, 4, 1)],
)
def test_as_many_threads_decode_as_the_rates_ask_for(needed: float, found: float, cores: int, threads: int) -> None:
    assert decoding.threads_for(needed * 1e9, found * 1e9, cores) == threads


def test_the_need_is_windows_per_second_times_new_voxels(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "v.zarr", np.zeros((64, 64, 64), np.int16), chunks=(16, 16, 16))
    model = fake_model(tmp_path, window=(16, 16, 16), window_min=(8, 8, 8))
    from unet_engine.prepare.prepare import prepare

    found = survey(Settings.of(input=volume, model=model, device="simulated", out=str(tmp_path / "o.zarr")))
    plan = prepare(found).job.plan
    one = decoding.needed(plan, found.volume, 0.01, 1)
    block = np.prod([min(b, a.count) for b, a in zip(plan.block, plan.axes, strict=True)])
    assert one >= 100 * 2 * 8**3, "at least the new voxels of each window: a stride of 8, two bytes each"
    assert one <= 100 * 2 * 64**3 / block
    assert decoding.needed(plan, found.volume, 0.005, 2) == pytest.approx(4 * one)
    assert decoding.found(plan, found.volume, found.volume.read) > 0


def test_the_plan_prints_rates_and_device_memory(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "v.zarr", np.ones((40, 40, 40), np.uint8))
    model = fake_model(tmp_path, channels_out=2, activation="softmax")
    options = ("plan", "--in", volume, "--model", model, "--device", "simulated")
    said = cli(*options)
    assert said.code == 0, said.err
    assert "GB/s needed" in said.out + said.err
    assert "of its memory: network" in said.out + said.err
    facts = cli(*options, "--json").json
    assert facts["reading"]["threads"] <= machine.cpu_count()
    assert facts["device_memory"]["sums"] > 0
    assert cli("plan", "--in", volume, "--model", model, "--device", "cpu", "--json").json["reading"] is None


# --- the script ---


def check(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment(), check=False)


@pytest.mark.skipif(machine.gpu_count() > 0, reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_exits_with_its_code(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 3
    assert "no CUDA GPU on this machine" in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    assert check(tmp_path, "--only", "dreams").returncode == 2
    assert "is no folder" in check(tmp_path, "--wheels", "nowhere").stderr


@pytest.mark.slow
def test_it_writes_both_reports_and_says_what_could_not_run(tmp_path: Path) -> None:
    done = check(tmp_path, "--simulate", "--only", "build,bandwidth,gpus,tensorrt,decoding")
    assert done.returncode == 4, done.stderr
    report, table = json.loads((tmp_path / "gpu_check.json").read_text()), (tmp_path / "gpu_check.md").read_text()
    assert [part["state"] for part in report["parts"]] == ["not run", "ran", "not run", "not run", "not run"]
    assert len(report["parts"][1]["rows"]) == 1 + 3 * 6
    assert "| gpus | not run | simulated: there is one device |" in table
    rows = {row["what"]: row["value"] for part in report["parts"][2:] for row in part["rows"]}
    assert rows["halos from process to process by tcp, GB/s"] > 0
    assert rows["decoded on the host by 2 thread(s), GB/s"] > 0
    assert 0.1 < rows["compressed to, share"] < 0.9, "neither a constant nor random bits"


def test_what_a_part_measured_is_kept_whenever_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check
    import gpu_parts

    path = tmp_path / "part.json"

    def part(args: Any) -> Any:
        yield "first", 1.0
        assert [row["what"] for row in json.loads(path.read_text())["rows"]] == ["first"], (
            "written before the next begins"
        )
        yield "bare network, INT8, windows/s", 437.0
        raise RuntimeError("the second engine fails")

    monkeypatch.setitem(gpu_parts.PARTS, "tensorrt", part)
    assert gpu_check.main(["--part", "tensorrt", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["state"], found["why"]) == ("failed", "RuntimeError: the second engine fails")
    assert [(row["value"], row["held"]) for row in found["rows"]] == [(1.0, None), (437.0, False)]


@pytest.mark.slow
def test_the_network_parts_run_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("monai")
    done = check(tmp_path, "--simulate", "--only", "end-to-end")
    assert done.returncode == 0, (tmp_path / "gpu_check.md").read_text() + done.stderr
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["parts"][0]["rows"]
    told = [row["what"] for row in rows]
    assert {"two runs", "end to end / bare network, small", "decoding needed, GB/s"} <= set(told)
    order = ["bare network, FP16, windows/s, small", "run 1, windows/s", "run 2, windows/s", "two runs"]
    assert sorted(told, key=told.index) == told
    assert [what for what in told if what in order] == order, "each as soon as it is there"


@pytest.mark.slow
def test_many_classes_and_the_proved_tiling_are_measured_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = check(tmp_path, "--simulate", "--only", "classes,tiling")
    assert done.returncode == 0, (tmp_path / "gpu_check.md").read_text() + done.stderr
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    many, tiled = ({row["what"]: row["value"] for row in part["rows"]} for part in parts)
    for count in (16, 104):
        assert many[f"{count} classes, end to end / bare network, small"] > 0
        assert many[f"{count} classes, halos that stay, GiB"] >= 0
    assert tiled["teravoxels an hour, small"] > 0
    assert tiled["voxels computed for one"] <= tiled["with the model's own tiling"]


@pytest.mark.slow
def test_int8_is_measured_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = check(tmp_path, "--simulate", "--only", "int8")
    assert done.returncode == 0, (tmp_path / "gpu_check.md").read_text() + done.stderr
    (part,) = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    rows = {row["what"]: row for row in part["rows"]}
    assert rows["network in INT8 / in fp32, apart"]["held"]
    assert 1e-3 < rows["network in INT8 / in fp32, apart"]["value"] < 0.1
    assert rows["bare network, INT8, windows/s, small"]["value"] > 0


def test_parts_that_are_named_alone_have_a_time_and_a_target(scripts: None) -> None:
    import gpu_check
    import gpu_needs
    import gpu_parts
    from gpu_report import Row

    assert set(gpu_parts.PARTS) == set(gpu_needs.PARTS) == {*gpu_check.BUDGETS, *gpu_check.FURTHER}
    assert not set(gpu_check._arguments([]).only) & set(gpu_check.FURTHER)
    assert gpu_check._arguments(["--only", "classes,tiling"]).only == ["classes", "tiling"]
    for what, enough in (("16 classes, end to end / bare network", 0.9), ("teravoxels an hour", 5)):
        assert (Row.of(what, enough).held, Row.of(what, 0.9 * enough).held) == (True, False)


def test_targets_missed_and_failures_show_in_table_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_report import Part, Row, exit_code, table

    good, bad = Row.of("end to end / bare network", 0.96), Row.of("peak memory at 100 classes / MONAI's", 0.5)
    assert (good.held, bad.held) == (True, False)
    assert exit_code([Part("a", "ran", rows=[good])]) == 0
    assert exit_code([Part("a", "ran", rows=[good, bad])]) == 1
    assert exit_code([Part("a", "failed", "why")]) == 1
    assert exit_code([Part("a", "ran", rows=[good]), Part("b", "not run", "no | such thing")]) == 4
    text = table([Part("a", "ran", rows=[good, bad]), Part("b", "not run", "no | such thing")])
    assert "| a | end to end / bare network | 0.96 | at least 0.95 | yes |" in text
    assert "**no**" in text
    assert "| b | not run | no / such thing | | |" in text


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_ended_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    monkeypatch.setitem(gpu_check.BUDGETS, "bandwidth", 0.05)
    monkeypatch.setattr(sys, "path", sys.path)
    parts = [
        "--simulate",
        "--only",
        "bandwidth,gpus",
        "--json",
        str(tmp_path / "r.json"),
        "--table",
        str(tmp_path / "r.md"),
    ]
    assert gpu_check.main(parts) == 4
    assert "took longer than its 0.05 s" in (tmp_path / "r.md").read_text()


def test_the_whole_check_ends_within_eight_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    assert sum(gpu_check.BUDGETS.values()) <= 450, "and half a minute for wheels"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_what_the_machine_or_an_extra_is_not_there_for_is_left_out_and_no_failure(
    scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So a machine with one GPU, and without TensorRT and nvCOMP, can end with 0."""
    import gpu_check
    import gpu_extras
    import gpu_parts
    import gpu_report

    monkeypatch.setattr("unet_engine.backends.libraries.find_spec", lambda name: None)
    real = SimpleNamespace(simulate=False, quick=True)
    with pytest.raises(gpu_report.LeftOut, match="TensorRT is not installed"):
        list(gpu_extras.tensorrt(real))
    monkeypatch.setattr(gpu_extras, "need", lambda *_: None)
    monkeypatch.setattr(gpu_extras, "_by_protocol", lambda args: iter(()))
    with pytest.raises(gpu_report.LeftOut, match="one GPU"):
        list(gpu_extras.gpus(real))

    def part(args: Any) -> Any:
        yield "first", 1.0
        raise gpu_report.LeftOut("one GPU")

    path = tmp_path / "part.json"
    monkeypatch.setitem(gpu_parts.PARTS, "gpus", part)
    gpu_check.main(["--part", "gpus", "--json", str(path)])
    found = gpu_report.Part(**json.loads(path.read_text()))
    assert (found.state, found.why) == ("left out", "one GPU")
    found.rows = [gpu_report.Row.of("end to end / bare network", 0.96)]
    assert gpu_report.exit_code([found]) == 0
    assert "| gpus | left out | one GPU | | |" in gpu_report.table([found])


def test_what_lacks_is_named_all_at_once(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_common
    from gpu_report import CannotRun

    lacking = ("distributed", "tornado", "cuda")
    find = gpu_common.importlib.util.find_spec

    def found(name: str) -> Any:
        if name.startswith("cuda."):
            raise ModuleNotFoundError(name)
        return None if name in lacking else find(name)

    monkeypatch.setattr(gpu_common.importlib.util, "find_spec", found)
    with pytest.raises(
        CannotRun, match="distributed, tornado, cuda-core, cuda-bindings, cuda-pathfinder not installed"
    ):
        gpu_common.need("gpus", SimpleNamespace(simulate=False))
    with pytest.raises(CannotRun, match=r"^distributed, tornado not installed"):
        gpu_common.need("gpus", SimpleNamespace(simulate=True))


BLOCKED = """
import sys
sys.path[:0] = {paths}
from importlib.metadata import packages_distributions
from gpu_needs import PARTS
beside = {{"numpy", "torch", "unet_engine", "unet_export"}}
allowed = {{module.partition(".")[0] for module in PARTS[{part!r}]}} | beside | set({libraries})
known = set(packages_distributions()) - allowed


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in known and "torch" not in sys.modules:
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Refuse())
import argparse
args = argparse.Namespace(quick=False, simulate=True)
{work}
"""
WORK = {
    "memory": "import gpu_runs; gpu_runs.peak_of_run(argparse.Namespace(simulate=True, factor=1))",
    "end-to-end": "import unet_engine.commands.report, unet_engine.execution.choose, gpu_runs",
    "gpus": "import protocols; protocols.connect; import distributed",
    "classes": "import unet_engine.commands.report, unet_engine.execution.choose, gpu_further",
    "decoding": "import gpu_extras\ntry: list(gpu_extras.decoding(args))\nexcept gpu_extras.CannotRun: pass",
}


@pytest.mark.parametrize("part", share(sorted(WORK, key=["gpus", "end-to-end"].__contains__, reverse=True), 2))
def test_a_part_imports_nothing_that_is_not_on_its_list(part: str, tmp_path: Path) -> None:
    """PyTorch's own dependencies are there with it."""
    pytest.importorskip("torch")
    libraries = ("setuptools", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock")
    code = BLOCKED.format(paths=[str(BENCHMARKS)], part=part, libraries=libraries, work=WORK[part])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-1500:]


def test_wheels_are_fetched_whole_and_weighed(
    scripts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_needs
    import gpu_wheels

    command = gpu_wheels.command(tmp_path, "3.12")
    assert {"--no-deps", "--only-binary=:all:", "3.12"} <= set(command)
    names = {item.partition("==")[0] for item in command[command.index(str(tmp_path)) + 1 :]}
    assert names == set(gpu_needs.wheels())
    assert {"cuda-core", "zarr", "tornado", "distributed", "nanobind"} <= names
    assert not names & {"torch", "numpy", "cmake", "openvino"}, "there already, or too large to carry"
    for name, count in (("a", 3), ("b", 1)):
        (tmp_path / f"{name}-1-py3-none-any.whl").write_bytes(bytes(count * 2**20))
    assert gpu_wheels.weighed(tmp_path, 5) == 0
    assert gpu_wheels.weighed(tmp_path, 3.5) == 1
    said = capsys.readouterr()
    assert "2 wheels, 4 MiB" in said.out
    assert "the largest: a 3, b 1" in said.err


def test_steady_state_leaves_out_beginning_and_end(scripts: None) -> None:
    from gpu_runs import steady_rate

    seen = [(0.0, 0), (5.0, 10), *((5 + n / 10, 10 + n) for n in range(1, 81)), (30.0, 100)]
    assert steady_rate(seen) == pytest.approx(10)
    assert steady_rate([]) == steady_rate([(1.0, 5)]) == 0


def test_files_and_folders_that_the_check_names_are_there(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms that modules are copied into, tests that are run, and what is compiled without CMake."""
    import gpu_build

    from support.paths import SOURCES

    root = BENCHMARKS.parent
    assert all((root / "tests" / name).exists() for name in gpu_build.TEST_FILES)
    assert all((root / "engine/unet_engine" / room).is_dir() for room in gpu_build.ROOMS.values())
    for name, room in gpu_build.ROOMS.items():
        assert f"unet_engine_module({name} {room}" in (root / "CMakeLists.txt").read_text()
    pytest.importorskip("nanobind")
    monkeypatch.setattr(gpu_build, "tool", lambda name: name)
    compiled, linked = gpu_build.by_hand("90", root)
    assert len(linked) == 3
    given = [part for command in compiled for part in command if str(SOURCES) in part and not part.startswith("-I")]
    assert all(Path(part).exists() for part in given)
    assert len(given) == sum(map(len, gpu_build.SOURCES.values()))
