"""What one window asks of a machine: operations, and bytes that pass between processor and memory if no cache holds
anything."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from unet_engine.commands.bench.space import Window
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_network import network_of

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
_LAYERS = {
    "Convolution",
    "ConvolutionBackpropData",
    "GroupConvolution",
    "MaxPool",
    "AvgPool",
    "Concat",
    "Interpolate",
    "MVN",
    "MatMul",
}
"""Layers that read and write tensors of their own; normalisation, activation and addition are computed with the layer
before them."""


@dataclass(frozen=True)
class Traffic:
    """Values, not bytes: a precision says how many bytes a value has."""

    values: int

    def bytes(self, precision: str) -> int:
        return self.values * VALUE_BYTES[precision]


def traffic(model: ModelFile, window: Window) -> Traffic | None:
    """Values that the layers of the network read and write for one window, weights included; None for formats that
    cannot be looked into.

    An upper bound of the traffic with memory: what a cache keeps from one layer to the next does not leave it.
    """
    if model.format != "onnx":
        return None
    from unet_engine.backends.openvino import ov

    try:
        network = ov.Core().read_model(network_of(model))
        network.reshape([1, model.spec.channels_in, *window])
        total = 0
        for node in network.get_ops():
            if node.get_type_name() in _LAYERS:
                sides = [*(port.get_shape() for port in node.inputs()), *(port.get_shape() for port in node.outputs())]
                total += sum(prod(shape) for shape in sides)
    except RuntimeError:
        return None
    return Traffic(total)
