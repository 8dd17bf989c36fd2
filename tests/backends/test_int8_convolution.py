"""Convolutions in INT8: Triton's kernel, interpreted on the CPU, is PyTorch's in float64 to the bit; it compiles for GPUs
to INT8 tensor cores and spills nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from unet_engine.backends.int8_convolution import LEAST, convolution, reference, takes  # noqa: E402

SHAPES = [((1, 32, 5, 4, 3), 16, 1), ((2, 64, 3, 5, 4), 48, 2), ((1, 96, 2, 3, 3), 160, 1)]


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by the test below, where Triton interprets kernels")


def test_triton_interpreted() -> None:
    """In a process of its own: Triton decides as it is imported whether it interprets."""
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "-m",
        "",
        "-k",
        "kernel or levels",
        __file__,
    ]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "6 passed" in done.stdout, done.stdout[-300:]


def layer(shape: tuple[int, ...], channels_out: int, kind: Any = torch.float16) -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=rng).to(kind).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randint(-127, 128, (channels_out, 3, 3, 3, shape[1]), generator=rng, dtype=torch.int8)
    scale = torch.rand(channels_out, generator=rng) / 1e4
    return x, weight, 0.02, scale, torch.randn(channels_out, generator=rng)


@interpreted
@pytest.mark.parametrize(("shape", "channels_out", "stride"), SHAPES, ids=str)
def test_the_kernel_is_the_reference(shape: tuple[int, ...], channels_out: int, stride: int) -> None:
    """Windows beside each other, voxels and channels that fill no tile, every second voxel; levels that are cut off."""
    from unet_engine.backends import int8_triton as found

    x, weight, scale_in, scale_out, bias = layer(shape, channels_out)
    for given in (bias, None):
        ours = found.convolution(x, weight, scale_in, scale_out, given, stride)
        wanted = reference(x, weight, scale_in, scale_out, given, stride)
        assert ours.stride() == wanted.stride()
        assert torch.equal(ours, wanted)


@interpreted
def test_levels_are_rounded_half_to_even_and_cut_off() -> None:
    from unet_engine.backends import int8_triton as found

    bad = torch.zeros(1, dtype=torch.int32)
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 300, -128.5, -300, 0.49999997])
    assert found.levels(x, 1.0, bad).tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 0]
    third = torch.arange(-400, 400, dtype=torch.float32) * 0.1
    assert torch.equal(found.levels(third, 0.3, bad), (third / 0.3).round().clamp(-128, 127).to(torch.int8))
    assert not bad.any()


@interpreted
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden_by_levels_of_the_kernel(value: float) -> None:
    from unet_engine.backends import int8_triton as found

    x, *others = layer(SHAPES[0][0], 16)
    x[0, 3, 1, 1, 1] = value
    assert found.convolution(x, *others, 1).isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    x, *others = layer(SHAPES[0][0], 16)
    x[0, 3, 1, 1, 1] = value
    assert convolution(x, *others, 1).isnan().all()


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_it_compiles_to_tensor_cores_and_spills_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: int
) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from unet_engine.backends import int8_triton as found

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"x": "*i8", "weight": "*i8", "out": "*fp16", "scale": "*fp32", "bias": "*fp32", "bad": "*i32"}
    numbers = ("rows", "depth", "height", "width", "out_depth", "out_height", "out_width", "channels_out")
    how = found.tile(64, 64)
    constants = {"CHANNELS": 64, "STRIDE": 1, "BIASED": True} | {k: how[k] for k in ("ROWS", "COLUMNS", "DEEP")}
    signature = pointers | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    aligned = {(n,): [["tt.divisibility", 16]] for n in range(len(pointers))}
    source = triton.compiler.ASTSource(found.convolution_kernel, signature, constants, aligned)
    options = {name: how[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assert re.search(r"mma\S*\.s32\.s8\.s8|tcgen05\.mma", made.asm["ptx"]), "INT8 tensor cores"
    (tmp_path / "k.cubin").write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if tool.exists():
        said = subprocess.run([tool, "-res-usage", tmp_path / "k.cubin"], capture_output=True, text=True, check=True)
        assert "STACK:0" in said.stdout + said.stderr


def test_what_is_taken() -> None:
    plain = {"pads": [1] * 6}
    assert takes((64, 32, 3, 3, 3), plain)
    assert takes((64, 32, 3, 3, 3), plain | {"strides": [2, 2, 2]})
    for weight, attributes in (
        ((64, 31, 3, 3, 3), plain), ((64, LEAST // 2, 3, 3, 3), plain), ((3, 32, 3, 3, 3), plain),
        ((64, 32, 1, 1, 1), {}), ((64, 32, 3, 3), {"pads": [1] * 4}), ((64, 32, 3, 3, 3), {}),
        ((64, 32, 3, 3, 3), plain | {"strides": [1, 2, 2]}), ((64, 32, 3, 3, 3), plain | {"dilations": [2] * 3}),
        ((64, 32, 3, 3, 3), plain | {"group": 2}), ((64, 32, 3, 3, 3), {"auto_pad": "SAME_UPPER"}),
    ):  # fmt: skip
        assert not takes(weight, attributes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_a_gpu_gives_the_reference() -> None:
    for shape, channels_out, stride in SHAPES:
        given = [v.cuda() if isinstance(v, torch.Tensor) else v for v in layer(shape, channels_out)]
        wanted = reference(*layer(shape, channels_out), stride)
        assert torch.equal(convolution(*given, stride).cpu(), wanted)
