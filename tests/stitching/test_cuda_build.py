"""The CUDA half compiles without a warning for every architecture. What its kernels compute is in `test_kernels.py`."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from support.paths import SOURCES
from unet_engine import devices

ARCHITECTURES = {
    "75": (11, 0),
    "80": (11, 0),
    "90": (11, 8),
    "100": (12, 8),
    "120": (12, 8),
}  # and the first nvcc that knows each


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
        *(f"-gencode=arch=compute_{architecture},code=sm_{architecture}", "-c", str(SOURCES / "launch_cuda.cu")),
        *("-o", str(tmp_path / "launch_cuda.o")),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr


@pytest.mark.parametrize("name", ["_halo_cuda", "_halo_loop"])
def test_the_module_imports_without_a_driver_and_is_what_the_stub_says(name: str) -> None:
    try:
        module = importlib.import_module(f"unet_engine.devices.{name}")
    except ModuleNotFoundError:
        pytest.skip(f"{name} is not built")
    assert _names_in_the_stub(name) == {n for n in dir(module) if not n.startswith("_")}


def _names_in_the_stub(name: str) -> set[str]:
    stub = ast.parse((Path(devices.__file__).parent / f"{name}.pyi").read_text())
    names = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    names |= {str(getattr(node.target, "id", "")) for node in stub.body if isinstance(node, ast.AnnAssign)}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["*"]:
            names |= _names_in_the_stub(str(node.module).removeprefix("unet_engine.devices."))
    return names


def test_arrays_of_the_host_are_refused_by_the_cuda_module() -> None:
    module = pytest.importorskip("unet_engine.devices._halo_cuda")
    with pytest.raises(TypeError):
        module.merge(np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32), [0, 0])
