"""InstanceNorm with LeakyReLU on batches whose channels lie last: PyTorch's values, into slices of larger batches too, and
the GPU's bits are those of the loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from unet_engine.backends.torch_norm import _order, kernels_of, normalised, put  # noqa: E402

SHAPES = [
    (2, 32, 7, 9, 11), (1, 5, 3, 3, 3), (1, 320, 4, 4, 4), (3, 1, 4, 5, 6), (1, 2056, 2, 1, 3), (2, 16, 33, 40),
    (1, 8, 1, 1, 7), (1, 16, 40, 40, 40),
]  # fmt: skip
ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def batch(shape: tuple[int, ...], kind: Any, mean: float = 0.0) -> Any:
    values = np.random.default_rng(1).normal(mean, 3, shape).astype(np.float32)
    order = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
    return torch.from_numpy(values).to(kind).contiguous(memory_format=order)


def reference(x: Any, weight: Any, bias: Any, slope: float) -> Any:
    normal = torch.nn.functional.instance_norm(x.double(), weight=weight.double(), bias=bias.double())
    return torch.nn.functional.leaky_relu(normal, slope)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ROUNDING, ids=str)
def test_it_is_pytorchs(shape: tuple[int, ...], kind: Any) -> None:
    x, weight, bias = batch(shape, kind), torch.linspace(0.5, 2, shape[1]), torch.linspace(-1, 1, shape[1])
    found, wanted = normalised(x, weight, bias, 1e-5, 0.1), reference(x, weight, bias, 0.1)
    assert found.dtype is kind
    assert found.stride() == x.stride()
    assert float((found.double() - wanted).abs().max()) <= ROUNDING[kind] * float(wanted.abs().max())


def test_a_large_mean_costs_no_digits() -> None:
    """Sums of squares in float32 would leave nothing of a spread of 3 around 1,000."""
    x = batch((1, 8, 20, 20, 20), torch.float32, 1e3)
    found = normalised(x, None, None, 1e-5)
    wanted = reference(x, torch.ones(8), torch.zeros(8), 1.0)
    assert float((found.double() - wanted).abs().max()) < 3e-5


def test_a_constant_window_becomes_the_bias_and_nan_stays() -> None:
    x, bias = torch.full((2, 8, 3, 3, 3), 7.0).contiguous(memory_format=torch.channels_last_3d), torch.arange(8.0)
    x[1, 3, 0, 0, 0] = float("nan")
    found = normalised(x, None, bias, 1e-5)
    assert torch.equal(found[0], bias[:, None, None, None].expand(8, 3, 3, 3))
    assert found[1, 3].isnan().all()
    assert found[1, :3].isfinite().all()


@pytest.mark.parametrize("channels", [8, 5])
def test_a_slice_of_a_concatenation_gets_the_same(channels: int) -> None:
    """Written there beside the batch of its own; no other channel is touched."""
    x = batch((2, channels, 4, 5, 6), torch.float16)
    joined = torch.full((2, channels + 16, 4, 5, 6), 9.0, dtype=torch.float16)
    joined = joined.contiguous(memory_format=torch.channels_last_3d)
    found = normalised(x, None, None, 1e-5, 0.0, joined, 8)
    assert torch.equal(joined[:, 8 : 8 + channels], found)
    assert (joined[:, :8] == 9).all()
    assert (joined[:, 8 + channels :] == 9).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ROUNDING, ids=str)
def test_what_is_concatenated_is_put_among_its_channels(shape: tuple[int, ...], kind: Any) -> None:
    """By loads of 16 bytes where all begin there, channel by channel elsewhere; no other channel is touched."""
    x = batch(shape, kind)
    for at in (0, 3, 16):
        whole = (shape[0], shape[1] + at + 8, *shape[2:])
        joined = torch.full(whole, 9.0, dtype=kind).contiguous(memory_format=_order(x))
        put(joined, at, x)
        assert torch.equal(joined[:, at : at + shape[1]], x)
        assert (joined[:, :at] == 9).all()
        assert (joined[:, at + shape[1] :] == 9).all()
    first = torch.empty(whole, dtype=kind).contiguous(memory_format=_order(x))
    put(first, 0, x.contiguous())
    assert torch.equal(first[:, : shape[1]], x), "channels that lie first are put last"


def test_what_cannot_be_read_is_refused_before_anything_is_written() -> None:
    x = batch((1, 4, 3, 3, 3), torch.float32)
    kernels = kernels_of(x)

    def given(tensor: Any) -> Any:
        kind = str(tensor.dtype).removeprefix("torch.")
        return kernels.array(tensor.data_ptr(), tuple(tensor.shape), kind, tuple(tensor.stride()))

    room = torch.empty(kernels.instance_norm_scratch(1, 4, 27), dtype=torch.uint8)
    first = torch.zeros((1, 4, 3, 3, 3))
    for windows, outputs, scratch, said in (
        (first, [x], room, "windows must have their channels last"), (x, [first], room, "outputs must have their"),
        (x, [x.half()], room, "type of the windows"), (x, [x[:, :3]], room, "shape of the windows"),
        (x, [x], room[:-8], "scratch must be as many bytes"), (x, [], room, "one output or two"),
        (x, [x] * 3, room, "one output or two"), (x, [x[:, :, ::2]], room, "shape of the windows"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            kernels.instance_norm(given(windows), [given(o) for o in outputs], given(scratch))
    with pytest.raises(ValueError, match="shape of the windows"):
        kernels.put(given(x), given(x[:, :3]))
    with pytest.raises(ValueError, match="weight must have one value per channel"):
        kernels.instance_norm(given(x), [given(x)], given(room), weight=given(torch.ones(3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("kind", ROUNDING, ids=str)
def test_a_gpu_gives_the_bits_of_the_loop(kind: Any) -> None:
    for shape in SHAPES:
        x, weight, bias = batch(shape, kind, 50), torch.linspace(0.5, 2, shape[1]), torch.linspace(-1, 1, shape[1])
        here, there = (normalised(x.to(p), weight.to(p), bias.to(p), 1e-5, 0.1).cpu() for p in ("cpu", "cuda"))
        assert torch.equal(here, there), shape
        joined = torch.zeros((shape[0], shape[1] + 16, *shape[2:]), dtype=kind, device="cuda")
        joined = joined.contiguous(memory_format=_order(x))
        put(joined, 8, x.cuda())
        assert torch.equal(joined[:, 8 : 8 + shape[1]].cpu(), x), shape
