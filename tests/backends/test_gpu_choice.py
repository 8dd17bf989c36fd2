"""Which library runs a network on which GPU: the whole table, for every architecture and everything installed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.paths import DOCS
from support.volumes import make_volume
from unet_engine import machine
from unet_engine.backends import gpu_choice, tensorrt_api
from unet_engine.backends.base import Setup
from unet_engine.backends.gpu_choice import ARCHITECTURES, BUILDS, Capability
from unet_engine.backends.libraries import choose_backend, open_on_device, runs_on_gpu
from unet_engine.devices.opening import capabilities_of
from unet_engine.devices.simulated import SimulatedDevice
from unet_engine.errors import BackendError
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings

NAMES = [build.name for build in BUILDS]
MODULES = {
    "tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx",), "torch": ("torch",), "onnxruntime": ("onnxruntime",),
}  # fmt: skip
RTX = {(7, 5), (8, 6), (8, 9), (12, 0), (12, 1)}
SETS = [frozenset(chosen) for n in range(len(NAMES) + 1) for chosen in combinations(NAMES, n)]


def expected(gpu: Capability, installed: frozenset[str]) -> str | None:
    """The rule in words of its own: full TensorRT, TensorRT-RTX where it is listed, PyTorch, ONNX Runtime."""
    if "tensorrt" in installed or ("tensorrt_rtx" in installed and gpu in RTX):
        return "tensorrt"
    return "pytorch" if "torch" in installed else "onnxruntime" if "onnxruntime" in installed else None


@pytest.mark.parametrize("gpu", ARCHITECTURES, ids=gpu_choice.shown)
def test_the_table_for_everything_that_may_be_installed(gpu: Capability) -> None:
    for installed in SETS:
        best = [build.library for build in gpu_choice.preferred("onnx", [gpu], installed)]
        assert (best[0] if best else None) == expected(gpu, installed), installed
        torch_files = [b.library for b in gpu_choice.preferred("pt2", [gpu], installed)]
        assert torch_files == (["pytorch"] if "torch" in installed else [])


def test_a_library_must_be_made_for_all_gpus_of_a_run() -> None:
    both = [(8, 9), (9, 0)]
    assert [b.name for b in gpu_choice.preferred("onnx", both, NAMES)] == ["tensorrt", "torch", "onnxruntime"]
    assert [b.name for b in gpu_choice.preferred("onnx", [(7, 0)], NAMES)] == ["torch", "onnxruntime"], "Volta"
    assert [b.name for b in gpu_choice.preferred("onnx", [], NAMES)] == NAMES, "not known: whatever there is"


def test_what_is_passed_over_is_told() -> None:
    told = gpu_choice.passed_over("onnx", [(9, 0)], {"tensorrt_rtx", "torch"}, "pytorch")
    assert told == ("TensorRT-RTX is installed, and is not made for compute capability 9.0",)
    assert not gpu_choice.passed_over("onnx", [(9, 0)], {"tensorrt", "tensorrt_rtx"}, "tensorrt")
    assert not gpu_choice.passed_over("onnx", [(8, 9)], {"tensorrt_rtx", "torch"}, "tensorrt")
    assert not gpu_choice.passed_over("pt2", [(9, 0)], {"tensorrt_rtx", "torch"}, "pytorch"), "it runs no such file"


def test_the_page_has_the_table() -> None:
    page = (DOCS / "gpu.md").read_text()
    for gpu, name in ARCHITECTURES.items():
        builds = [build.called for build in gpu_choice.preferred("onnx", [gpu], NAMES)]
        assert f"| {gpu_choice.shown(gpu)} | {name} | {', '.join(builds)} |" in page


# --- as a run chooses ---


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with such GPUs, where just these builds are installed."""

    def become(gpus: list[Capability], *installed: str) -> None:
        there = {module for name in installed for module in MODULES[name]}
        monkeypatch.setattr("unet_engine.backends.libraries.find_spec", lambda name: name if name in there else None)
        monkeypatch.setattr("unet_engine.backends.libraries.sees_gpu", lambda known: True)
        monkeypatch.setattr("unet_engine.devices.opening.gpu_capabilities", lambda: tuple(gpus))
        monkeypatch.setattr(machine, "gpu_count", lambda: len(gpus))

    return become


@pytest.fixture(scope="module")
def cells() -> Any:
    return open_model(shipped_model("cells_3d.onnx"))


def test_tensorrt_rtx_alone_on_hopper_is_not_taken(here: Callable[..., None], cells: Any) -> None:
    here([(9, 0)], "tensorrt_rtx", "torch", "onnxruntime")
    assert choose_backend(cells, "cuda:0") == "pytorch"
    here([(9, 0)], "tensorrt_rtx", "onnxruntime")
    assert choose_backend(cells, "cuda:0") == "onnxruntime"
    here([(9, 0)], "tensorrt_rtx")
    assert not runs_on_gpu(cells)
    for name in (None, "tensorrt"):
        with pytest.raises(BackendError, match=r"TensorRT-RTX is not made for cuda:0, of compute capability 9\.0"):
            choose_backend(cells, "cuda:0", name)
    here([(8, 9), (9, 0)], "tensorrt_rtx", "torch")
    assert choose_backend(cells, "cuda:0") == "tensorrt"
    assert choose_backend(cells, "cuda:1") == "pytorch"
    assert choose_backend(cells, "cuda") == choose_backend(cells, "cuda:0,1") == "pytorch"
    here([(9, 0)], "tensorrt", "tensorrt_rtx", "torch")
    assert choose_backend(cells, "cuda:0") == "tensorrt"


def test_a_build_without_cuda_is_not_taken(
    here: Callable[..., None], cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here([(9, 0)], "torch", "onnxruntime")
    monkeypatch.setattr("unet_engine.backends.libraries.sees_gpu", lambda known: known.name == "onnxruntime")
    assert choose_backend(cells, "cuda:0") == "onnxruntime"


def test_a_graph_that_pytorch_does_not_import_goes_to_onnx_runtime(
    here: Callable[..., None], cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from unet_engine.backends import onnx_torch

    here([(9, 0)], "torch", "onnxruntime")
    assert choose_backend(cells, "cuda:0") == "pytorch"
    monkeypatch.delitem(onnx_torch.OPERATORS, "MaxPool")
    assert choose_backend(cells, "cuda:0") == "onnxruntime"


def test_a_run_tells_why_it_is_fp32_and_not_tensorrt(
    here: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    here([(9, 0)], "tensorrt_rtx", "torch")
    monkeypatch.setattr("unet_engine.backends.opening.unreachable", lambda: "")
    volume = make_volume(tmp_path / "v.zarr", np.ones((64, 64, 64), np.uint8))
    found = survey(Settings.of(input=volume, model=str(shipped_model("cells_3d.onnx")), device="cuda"))
    assert (found.backend, found.precision) == ("pytorch", "fp32")
    assert "TensorRT-RTX is installed, and is not made for compute capability 9.0" in found.notes
    assert any(note.startswith("precision fp32: nothing was proved for this model") for note in found.notes)
    half = survey(Settings.of(input=volume, model=str(shipped_model("cells_3d.onnx")), device="cuda", precision="fp16"))
    assert (half.backend, half.precision) == ("pytorch", "fp16")


def test_names_of_devices_and_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unet_engine.devices.opening.gpu_capabilities", lambda: ((8, 0), (9, 0)))
    assert capabilities_of("cuda") == capabilities_of("cuda:0,1") == ((8, 0), (9, 0))
    assert capabilities_of("cuda:1") == ((9, 0),)
    assert capabilities_of("cpu") == capabilities_of("simulated") == capabilities_of("cuda:7") == ()


def test_tensorrt_that_does_not_load_is_not_stood_in_for_on_a_gpu_that_is_not_listed(
    cells: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice sees modules; which one can be loaded shows as it is opened."""
    device = SimulatedDevice()
    monkeypatch.setattr(device, "capability", (9, 0), raising=False)
    monkeypatch.setattr("unet_engine.backends.libraries.open_device", lambda name: device)
    monkeypatch.setattr(tensorrt_api, "module", lambda: SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7"))
    with pytest.raises(BackendError, match=r"TensorRT-RTX is not made for compute capability 9\.0"):
        open_on_device("tensorrt", Setup(cells, (16, 16, 16), "simulated"))
    assert not device.living
