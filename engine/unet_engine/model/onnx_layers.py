"""Looking at an ONNX graph: which tensors are floating point, which nodes make up a layer and what the layer is
called."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from unet_engine.errors import ModelError

Array = npt.NDArray[Any]
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INT8, BACK = "/int8", "/back"
"""What quantised weights are called, and what they are called after they were turned back."""
INPUT = "input"
"""Name of the layer of what comes before the first weights."""


class Graph:
    """An ONNX model with its local functions inlined and its types inferred. `proto` is not changed by the functions
    here."""

    def __init__(self, proto: Any) -> None:
        """Raises `ModelError` for graphs with branches and loops, which have no place in a U-Net."""
        import onnx
        from onnx import inliner, numpy_helper

        self.proto = onnx.shape_inference.infer_shapes(inliner.inline_local_functions(proto))
        graph = self.proto.graph
        for node in graph.node:
            if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
                raise ModelError(
                    f"the graph has the operator {node.op_type} ({node.name}), whose precision cannot be changed; "
                    "export without it"
                )
        self.initializers = {t.name: t for t in graph.initializer}
        values = (*graph.value_info, *graph.input, *graph.output)
        float_type = onnx.TensorProto.FLOAT
        self.floats = {v.name for v in values if v.type.tensor_type.elem_type == float_type}
        self.floats |= {t.name for t in graph.initializer if t.data_type == float_type}
        self.producers = {name: node for node in graph.node for name in node.output}
        self._to_array = numpy_helper.to_array
        self.layer = self._layers()

    def values(self, name: str) -> Array:
        """An initializer as an array."""
        return np.asarray(self._to_array(self.initializers[name]))

    def is_weighted(self, node: Any) -> bool:
        """Whether the node has weights of its own, also where they are stored quantised (see
        `unet_export.quantize.qdq`)."""
        if node.op_type not in WEIGHTED or len(node.input) < 2:
            return False
        return node.input[1] in self.initializers or f"{node.input[1].removesuffix(BACK)}{INT8}" in self.initializers

    def label(self, node: Any) -> str:
        """The layer's name in PyTorch where its weights still have it, else the node's."""
        name = str(node.input[1]).removesuffix(BACK)
        return name.removesuffix(".weight") if "." in name else str(node.name or node.output[0])

    def _layers(self) -> dict[str, str]:
        """Per tensor the name of its layer: the last weights on the way to it, following first inputs."""
        layer = {i.name: INPUT for i in self.proto.graph.input}
        for node in self.proto.graph.node:
            source = next((n for n in node.input if n and n not in self.initializers), "")
            name = self.label(node) if self.is_weighted(node) else layer.get(source, INPUT)
            for output in node.output:
                layer[output] = name
        return layer

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights, in the order of computation."""
        return tuple(dict.fromkeys(self.label(n) for n in self.proto.graph.node if self.is_weighted(n)))

    def readers(self, tensor: str) -> list[Any]:
        return [n for n in self.proto.graph.node if tensor in n.input]
