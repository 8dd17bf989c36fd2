"""The CUDA half: it compiles without a warning for every architecture, and gives the CPU's bits where there is a GPU."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from unet_engine import halo

SOURCES = Path(__file__).parent.parent / "cpp_ext"
ARCHITECTURES = {"80": (11, 0), "90": (11, 8), "100": (12, 8), "120": (12, 8)}  # and the first nvcc that knows each


def _nvcc() -> tuple[str, tuple[int, ...]]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return nvcc, tuple(int(n) for n in text.split("release ")[1].split(",")[0].split("."))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_warnings(architecture: str, tmp_path: Path) -> None:
    nvcc, version = _nvcc()
    if version < ARCHITECTURES[architecture]:
        pytest.skip(f"nvcc {version} does not know sm_{architecture}")
    command = [
        *(nvcc, "-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"),
        *(f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-c", str(SOURCES / "halo.cu")),
        *("-o", str(tmp_path / "halo.o")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr


def _module() -> ModuleType:
    try:
        return importlib.import_module("unet_engine._halo_cuda")
    except ModuleNotFoundError:
        pytest.skip("the CUDA module is not built")


def test_the_module_imports_without_a_driver_and_is_what_the_stub_says() -> None:
    module = _module()
    stub = ast.parse((Path(halo.__file__).parent / "_halo_cuda.pyi").read_text())
    functions = {node.name: [a.arg for a in node.args.args] for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert set(functions) == {name for name in dir(module) if not name.startswith("_")}


def test_arrays_of_the_host_are_refused() -> None:
    with pytest.raises(TypeError):
        _module().merge(np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32), [0, 0])


@pytest.fixture
def gpu() -> tuple[ModuleType, Any]:
    """The CUDA module and torch, on a machine with a GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    return _module(), torch


def _case(shape: tuple[int, ...], sums: tuple[int, ...], count: int, channels: int) -> dict[str, Any]:
    """A batch of `count` windows over the edges of some sums, one of them with nothing to add."""
    rng = np.random.default_rng(len(shape) * 100 + channels)
    at = np.stack([rng.integers(-w // 2, s - w // 2, count) for w, s in zip(shape, sums, strict=True)], axis=1)
    lo = np.maximum(0, -at)
    hi = np.minimum(shape, np.array(sums) - at)
    hi[count // 2] = lo[count // 2]
    return {
        "sums": rng.normal(size=(channels, *sums)).astype(np.float32),
        "windows": rng.normal(size=(count, channels, *shape)).astype(np.float32),
        "weights": [rng.random((count, n)).astype(np.float32) for n in shape],
        "at": at.astype(np.int64),
        "lo": lo.astype(np.int64),
        "hi": hi.astype(np.int64),
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize(("shape", "sums"), [((16, 12, 20), (21, 40, 37)), ((24, 40), (70, 91))])
def test_add_batch_is_add_in_the_order_of_the_batch(
    gpu: tuple[ModuleType, Any], shape: tuple[int, ...], sums: tuple[int, ...], channels: int, dtype: str
) -> None:
    module, torch = gpu
    case = _case(shape, sums, 40, channels)
    windows = torch.from_numpy(case["windows"]).to(getattr(torch, dtype)).cuda()
    expected = case["sums"].copy()
    for n, window in enumerate(windows.float().cpu().numpy()):
        halo.add(
            expected, window, [w[n] for w in case["weights"]], *(case[name][n].tolist() for name in ("at", "lo", "hi"))
        )
    for memory_format in ("channels first", "channels last"):
        actual = torch.from_numpy(case["sums"]).cuda()
        given = windows if memory_format == "channels first" else windows.movedim(1, -1).contiguous().movedim(-1, 1)
        stream = torch.cuda.current_stream().cuda_stream
        module.add_batch(actual, given, case["weights"], case["at"], case["lo"], case["hi"], stream=stream)
        np.testing.assert_array_equal(
            actual.cpu().numpy().view(np.uint32), expected.view(np.uint32), err_msg=memory_format
        )


@pytest.mark.parametrize("sums", [(21, 40, 37), (70, 91)])
def test_merge_and_finish_are_the_cpu_s(gpu: tuple[ModuleType, Any], sums: tuple[int, ...]) -> None:
    module, torch = gpu
    rng = np.random.default_rng(3)
    stream = torch.cuda.Stream()  # not the default one: the kernels must run where they are told to
    for channels in (1, 2, 5):
        expected = rng.normal(scale=9, size=(channels, *sums)).astype(np.float32)
        expected[rng.random(expected.shape) < 0.01] = np.nan
        part = rng.normal(size=(channels, *(n // 2 for n in sums))).astype(np.float32)
        at = [n // 4 for n in sums]
        actual, on_device = torch.from_numpy(expected.copy()).cuda(), torch.from_numpy(part).cuda()
        halo.merge(expected, part, at)
        torch.cuda.synchronize()
        module.merge(actual, on_device, at, stream=stream.cuda_stream)
        stream.synchronize()
        np.testing.assert_array_equal(actual.cpu().numpy(), expected)
        for activation in halo.ACTIVATIONS:
            for finish, shape, kinds in (
                ("labels", sums, ("uint8", "uint16")),
                ("probabilities", expected.shape, ("uint8", "float32")),
            ):
                for kind in kinds:
                    wanted, out = np.zeros(shape, kind), torch.zeros(shape, dtype=getattr(torch, kind), device="cuda")
                    getattr(halo, finish)(expected, wanted, activation)
                    torch.cuda.synchronize()
                    getattr(module, finish)(actual, out, activation, stream=stream.cuda_stream)
                    stream.synchronize()
                    np.testing.assert_array_equal(out.cpu().numpy(), wanted, err_msg=f"{finish} {activation} {kind}")


def test_wrong_arguments_are_refused_before_anything_is_queued(gpu: tuple[ModuleType, Any]) -> None:
    module, torch = gpu
    case = _case((16, 12, 20), (21, 40, 37), 4, 2)
    sums, windows = torch.from_numpy(case["sums"]).cuda(), torch.from_numpy(case["windows"]).cuda()
    place = case["weights"], case["at"], case["lo"], case["hi"]
    with pytest.raises(ValueError, match="channels"):
        module.add_batch(sums, windows[:, :1], *place)
    with pytest.raises(ValueError, match="axis x: weights"):
        module.add_batch(sums, windows[..., :-1], *place)
    with pytest.raises(ValueError, match="window 0, axis z"):
        module.add_batch(sums, windows, case["weights"], case["at"] + 30, case["lo"], case["hi"])
    with pytest.raises(ValueError, match="windows must be float32"):
        module.add_batch(sums, windows.double(), *place)
    with pytest.raises(ValueError, match="axis z"):
        module.merge(sums, sums, [1, 0, 0])
    with pytest.raises(ValueError, match="shape of sums"):
        module.labels(sums, torch.zeros((3, 3, 3), dtype=torch.uint8, device="cuda"), "softmax")
    np.testing.assert_array_equal(sums.cpu().numpy(), case["sums"])
