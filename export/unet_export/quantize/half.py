"""The arithmetic of FP16 emulated in fp32, where no device computes in FP16: what `unet_engine.model.onnx_half` would
give."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from unet_engine.model.onnx_half import walk
from unet_engine.model.onnx_layers import Graph

_DOMAIN = "unet_engine.emulation"
_HELPERS = """<domain: "unet_engine.emulation", opset_import: ["" : 20]>
RoundToHalf (x) => (y)
{
    size = Abs (x)
    splitter = Constant <value = float {8193.0}> ()
    shifted = Mul (x, splitter)
    rest = Sub (shifted, x)
    normal = Sub (shifted, rest)
    magic = Constant <value = float {0.75}> ()
    raised = Add (x, magic)
    tiny = Sub (raised, magic)
    least = Constant <value = float {0.00006103515625}> ()
    is_tiny = Less (size, least)
    finite = Where (is_tiny, tiny, normal)
    limit = Constant <value = float {65520.0}> ()
    is_finite = Less (size, limit)
    huge = Constant <value = float {1.0e38}> ()
    infinite = Mul (x, huge)
    y = Where (is_finite, finite, infinite)
}"""
"""Rounding to FP16 in fp32 arithmetic. Veltkamp's splitting keeps 11 of 24 bits: c = x·(2¹³+1), c − (c − x). Below 2⁻¹⁴
numbers are multiples of 2⁻²⁴, which is the unit in the last place of what lies near 0.75. From 65520 on they round to
infinity."""


def emulated(proto: Any, kept: Collection[str] = ()) -> Any:
    """`proto` in fp32 with weights and every result of a layer that is not kept rounded to FP16, overflow included.

    Sums inside an operator are fp32, as on tensor cores; a device that fuses operators rounds less often than this.
    """
    import onnx
    from onnx import helper, parser

    graph = Graph(proto)
    result = onnx.ModelProto()
    result.CopyFrom(graph.proto)
    result.functions.append(parser.parse_function(_HELPERS))
    result.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    del result.graph.node[:], result.graph.value_info[:]
    names = {o.name for o in graph.proto.graph.output}
    for walked, half in walk(graph, kept, _Rounded(graph, result.graph), _AsItIs()):
        result.graph.node.append(walked)
        if half and (out := names & set(walked.output)):
            for name in out:
                node = result.graph.node[-1]
                node.output[list(node.output).index(name)] = f"{name}/exact"
                result.graph.node.append(
                    helper.make_node("RoundToHalf", [f"{name}/exact"], [name], name=f"{name}/rounded", domain=_DOMAIN)
                )
    return result


class _AsItIs:
    """What layers read that are kept: rounding what is rounded changes nothing, so they may read either."""

    def constant(self, name: str) -> str:
        return name

    def activation(self, name: str) -> str:
        return name


class _Rounded:
    """What layers in FP16 read."""

    def __init__(self, graph: Graph, target: Any) -> None:
        """target: the graph that is made."""
        self._graph, self._target = graph, target
        self._made: set[str] = set()

    def constant(self, name: str) -> str:
        from onnx import numpy_helper

        new = f"{name}/half"
        if new not in self._made:
            self._made.add(new)
            with np.errstate(over="ignore"):
                values = self._graph.values(name).astype(np.float16).astype(np.float32)
            self._target.initializer.append(numpy_helper.from_array(values, new))
        return new

    def activation(self, name: str) -> str:
        from onnx import helper

        new = f"{name}/rounded"
        if new not in self._made:
            self._made.add(new)
            self._target.node.append(helper.make_node("RoundToHalf", [name], [new], name=new, domain=_DOMAIN))
        return new
