"""What the outputs of a foreign ONNX graph are, as far as the graph proves it: bounds of its tensors, from the first
node to the last.

A convolution is unbounded, whatever came before it, so a sigmoid in the middle (an attention gate, a Swish) tells
nothing of the output. A sigmoid at the end does, also behind an Identity, Clip, Reshape, Transpose or Resize, and so do
a softmax written out and the mean of several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from unet_engine.model.ending import SLACK, UNPROVED, Ending
from unet_engine.model.onnx_bounds import BOUNDING, INDICES, LOST, UNKNOWN, Bound, NodeBound, constant
from unet_engine.model.onnx_shapes import Shapes, attribute, images_of, inferred, is_own, opset_of


def ending(graph: Any, opset: int, shapes: Shapes, output: str, channel: int = 1) -> Ending:
    """What bounds the tensor called `output`, with its channels along the axis `channel`. `shapes` by name, as far as
    they are known."""
    known: dict[str, Bound] = {t.name: constant(t) for t in graph.initializer}
    complements: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Constant":
            known |= {node.output[0]: found} if (found := _said(node)) else {}
            continue
        own = is_own(node)
        given = [known.get(name, UNKNOWN) for name in node.input]
        found = NodeBound(node, given, opset, shapes).bound() if own else UNKNOWN
        if own and node.op_type == "Sub" and (given[0].constant and given[0].low == given[0].high == 1):
            complements[node.output[0]] = node.input[1]
        if own and node.op_type == "Concat" and _opposite(list(node.input), complements) and found.low >= -SLACK:
            found = replace(found, axis=attribute(node, "axis", 1) % max(1, len(shapes.get(node.output[0], [0]))))
        if own and node.op_type in INDICES:
            places = node.output[INDICES[node.op_type] :]
            known |= dict.fromkeys(places, Bound(0, inf, end=node.op_type, whole=True))
        if found != UNKNOWN and node.output:
            known |= dict.fromkeys(node.output if node.op_type == "Split" else node.output[:1], found)
    last = known.get(output, UNKNOWN)
    axis = last.axis if last.axis is None or abs(last.total - 1) < SLACK else LOST
    return Ending(last.low, last.high, last.end, None if axis is None else axis == channel, last.whole)


def ending_for(model: Any, shape: Sequence[int]) -> Ending:
    """What bounds the first output of an ONNX model for an input of this shape."""
    graph = model.graph
    shapes = inferred(model, images_of(graph)[0].name, shape, strict=False).shapes
    return ending(graph, opset_of(model), shapes, graph.output[0].name)


def proved_of(model: Any, shape: Sequence[int]) -> Ending:
    """As `ending_for`, of a model that may be anything. Most U-Nets have nothing that bounds outputs: told without a
    copy."""
    if not any(node.op_type in BOUNDING for node in model.graph.node):
        return UNPROVED
    try:
        return ending_for(model, shape)
    except Exception:  # shape inference raises what it likes; nothing is proved then
        return UNPROVED


def _said(node: Any) -> Bound | None:
    """Of a Constant: what it holds, in whichever form; None where that is no number."""
    held = {a.name: a for a in node.attribute}
    if "value" in held:
        return constant(held["value"].t)
    numbers = [
        v for name in ("value_float", "value_int", "value_floats", "value_ints") for v in _numbers(held.get(name))
    ]
    return (
        Bound(min(numbers), max(numbers), constant=True, whole=all(v == round(v) for v in numbers)) if numbers else None
    )


def _numbers(held: Any) -> list[float]:
    from onnx import helper

    value = [] if held is None else helper.get_attribute_value(held)
    return [float(v) for v in (value if isinstance(value, Sequence) else [value])]


def _opposite(names: list[str], complements: Mapping[str, str]) -> bool:
    """Whether these are two tensors of which one is 1 minus the other."""
    return len(names) == 2 and (complements.get(names[0]) == names[1] or complements.get(names[1]) == names[0])
