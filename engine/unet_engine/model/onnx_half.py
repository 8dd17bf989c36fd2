"""FP16 as a strongly typed ONNX graph: a tensor's type in the graph is the type it is computed in.

TensorRT 11 has no weak typing, and ONNX Runtime none at all. Normalisations stay in fp32 always, since their sums over
a window leave the range of FP16 first; whole layers stay there as the gate asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import ModelError
from unet_engine.model.onnx_layers import Graph

Array = npt.NDArray[Any]
LARGEST = 65504.0
"""Largest finite FP16 number."""
NORMS = frozenset(
    ("InstanceNormalization", "GroupNormalization", "LayerNormalization", "BatchNormalization", "ReduceMean",
     "ReduceSum", "Softmax")
)  # fmt: skip
_FLOAT_ONLY = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX wants in fp32 whatever the type of the rest: scales and regions."""


def in_half(network: Path | bytes) -> bytes:
    """The graph, given as its file or its bytes, with its layers in FP16: see `to_half`."""
    import onnx

    proto = onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network)
    half: bytes = to_half(proto).SerializeToString()
    return half


def to_half(proto: Any, kept: Collection[str] = ()) -> Any:
    """`proto` with layers in FP16 but those `kept` and normalisations. Input and output stay fp32, cast at the rim.

    Raises `ModelError` where a weight does not fit FP16, naming its layer; keep that layer.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = Graph(proto)
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    halves: set[str] = set()
    """Tensors of the new graph that are FP16."""
    made: dict[str, Any] = {}
    nodes: list[Any] = []

    def constant(name: str, half: bool) -> str:  # noqa: FBT001
        new = f"{name}/half" if half else name
        if new not in made:
            values = graph.values(name)
            if half:
                _check_range(name, values, graph)
                values = values.astype(np.float16)
                halves.add(new)
            made[new] = numpy_helper.from_array(values, new)
        return new

    def activation(name: str, half: bool) -> str:  # noqa: FBT001
        if (name in halves) == half:
            return name
        new = f"{name}/{'half' if half else 'single'}"
        if new not in halves and not any(new in n.output for n in nodes[-64:]):
            nodes.append(
                helper.make_node("Cast", [name], [new], name=new, to=TensorProto.FLOAT16 if half else TensorProto.FLOAT)
            )
        if half:
            halves.add(new)
        return new

    for node, half in walk(graph, kept, constant, activation):
        if half and any(o in graph.floats for o in node.output):
            _retype(node)
            halves.update(o for o in node.output if o in graph.floats)
        nodes.append(node)
    result.graph.node.extend(_outputs_in_single(nodes, graph, halves))
    result.graph.initializer.extend(made.values())
    return result


def walk(
    graph: Graph, kept: Collection[str], constant: Callable[[str, bool], str], activation: Callable[[str, bool], str]
) -> Iterator[tuple[Any, bool]]:
    """A copy of each node, and whether it computes in FP16: its layer is not `kept` and it is no normalisation.

    The inputs of the copy are called as `constant` and `activation` say, each asked with a name and whether FP16 is
    wanted there.
    """
    import onnx

    for old in graph.proto.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(old)
        half = old.op_type not in NORMS and graph.layer[old.output[0]] not in kept
        for i, name in enumerate(old.input):
            typed = name in graph.floats and i not in _FLOAT_ONLY.get(old.op_type, ())
            if name in graph.initializers:
                node.input[i] = constant(name, half and typed)
            elif typed:
                node.input[i] = activation(name, half)
        yield node, half


def _check_range(name: str, values: Array, graph: Graph) -> None:
    if values.size and not np.abs(values).max() <= LARGEST:
        layer = name.removesuffix(".weight").removesuffix(".bias").removesuffix(".weight_bias")
        raise ModelError(
            f"the weights {name} reach {np.abs(values).max():.3g}, more than FP16 holds; keep the layer {layer} in fp32"
        )


def _retype(node: Any) -> None:
    """Constants and casts inside a node follow it to FP16."""
    from onnx import AttributeProto, TensorProto, numpy_helper

    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            floats = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.array(floats, np.float16))
            attribute.Clear()
            attribute.name, attribute.type = "value", AttributeProto.TENSOR
            attribute.t.CopyFrom(tensor)


def _outputs_in_single(nodes: list[Any], graph: Graph, halves: set[str]) -> list[Any]:
    """Outputs of the graph that became FP16 get a cast behind them, under the name they had."""
    from onnx import TensorProto, helper

    for output in graph.proto.graph.output:
        if output.name not in halves:
            continue
        for node in nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == output.name:
                        names[i] = f"{name}/half"
        nodes.append(
            helper.make_node(
                "Cast", [f"{output.name}/half"], [output.name], name=f"{output.name}/single", to=TensorProto.FLOAT
            )
        )
    return nodes
