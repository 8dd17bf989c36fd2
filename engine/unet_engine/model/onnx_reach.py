"""How far a network sees, told from its ONNX graph: an upper bound, where `backends/receptive_field.py` measures a
lower one.

Of every tensor that hangs on the image it is kept how far apart its voxels lie, in voxels of the image, and how far
down and up the image one of them looks. A convolution of kernel k and dilation d looks d·(k − 1) voxels of its input
farther; behind a stride voxels lie that much farther apart, behind a transposed convolution or a resizing nearer
together. Where statistics of a whole axis enter, or an operator is not known, nothing is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_network import network_of
from unet_engine.model.onnx_shapes import attribute, flat, images_of, is_own, is_trained, opset_of

_VOXEL_BY_VOXEL = frozenset(
    ("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
     "Softplus", "Softsign", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Clip", "Cast", "Identity", "Dropout", "Add",
     "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "BatchNormalization", "QuantizeLinear", "DequantizeLinear")
)  # fmt: skip
_ALONG_CHANNELS = frozenset(("Concat", "Softmax", "LogSoftmax"))


class _UnknownError(Exception):
    """Nothing can be told."""


@dataclass(frozen=True)
class _Seen:
    """Along one axis: voxel j of the tensor looks at the image from j·step − down to j·step + up."""

    step: Fraction
    down: Fraction
    up: Fraction

    def through(self, kernel: int, stride: int, dilation: int, pad: int) -> _Seen:
        before = self.step * pad
        return _Seen(self.step * stride, self.down + before, self.up + self.step * dilation * (kernel - 1) - before)

    def spread(self, kernel: int, stride: int, dilation: int, pad: int) -> _Seen:
        """Through a transposed convolution."""
        step = self.step / stride
        return _Seen(step, self.down + step * (dilation * (kernel - 1) - pad), self.up + step * pad)


_Tensor = tuple[_Seen, ...]


def reach_of(model: ModelFile) -> tuple[int, ...] | None:
    """Per axis, the distance beyond which no input voxel enters an output voxel, at most; None where the graph does not
    tell it. Of a model of several, the largest. Distances are from the voxel of the input at the same place, so that
    what the network loses at each side counts."""
    found = [_of_network(network) for network in model.networks]
    known = [reach for reach in found if reach is not None]
    return tuple(map(max, zip(*known, strict=True))) if known and len(known) == len(found) else None


def _of_network(model: ModelFile) -> tuple[int, ...] | None:
    if model.format != "onnx":
        return None
    import onnx

    try:
        network = network_of(model)
        proto = flat(onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network))
        if opset_of(proto) < 13 and any(node.op_type in ("Softmax", "LogSoftmax") for node in proto.graph.node):
            return None  # it was over the channels and all that follows them
        return _of_graph(proto.graph, len(model.spec.axes), model.spec.margin)
    except (ModelError, _UnknownError, ValueError, OSError):
        return None


def _of_graph(graph: Any, dims: int, margin: Sequence[int]) -> tuple[int, ...]:
    images = images_of(graph)
    if len(images) != 1 or len(graph.output) != 1:
        raise _UnknownError
    start = _Seen(Fraction(1), Fraction(0), Fraction(0))
    seen: dict[str, _Tensor] = {images[0].name: (start,) * dims}
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type == "Shape":  # sizes alone
            continue
        given = [seen[name] for name in node.input if name in seen]
        if given:
            for name in node.output:
                seen[name] = _through(node, given, constants, dims)
    found = seen.get(graph.output[0].name)
    if found is None or any(axis.step != 1 for axis in found):
        raise _UnknownError
    # voxel 0 of the output lies at voxel `margin` of the input
    return tuple(max(0, ceil(axis.down + m), ceil(axis.up - m)) for axis, m in zip(found, margin, strict=True))


def _through(node: Any, given: list[_Tensor], constants: dict[str, Any], dims: int) -> _Tensor:
    kind = node.op_type
    if not is_own(node) or is_trained(node) or attribute(node, "output_shape", None) is not None:
        raise _UnknownError
    if kind in _VOXEL_BY_VOXEL or (kind in _ALONG_CHANNELS and attribute(node, "axis", -1) in (1, -1 - dims)):
        return tuple(map(_joined, zip(*given, strict=True)))
    if kind in ("Conv", "MaxPool", "AveragePool", "ConvTranspose"):
        kernel = _kernel(node, constants, dims)
        strides, dilations = (_per_axis(node, name, dims) for name in ("strides", "dilations"))
        pads = _pads(node, dims)
        how = _Seen.spread if kind == "ConvTranspose" else _Seen.through
        ends = zip(given[0], kernel, strides, dilations, pads, strict=True)
        return tuple(how(*end) for end in ends)
    if kind in ("Resize", "Upsample"):
        return _resized(node, given[0], constants)
    raise _UnknownError


def _joined(parts: Sequence[_Seen]) -> _Seen:
    if len({part.step for part in parts}) > 1:
        raise _UnknownError
    return replace(parts[0], down=max(p.down for p in parts), up=max(p.up for p in parts))


def _per_axis(node: Any, name: str, dims: int) -> list[int]:
    found = list(attribute(node, name, [1] * dims))
    if len(found) != dims:
        raise _UnknownError
    return found


def _pads(node: Any, dims: int) -> list[int]:
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _UnknownError
    return list(attribute(node, "pads", [0] * 2 * dims))[:dims]


def _kernel(node: Any, constants: dict[str, Any], dims: int) -> list[int]:
    found = attribute(node, "kernel_shape", None)
    if found is None:
        if len(node.input) < 2 or node.input[1] not in constants:
            raise _UnknownError
        found = constants[node.input[1]].dims[2:]
    if len(found) != dims:
        raise _UnknownError
    return list(found)


def _resized(node: Any, given: _Tensor, constants: dict[str, Any]) -> _Tensor:
    """A voxel is made of those next to it, or of two at each side where it is cubic. Only whole factors keep the
    lattice that windows begin on, and where the ends of both lie on each other, each size of window is resized
    otherwise.

    Of f voxels for one, the j-th may be taken at (j + 1/2)/f − 1/2. Where that is below 0, so for j up to f/2 − 1, what
    enters at the lower side lies one voxel and j/f away."""
    from onnx import numpy_helper

    if attribute(node, "coordinate_transformation_mode", b"half_pixel") in (b"align_corners", b"tf_crop_and_resize"):
        raise _UnknownError
    place = 1 if node.op_type == "Upsample" else 2
    name = node.input[place] if len(node.input) > place else ""
    if name not in constants:
        raise _UnknownError
    factors = [float(f) for f in numpy_helper.to_array(constants[name])][2:]
    if len(factors) != len(given) or any(f < 1 or f != round(f) for f in factors):
        raise _UnknownError
    around = 2 if attribute(node, "mode", b"nearest") == b"cubic" else 1
    return tuple(
        replace(
            axis,
            step=axis.step / f,
            down=axis.down + axis.step * (around + Fraction(f // 2 - 1, f)),
            up=axis.up + axis.step * around,
        )
        if f != 1
        else axis
        for axis, f in zip(given, map(round, factors), strict=True)
    )


def _constants(graph: Any) -> dict[str, Any]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and (value := attribute(node, "value", None)) is not None:
            found[node.output[0]] = value
    return found
