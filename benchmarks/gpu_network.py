"""MLPerf's 3D U-Net as it is described there: filters 32, 64, 128, 256, 320, InstanceNorm, LeakyReLU, transposed
convolutions up, three classes. Random weights: only its speed and memory are measured."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import nn

FILTERS = (32, 64, 128, 256, 320)


def _twice(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, s in ((channels_in, stride), (channels, 1)):
        layers += [
            nn.Conv3d(n, channels, 3, s, 1, bias=False),
            nn.InstanceNorm3d(channels, affine=True),
            nn.LeakyReLU(0.01),
        ]
    return nn.Sequential(*layers)


class MLPerfUNet(nn.Module):
    """(N, 1, z, y, x) to (N, classes, z, y, x); sizes are multiples of 16."""

    def __init__(self, classes: int = 3, filters: tuple[int, ...] = FILTERS) -> None:
        super().__init__()
        pairs = list(pairwise(filters))
        self.first = _twice(1, filters[0], 1)
        self.down = nn.ModuleList(_twice(a, b, 2) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2, bias=False) for a, b in reversed(pairs))
        self.join = nn.ModuleList(_twice(2 * a, a, 1) for a, _ in reversed(pairs))
        self.head = nn.Conv3d(filters[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = [self.first(x)]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((up(x), skips.pop()), 1))
        return self.head(x)


def flops(network: nn.Module, window: tuple[int, ...]) -> int:
    """Floating point operations of the convolutions of one window, two per multiply-add."""
    total = 0

    def count(module: Any, given: Any, out: torch.Tensor) -> None:
        nonlocal total
        kernel = prod(module.kernel_size)
        if isinstance(module, nn.ConvTranspose3d):
            total += 2 * given[0].numel() * module.out_channels * kernel
        else:
            total += 2 * out.numel() * module.in_channels * kernel

    hooks = [
        m.register_forward_hook(count) for m in network.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))
    ]
    try:
        with torch.inference_mode():
            # the shapes alone, on no device
            network.to("meta")(torch.zeros((1, 1, *window), device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def spec_of(window: tuple[int, ...], classes: int, flops_of_window: int = 1) -> Any:
    """The `ModelSpec` of `MLPerfUNet`."""
    from unet_engine.model.normalization import Normalization
    from unet_engine.model.spec import ModelSpec

    return ModelSpec(
        name="mlperf", axes="zyx", channels_in=1, channels_out=classes, window=window, window_min=(16,) * 3,
        window_step=(16,) * 3,
        margin=(0,) * 3, normalization=Normalization(mode="range", low=-1000, high=1000), flops=flops_of_window,
    )  # fmt: skip


def save(network: nn.Module, folder: Any, window: tuple[int, ...], classes: int, flops_of_window: int) -> str:
    """Write it as TorchScript with its spec, where the engine takes it from. Returns the path."""
    from unet_engine.model.file import open_model
    from unet_engine.model.spec import METADATA_KEY

    path = folder / "mlperf.pt"
    with torch.inference_mode():
        script = torch.jit.trace(network.eval(), torch.zeros((1, 1, 32, 32, 32)), check_trace=False)
    spec = spec_of(window, classes, flops_of_window)
    torch.jit.save(script, str(path), _extra_files={METADATA_KEY: spec.model_dump_json()})
    open_model(path).trust()
    return str(path)


CALIBRATION = (32, 32, 32)
"""Window of random content that the scales come from: they decide what INT8 computes, not how fast."""


def typed_graphs(network: nn.Module, window: tuple[int, ...], classes: int) -> dict[str, Any]:
    """ONNX graphs for TensorRT as `unet-engine quantize` makes them, by precision: FP16, and convolutions in INT8 with
    FP16 between."""
    import numpy as np

    from unet_engine.model.onnx_half import to_half
    from unet_engine.model.onnx_layers import Graph
    from unet_engine.model.onnx_transposed import as_convolutions
    from unet_engine.model.spec import METADATA_KEY
    from unet_export.conversion.exporters import from_module
    from unet_export.quantize.qdq import quantizable, thresholds, to_qdq

    spec = spec_of(window, classes)
    graph = Graph(as_convolutions(from_module(network.eval(), spec)))
    rng = np.random.default_rng(0)
    content = [rng.standard_normal((1, *CALIBRATION), np.float32) for _ in range(2)]
    limits = thresholds(graph, [n.input[0] for n in quantizable(graph)], content)
    graphs = {"fp16": to_half(graph.proto), "int8": to_half(to_qdq(graph, limits))}
    for proto in graphs.values():
        entry = proto.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, spec.model_dump_json()
    return graphs
