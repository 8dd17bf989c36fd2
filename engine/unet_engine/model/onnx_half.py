"""FP16 as a strongly typed ONNX graph: a tensor's type in the graph is the type it is computed in.

TensorRT 11 has no weak typing, and ONNX Runtime none at all. Normalisations stay in fp32, since their sums over a window
leave the range of FP16 first; whole layers stay there as the gate asks. InstanceNorm alone takes and gives FP16: libraries
compute its statistics in fp32 all the same (ONNX Runtime's CUDA provider by cuDNN's sums, PyTorch by its own or ours,
TensorRT by its default), and casts around it would read and write a window in fp32 once more each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_engine.errors import ModelError
from unet_engine.model.onnx_layers import Graph

Array = npt.NDArray[Any]
LARGEST = 65504.0
"""Largest finite FP16 number."""
NORMS = frozenset(
    ("GroupNormalization", "LayerNormalization", "BatchNormalization", "ReduceMean", "ReduceSum", "Softmax")
)
VERSION = 2
"""Of what graphs are made; names a run, and goes up whenever its bytes would change."""
_FLOAT_ONLY = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX wants in fp32 whatever the type of the rest: scales and regions."""


def in_half(network: Path | bytes) -> bytes:
    """The graph, given as its file or its bytes, with its layers in FP16: see `to_half`."""
    import onnx

    proto = onnx.load_from_string(network) if isinstance(network, bytes) else onnx.load(network)
    half: bytes = to_half(proto).SerializeToString()
    return half


def to_half(proto: Any, kept: Collection[str] = ()) -> Any:
    """`proto` with layers in FP16 but those `kept` and `NORMS`. Input and output stay fp32, cast at the rim.

    Raises `ModelError` where a weight does not fit FP16, naming its layer; keep that layer.
    """
    import onnx

    graph = Graph(proto)
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
    new = _New(graph)
    for node, half in walk(graph, kept, _InHalf(new), _InSingle(new)):
        if half and any(o in graph.floats for o in node.output):
            _retype(node)
            new.halves.update(o for o in node.output if o in graph.floats)
        new.nodes.append(node)
    result.graph.node.extend(_outputs_in_single(new.nodes, graph, new.halves))
    result.graph.initializer.extend(new.constants.values())
    return result


class Typed(Protocol):
    """What nodes of one type read: names of tensors in that type, made where there are none yet."""

    def constant(self, name: str) -> str: ...

    def activation(self, name: str) -> str: ...


class _New:
    """The graph as it grows."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.nodes, self.constants = graph, list[Any](), dict[str, Any]()
        self.halves: set[str] = set()
        """Tensors that are FP16."""
        self._cast: set[str] = set()

    def store(self, name: str, values: Array) -> None:
        from onnx import numpy_helper

        self.constants[name] = numpy_helper.from_array(values, name)

    def cast(self, name: str, new: str, to: int) -> str:
        from onnx import helper

        if new not in self._cast:
            self._cast.add(new)
            self.nodes.append(helper.make_node("Cast", [name], [new], name=new, to=to))
        return new


@dataclass(frozen=True)
class _InHalf:
    new: _New

    def constant(self, name: str) -> str:
        half = f"{name}/half"
        if half not in self.new.constants:
            values = self.new.graph.values(name)
            _check_range(name, values)
            self.new.store(half, values.astype(np.float16))
            self.new.halves.add(half)
        return half

    def activation(self, name: str) -> str:
        from onnx import TensorProto

        if name in self.new.halves:
            return name
        self.new.halves.add(f"{name}/half")
        return self.new.cast(name, f"{name}/half", TensorProto.FLOAT16)


@dataclass(frozen=True)
class _InSingle:
    new: _New

    def constant(self, name: str) -> str:
        if name not in self.new.constants:
            self.new.store(name, self.new.graph.values(name))
        return name

    def activation(self, name: str) -> str:
        from onnx import TensorProto

        return self.new.cast(name, f"{name}/single", TensorProto.FLOAT) if name in self.new.halves else name


def walk(graph: Graph, kept: Collection[str], in_half: Typed, in_single: Typed) -> Iterator[tuple[Any, bool]]:
    """A copy of each node, and whether it computes in FP16: its layer is not `kept` and it is none of `NORMS`. Its
    inputs are called as `in_half` or `in_single` say."""
    import onnx

    for old in graph.proto.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(old)
        half = old.op_type not in NORMS and graph.layer[old.output[0]] not in kept
        for i, name in enumerate(old.input):
            typed = name in graph.floats and i not in _FLOAT_ONLY.get(old.op_type, ())
            wanted = in_half if half and typed else in_single
            if name in graph.initializers:
                node.input[i] = wanted.constant(name)
            elif typed:
                node.input[i] = wanted.activation(name)
        yield node, half


def _check_range(name: str, values: Array) -> None:
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
