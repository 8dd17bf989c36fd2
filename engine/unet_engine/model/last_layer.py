"""The last layer of a network, where it is a convolution of one voxel: what goes into it may be blended in its place.

It is linear, and the weights of all windows at a voxel sum to one, so the blended features put through it are the
blended outputs:

    sum over w of g_w (A f_w + b) = A (sum over w of g_w f_w) + b,    where the g_w sum to 1

A network of many classes then hands over its few features in place of its many outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.model.onnx_rewrite import FLOAT, Rewriting
from unet_engine.model.onnx_shapes import attribute, is_own

F32 = npt.NDArray[np.float32]
PAYS, MANY = 2, 16
"""Outputs for a feature, and outputs in all, from which on less is moved to speak of."""


@dataclass(frozen=True)
class LastLayer:
    """``outputs = weights @ features + bias`` for each voxel."""

    rewriting: Rewriting
    """What gives the features in place of the outputs."""
    features: int
    outputs: int
    values: bytes
    """float32: the weights (outputs, features), and the biases (outputs)."""

    @property
    def weights(self) -> F32:
        return np.frombuffer(self.values, np.float32, self.outputs * self.features).reshape(self.outputs, -1)

    @property
    def bias(self) -> F32:
        return np.frombuffer(self.values, np.float32, offset=4 * self.outputs * self.features)

    @property
    def pays(self) -> bool:
        return self.outputs >= max(MANY, PAYS * self.features)


def last_layer(model: Any, path: Path, how: Rewriting) -> LastLayer | None:
    """The last layer of an ONNX graph, without functions of its own, that is read as `how` says; None where it ends in
    anything else. `path` is where the file lies, whose weights may lie beside it.

    What is behind it may add a constant to each channel, and hand on what it is given. Its numbers must be float32, and
    (batch, channel, *space) its axes.
    """
    if how.gives != FLOAT or how.output_axes:
        return None
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = _Constants(model.graph, path.parent)
    node, added = _convolution(how.output, makers, constants)
    weights = None if node is None or node.input[0] not in makers else constants.of(node.input[1])
    if weights is None or not _is_of_one_voxel(node, weights):
        return None
    outputs, features = weights.shape[:2]
    rows = [_per_channel(constant, weights.ndim, outputs) for constant in added]
    total = np.zeros(outputs, np.float32)
    for row in rows:
        total = total + row if row is not None else np.full(outputs, np.nan, np.float32)
    if not np.isfinite(weights).all() or not np.isfinite(total).all():
        return None
    values = np.ascontiguousarray(weights.reshape(outputs, features), np.float32).tobytes() + total.tobytes()
    return LastLayer(replace(how, output=str(node.input[0]), changes=True), int(features), int(outputs), values)


def _convolution(name: str, makers: Mapping[str, Any], constants: _Constants) -> tuple[Any, list[F32 | None]]:
    """The convolution that the tensor `name` comes from, and what is added to what it gives, in this order: None for
    anything but a constant. None and nothing where it comes from something else."""
    added: list[F32 | None] = []
    while (node := makers.get(name)) is not None and is_own(node) and node.op_type in ("Identity", "Add"):
        name = node.input[0]
        if node.op_type == "Add":
            constant = constants.of(node.input[1])
            if constant is None:
                constant, name = constants.of(node.input[0]), node.input[1]
            added.append(constant)
    if node is None or not is_own(node) or node.op_type != "Conv":
        return None, []
    if len(node.input) > 2 and node.input[2]:
        bias = constants.of(node.input[2])
        added.append(None if bias is None else bias.reshape(-1, *(1,) * (constants.rank(node.input[1]) - 2)))
    return node, added[::-1]


def _per_channel(constant: F32 | None, rank: int, channels: int) -> F32 | None:
    """What is added to each channel of a tensor of that rank; None where it differs from voxel to voxel."""
    if constant is None:
        return None
    shape = (*(1,) * (rank - constant.ndim), *constant.shape)
    if len(shape) != rank or constant.size not in (1, channels) or constant.size != shape[1]:
        return None
    return constant.reshape(-1)


def _is_of_one_voxel(node: Any, weights: F32) -> bool:
    """Whether a convolution makes each voxel of that voxel alone, and all channels of all."""
    axes = weights.ndim - 2
    return (
        axes > 0
        and weights.shape[2:] == (1,) * axes
        and attribute(node, "group", 1) == 1
        and not any(attribute(node, "pads", []))
        and all(step == 1 for step in attribute(node, "strides", []))
        and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID", b"SAME_UPPER", b"SAME_LOWER")
    )


class _Constants:
    """The constants of a graph that are float32."""

    def __init__(self, graph: Any, folder: Path) -> None:
        self._folder = folder
        self._tensors = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and is_own(node) and (value := attribute(node, "value", None)) is not None:
                self._tensors[node.output[0]] = value

    def rank(self, name: str) -> int:
        """0 where there is none of that name."""
        return len(self._tensors[name].dims) if name in self._tensors else 0

    def of(self, name: str) -> F32 | None:
        from onnx import numpy_helper

        tensor = self._tensors.get(name)
        if tensor is None or tensor.data_type != FLOAT:
            return None
        return np.asarray(numpy_helper.to_array(tensor, base_dir=str(self._folder)), np.float32)
