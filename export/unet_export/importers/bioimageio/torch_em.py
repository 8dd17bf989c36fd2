"""The U-Nets of torch-em, which most PyTorch packages of bioimage.io hold, built without the Python that comes with
them.

Their description names a class and plain arguments; the weights have to fit by every name and shape, and the package's
own test tensors have to come out. https://github.com/constantinpape/torch-em has the original.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = {
    "in_channels", "out_channels", "depth", "initial_features", "gain", "final_activation", "norm", "scale_factors",
    "return_side_outputs", "postprocessing", "anisotropic_kernel",
}  # fmt: skip
_UNSET = {"return_side_outputs": (None, False), "postprocessing": (None,), "anisotropic_kernel": (None, False)}
"""Arguments that are known with these values alone."""
_ACTIVATIONS = (None, "Sigmoid", "ReLU", "Tanh")
_NORMS = (None, "InstanceNorm", "GroupNorm", "BatchNorm")
_DIMS = {"UNet2d": 2, "ResizeUNet": 2, "UNet3d": 3, "AnisotropicUNet": 3}


def known(name: str, said: Mapping[str, Any]) -> bool:
    """Whether a class with these arguments is one that is built here."""
    plain = name in _DIMS and set(said) <= _PLAIN and isinstance(said.get("out_channels"), int)
    plain = plain and said.get("final_activation") in _ACTIVATIONS and said.get("norm", "InstanceNorm") in _NORMS
    return plain and all(said.get(key) in values for key, values in _UNSET.items())


def built(name: str, said: Mapping[str, Any]) -> nn.Module:
    """The network, with weights to be filled in. `known` says for what."""
    return _Net(name, said)


def _factor(said: Any, dims: int) -> tuple[int, ...]:
    return (int(said),) * dims if isinstance(said, int) else tuple(int(n) for n in said)


def _norm(kind: str | None, dims: int, channels: int) -> list[nn.Module]:
    if kind is None:
        return []
    if kind == "GroupNorm":
        return [nn.GroupNorm(min(32, channels), channels)]
    return [getattr(nn, f"{kind}{dims}d")(channels)]


def _convolution(dims: int, given: int, made: int, size: int) -> nn.Module:
    kind = nn.Conv2d if dims == 2 else nn.Conv3d
    return kind(given, made, size, padding=size // 2)


class _Block(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """Twice: normalise, convolve, rectify."""

    def __init__(self, dims: int, given: int, made: int, norm: str | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (given, made):
            layers += [*_norm(norm, dims, channels), _convolution(dims, channels, made, 3), nn.ReLU()]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]


class _Finer(nn.Module):  # type: ignore[misc]
    def __init__(self, dims: int, given: int, made: int, factor: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = _convolution(dims, given, made, 1)
        self.factor, self.mode = tuple(map(float, factor)), "bilinear" if dims == 2 else "trilinear"

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=False)
        return self.conv(x)  # type: ignore[no-any-return]


class _Side(nn.Module):  # type: ignore[misc]
    """Blocks of the way down or up, and what brings features up."""

    def __init__(self, blocks: Sequence[nn.Module], samplers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks, self.samplers = nn.ModuleList(blocks), nn.ModuleList(samplers)


class _Net(nn.Module):  # type: ignore[misc]
    """The U-Net `name` with the arguments `said`; its parts are called as in the original's weights."""

    def __init__(self, name: str, said: Mapping[str, Any]) -> None:
        super().__init__()
        dims, norm, activation = _DIMS[name], said.get("norm", "InstanceNorm"), said.get("final_activation")
        factors = [_factor(f, dims) for f in said.get("scale_factors") or [2] * int(said.get("depth", 4))]
        width, gain = int(said.get("initial_features", 32)), int(said.get("gain", 2))
        channels = [width * gain**i for i in range(len(factors) + 1)]
        down = [int(said["in_channels"]), *channels[:-1]]
        up = list(reversed(channels))
        pairs = list(itertools.pairwise(up))
        self.encoder = _Side([_Block(dims, a, b, norm) for a, b in itertools.pairwise(down)], [])
        self.base = _Block(dims, channels[-2], channels[-1], norm)
        back = list(reversed(factors))
        self.decoder = _Side(
            [_Block(dims, a, b, norm) for a, b in pairs],
            [_Finer(dims, a, b, factor) for (a, b), factor in zip(pairs, back, strict=True)],
        )
        self.out_conv = _convolution(dims, channels[0], int(said["out_channels"]), 1)
        self.after = getattr(nn, activation)() if activation else None
        self.resized = 0.5 if name == "ResizeUNet" else None
        self.factors, self.pool = list(factors), nn.functional.max_pool2d if dims == 2 else nn.functional.max_pool3d

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block, factor in zip(self.encoder.blocks, self.factors, strict=True):
            x = block(x)
            kept.append(x)
            x = self.pool(x, factor)
        x = self.base(x)
        for block, finer, skip in zip(self.decoder.blocks, self.decoder.samplers, reversed(kept), strict=True):
            x = block(torch.cat([finer(x), skip], 1))
        x = self.out_conv(x)
        if self.resized is not None:
            x = nn.functional.interpolate(x, scale_factor=self.resized)
        return x if self.after is None else self.after(x)
