"""Shapes of all tensors of an ONNX graph, for an input of one shape, by ONNX's own inference; and small questions put
to a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Shapes = dict[str, list[int]]
"""By name of the tensor; 0 for a size that is not known."""
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
DATA = 1024
"""Elements of a constant that may be a shape; a larger one is a weight, of which inference needs the shape alone."""


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default` where it has none."""
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators that the model uses."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def flat(model: Any) -> Any:
    """The model with the bodies of its own functions in place of their calls, so that what they compute can be seen.
    Names of tensors in them are made anew, the same ones every time."""
    if not model.functions:
        return model
    from onnx import inliner, shape_inference

    model = _with_defaults(model)
    own = opset_of(model)
    if all(opset_of(function) == own for function in model.functions):
        return inliner.inline_local_functions(model)
    try:  # those of other versions are converted, which takes types
        return inliner.inline_local_functions(shape_inference.infer_shapes(model), convert_version=True)
    except Exception:  # they stay calls then, and are refused where nothing knows them
        return inliner.inline_local_functions(model)


def _with_defaults(model: Any) -> Any:
    """The model with what functions say of attributes that a call leaves out written into the call: the inliner forgets
    it, and operators then take their own defaults."""
    import onnx

    said = {(f.domain, f.name, f.overload): list(f.attribute_proto) for f in model.functions if f.attribute_proto}
    if not said:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for nodes in (copy.graph.node, *(f.node for f in copy.functions)):
        for node in all_of(nodes):
            there = {a.name for a in node.attribute}
            defaults = said.get((node.domain, node.op_type, node.overload), ())
            node.attribute.extend(a for a in defaults if a.name not in there)
    return copy


def are_joint(model: Any) -> bool:
    """Whether the graph is of a time when a Softmax was of all axes from its own on, as one, and has such nodes."""
    return opset_of(model) < 13 and any(node.op_type in SOFTMAXES for node in model.graph.node if is_own(node))


def all_of(nodes: Any) -> Iterator[Any]:
    """The nodes, and those inside of branches and loops."""
    for node in nodes:
        yield node
        for graph in graphs_in(node):
            yield from all_of(graph.node)


def graphs_in(node: Any) -> Iterator[Any]:
    """Those of its branches, or of its loop."""
    for held in node.attribute:
        yield from [held.g] if held.HasField("g") else []
        yield from held.graphs


def is_own(node: Any) -> bool:
    """Whether the operator is one of ONNX itself."""
    return node.domain in ("", "ai.onnx")


def is_trained(node: Any) -> bool:
    """Whether a node is a BatchNormalization that works as in training, by the statistics of what it is given: since
    version 14 that is an attribute, before it gave these statistics as well, and before version 7 was told of tests."""
    if node.op_type != "BatchNormalization" or not is_own(node):
        return False
    gives_statistics = sum(map(bool, node.output)) > 1
    return bool(attribute(node, "training_mode", 0)) or gives_statistics or not attribute(node, "is_test", 1)


def read_by(node: Any) -> set[str]:
    """Tensors that a node reads, also from inside the graphs of a branch or a loop."""
    names = set(node.input)
    for graph in graphs_in(node):
        for inner in graph.node:
            names |= read_by(inner)
        names |= {o.name for o in graph.output}
    return names


def images_of(graph: Any) -> list[Any]:
    """The inputs that are no weights, and that something reads."""
    weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    read = {name for node in graph.node for name in read_by(node)}
    return [i for i in graph.input if i.name not in weights and i.name in read]


def needs_tidying(graph: Any) -> bool:
    """Whether libraries stumble over how its inputs are written: one that nothing reads, or 0 for a size that is
    free."""
    weights = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    images = images_of(graph)
    zero = any(d.HasField("dim_value") and d.dim_value == 0 for i in images for d in i.type.tensor_type.shape.dim)
    return zero or len(images) < sum(i.name not in weights for i in graph.input)


def dims(value: Any) -> list[int]:
    """Sizes of an input or output as the file has them; 0 for those that are free, which some converters write as -1."""
    return [max(d.dim_value, 0) for d in value.type.tensor_type.shape.dim]


def integers(graph: Any) -> dict[str, list[int]]:
    """The constants that may be shapes, axes or pads, by name."""
    from onnx import TensorProto, numpy_helper

    tensors = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and is_own(node):
            value = attribute(node, "value", None)
            if value is not None:
                tensors[node.output[0]] = value
    whole = (TensorProto.INT64, TensorProto.INT32)
    return {
        name: [int(v) for v in numpy_helper.to_array(t).reshape(-1)]
        for name, t in tensors.items()
        if t.data_type in whole and prod(t.dims) <= DATA and not t.external_data
    } | {
        n.output[0]: [int(v) for v in attribute(n, "value_ints", [attribute(n, "value_int", 0)])]
        for n in graph.node
        if n.op_type == "Constant" and any(a.name in ("value_int", "value_ints") for a in n.attribute)
    }


@dataclass(frozen=True)
class Tensors:
    """What inference tells of the tensors of a graph."""

    shapes: Shapes
    types: dict[str, int]
    """ONNX's number of the type of their elements; 0 where it is not known."""
    ran: bool = False
    """Whether a window was run to know them."""


def inferred(model: Any, name: str, shape: Sequence[int], *, strict: bool) -> Tensors:
    """Shapes and types for an input `name` of `shape`. `model` stays as it is.

    `strict`: whether a node that contradicts its input is an error, as inference raises it; else what follows from
    it is left out.
    """
    import onnx

    bare = _bare(model)
    for value in bare.graph.input:
        if value.name == name:
            _set(value, shape)
    found = onnx.shape_inference.infer_shapes(bare, strict_mode=strict, data_prop=True).graph
    known = [v for v in (*found.input, *found.value_info, *found.output) if v.type.HasField("tensor_type")]
    shapes = {v.name: dims(v) for v in known if v.type.tensor_type.HasField("shape")}
    shapes |= {t.name: list(t.dims) for t in model.graph.initializer}
    return Tensors(shapes, {v.name: v.type.tensor_type.elem_type for v in known})


def _bare(model: Any) -> Any:
    """The graph without its weights, of which only shapes and types stay, and without shapes that were inferred before.

    GroupNormalization keeps the shape of what it is given, and is taken as Identity: from opset 21 on inference
    refuses graphs with it that every library runs.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.ir_version = max(model.ir_version, 4)  # from there on a weight need not be an input as well
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph, inputs = bare.graph, {i.name for i in model.graph.input}
    graph.name = model.graph.name
    graph.input.extend(model.graph.input)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= DATA and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    graph.node.extend(model.graph.node)
    for node in graph.node:
        if node.op_type == "GroupNormalization" and is_own(node):
            del node.attribute[:], node.input[1:]
            node.op_type = "Identity"
    for output in model.graph.output:
        kept = graph.output.add()
        kept.name = output.name
        if output.type.HasField("tensor_type"):
            kept.type.tensor_type.elem_type = output.type.tensor_type.elem_type
    return bare


def _set(value: Any, shape: Sequence[int]) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size
