"""2D and 3D U-Nets in PyTorch, built from a `UNetConfig`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unet_export.train.geometry import UNetConfig, crop_of_level

__all__ = ["UNet", "UNetConfig"]

_CONV: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, type[nn.ConvTranspose2d | nn.ConvTranspose3d]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class UNet(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """U-Net of `config`: float32 (n, channels_in, [z,] y, x) to logits (n, classes, [z,] y, x).

    The output is smaller by `geometry.output_margin` at each side. Sizes that `geometry.window_rule` does not admit
    fail with PyTorch's own error at the first concatenation; callers check before (`geometry.check_window`).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels(level) for level in range(config.depth + 1)]
        inputs = [config.channels_in, *widths[:-1]]
        self.encoders = nn.ModuleList(_two_convolutions(config, i, o) for i, o in zip(inputs, widths, strict=True))
        self.pool = _POOL[config.dims](2)
        self.ups = nn.ModuleList(_UP[config.dims](2 * w, w, kernel_size=2, stride=2) for w in widths[:-1])
        self.decoders = nn.ModuleList(_two_convolutions(config, 2 * w, w) for w in widths[:-1])
        self.head = _CONV[config.dims](config.base, config.classes, kernel_size=1)

    @property
    def unet_layout(self) -> tuple[str, int, int]:
        """Axes, channels in, channels out: what a spec of this network must say."""
        return self.config.axes, self.config.channels_in, self.config.classes

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < self.config.depth:
                skips.append(x)
                x = self.pool(x)
        for level in reversed(range(self.config.depth)):
            skip = _cut(skips[level], crop_of_level(self.config, level))
            x = self.decoders[level](torch.cat((skip, self.ups[level](x)), dim=1))
        return self.head(x)


def _two_convolutions(config: UNetConfig, inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        # A normalisation subtracts the mean, which would cancel a bias.
        bias = config.norm == "none"
        padding = 1 if config.padding == "same" else 0
        layers.append(_CONV[config.dims](channels, outputs, kernel_size=3, padding=padding, bias=bias))
        if config.norm == "batch":
            layers.append(_BATCH[config.dims](outputs))
        elif config.norm == "instance":
            layers.append(_INSTANCE[config.dims](outputs, affine=True))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _cut(x: Tensor, crop: int) -> Tensor:
    """x without `crop` voxels at each side of each spatial axis."""
    if crop == 0:
        return x
    return x[(slice(None), slice(None), *[slice(crop, -crop)] * (x.dim() - 2))]
