"""A convolution of concatenated tensors as a sum of convolutions of each:

    conv(concat(a, b), W) = conv(a, W_a) + conv(b, W_b)

The same but for rounding. The concatenation, a copy of the largest tensors of a U-Net, falls away, and libraries add
while they compute the second convolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unet_engine.model.onnx_shapes import attribute, dims, images_of, inferred, is_own

FREE = 64
"""Taken for a size that is free, where shapes are found: all poolings divide it."""


def split(model: Any) -> int:
    """Change all such convolutions of an ONNX graph that has its weights inside; how many there were. One whose
    concatenation others read too, or whose weights are computed, is left alone."""
    from onnx import numpy_helper

    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
    weights, shapes = {tensor.name: tensor for tensor in graph.initializer}, _shapes(model)
    nodes, count = [], 0
    for node in graph.node:
        joined = makers.get(node.input[0]) if node.op_type == "Conv" and is_own(node) else None
        channels = _channels(joined, shapes) if joined is not None and readers[node.input[0]] == 1 else None
        if channels is None or node.input[1] not in weights or attribute(node, "group", 1) != 1:
            nodes.append(node)
            continue
        whole = numpy_helper.to_array(weights[node.input[1]])
        if whole.shape[1] != sum(channels):
            nodes.append(node)
            continue
        nodes += _summed(graph, node, joined, np.split(whole, np.cumsum(channels)[:-1], axis=1))
        count += 1
    kept = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    nodes = [node for node in nodes if node.op_type != "Concat" or kept & set(node.output)]
    del graph.node[:]
    graph.node.extend(nodes)
    unused = [tensor for tensor in graph.initializer if tensor.name not in kept]
    for tensor in unused:
        graph.initializer.remove(tensor)
    return count


def _summed(graph: Any, node: Any, joined: Any, weights: Sequence[Any]) -> list[Any]:
    """A convolution for each part, the bias with the first, and their sum."""
    from onnx import NodeProto, helper, numpy_helper

    made, total = [], ""
    for i, (part, own) in enumerate(zip(joined.input, weights, strict=True)):
        name = f"{node.output[0]}.part{i}"
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(own), f"{name}.weight"))
        one = NodeProto()
        one.CopyFrom(node)
        one.name = name
        del one.input[:], one.output[:]
        one.input.extend([part, f"{name}.weight", *(node.input[2:] if i == 0 else ())])
        one.output.append(name)
        made.append(one)
        if i:
            out = node.output[0] if i == len(weights) - 1 else f"{name}.sum"
            made.append(helper.make_node("Add", [total, name], [out], name=f"{name}.add"))
            total = out
        else:
            total = name
    return made


def _channels(node: Any, shapes: Mapping[str, Sequence[int]]) -> list[int] | None:
    """Of each tensor that `node` concatenates along the channels; None where it does something else."""
    if node.op_type != "Concat" or not is_own(node) or len(node.input) < 2:
        return None
    found = [shapes.get(name, ()) for name in node.input]
    axis = attribute(node, "axis", 0)
    if any(len(shape) < 3 or not shape[1] for shape in found) or axis not in (1, 1 - len(found[0])):
        return None
    return [shape[1] for shape in found]


def _shapes(model: Any) -> Mapping[str, Sequence[int]]:
    image = images_of(model.graph)[0]
    free = [size or (1 if axis == 0 else FREE if axis > 1 else 1) for axis, size in enumerate(dims(image))]
    return inferred(model, image.name, free, strict=False).shapes
