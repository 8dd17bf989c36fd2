"""Transposed convolutions whose windows do not overlap, as what they are: a convolution of one voxel, whose channels
are then laid out as voxels.

Libraries have no INT8 for transposed convolutions, and fewer fast kernels. y[c, s·d + i] = Σ x[ci, d] · W[ci, c, i]
for a stride s as long as the kernel: each offset i has weights of its own, so it is a channel of a plain convolution.
The same products, added over the same channels.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from unet_engine.model.onnx_layers import Graph

KNOWS_START = 15
"""First set of operators whose `Shape` may leave out leading axes."""


def as_convolutions(proto: Any) -> Any:
    """`proto` with the transposed convolutions replaced that can be; weights keep their names, and so do layers."""
    import onnx

    graph = Graph(proto)
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    del result.graph.node[:]
    for node in graph.proto.graph.node:
        replaced = opset >= KNOWS_START and _is_plain(node, graph)
        result.graph.node.extend(_replacement(node, graph, result.graph) if replaced else [node])
    del result.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(result)


def _is_plain(node: Any, graph: Graph) -> bool:
    """Whether no two voxels of its input reach one voxel of its output, and its weights are nobody else's."""
    if node.op_type != "ConvTranspose" or any(name not in graph.initializers for name in node.input[1:]):
        return False
    if any(len(graph.readers(name)) > 1 for name in node.input[1:]):
        return False
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    kernel = list(graph.values(node.input[1]).shape[2:])
    return (
        list(given.get("strides", [1] * len(kernel))) == kernel
        and given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and given.get("group", 1) == 1
        and "output_shape" not in given
        and not any(given.get("pads", ())) and not any(given.get("output_padding", ()))
        and all(d == 1 for d in given.get("dilations", ()))
    )  # fmt: skip


def _replacement(node: Any, graph: Graph, target: Any) -> list[Any]:
    """The nodes in its place; their constants are put into `target`."""
    from onnx import helper, numpy_helper

    weights = graph.values(node.input[1])
    channels, kernel = weights.shape[1], weights.shape[2:]
    axes, name, out = len(kernel), node.name or node.output[0], node.output[0]

    def constant(called: str, values: Any) -> str:
        for old in [t for t in target.initializer if t.name == called]:
            target.initializer.remove(old)
        target.initializer.append(numpy_helper.from_array(values, called))
        return called

    def integers(called: str, *values: int) -> str:
        return constant(f"{name}/{called}", np.array(values, np.int64))

    # channels of the convolution: offsets, the last axis fastest, then the channels of each
    flat = weights.transpose(*range(2, 2 + axes), 1, 0).reshape(prod(kernel) * channels, -1, *(1,) * axes)
    inputs = [node.input[0], constant(node.input[1], np.ascontiguousarray(flat))]
    if len(node.input) > 2 and node.input[2]:
        inputs.append(constant(node.input[2], np.tile(graph.values(node.input[2]), prod(kernel))))
    split, shape = f"{name}/split", f"{name}/size"
    apart = integers("apart", 0, *kernel, channels)
    together, scale = integers("together", 0, channels), integers("kernel", *kernel)
    order = [0, 1 + axes, *(i for a in range(axes) for i in (2 + axes + a, 1 + a))]
    return [
        helper.make_node("Conv", inputs, [split], name=name, kernel_shape=[1] * axes),
        helper.make_node("Shape", [split], [shape], name=shape, start=2),
        helper.make_node("Concat", [apart, shape], [f"{apart}/shape"], name=f"{apart}/shape", axis=0),
        helper.make_node("Reshape", [split, f"{apart}/shape"], [f"{apart}/out"], name=f"{apart}/out"),
        helper.make_node("Transpose", [f"{apart}/out"], [f"{name}/order"], name=f"{name}/order", perm=order),
        helper.make_node("Mul", [shape, scale], [f"{scale}/size"], name=f"{scale}/size"),
        helper.make_node(
            "Concat", [together, f"{scale}/size"], [f"{together}/shape"], name=f"{together}/shape", axis=0
        ),
        helper.make_node("Reshape", [f"{name}/order", f"{together}/shape"], [out], name=f"{name}/out"),
    ]
