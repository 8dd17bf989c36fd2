"""The steps of `streaming_plan.py` as ONNX graphs, and their state in ring buffers that OpenVINO reads and writes in place,
for `benchmarks/streaming.py`."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper
from streaming_plan import Layer, Net, Range, Step, plan

FIXED = 0x10
"""MAP_FIXED of mmap(2)."""


class Ring:
    """Planes of a tensor, (planes, ...), in memory that is mapped twice, one after the other: any run of planes is one
    view, none is ever moved."""

    def __init__(self, plane: tuple[int, ...], capacity: int) -> None:
        size = 4 * math.prod(plane)
        unit = mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, size)
        self.capacity = -(-capacity // unit) * unit
        self.bytes = self.capacity * size
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        handle = os.memfd_create("ring")
        os.ftruncate(handle, self.bytes)
        at = libc.mmap(None, 2 * self.bytes, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        for half in range(2):
            where = libc.mmap(at + half * self.bytes, self.bytes, mmap.PROT_READ | mmap.PROT_WRITE,
                              mmap.MAP_SHARED | FIXED, handle, 0)  # fmt: skip
            if where != at + half * self.bytes:
                raise OSError("mmap")
        os.close(handle)
        raw = (ctypes.c_float * (2 * self.bytes // 4)).from_address(at)
        self._all = np.frombuffer(raw, np.float32).reshape(2 * self.capacity, *plane)

    def view(self, low: int, high: int) -> Any:
        begin = low % self.capacity
        return self._all[begin : begin + high - low]


class Stream:
    """`net` over images (planes, y, x, channels), float32. `cut`: the kept tensors at which the network is cut into
    graphs of its own, which read and write rings; what else is kept goes through a graph's inputs and outputs."""

    def __init__(self, net: Net, shape: tuple[int, int, int], planes: int, kept: set[str], cut: set[str],
                 how: dict[str, Any]) -> None:  # fmt: skip
        self.net, self.kept, self._how, self._shape = net, kept, how, shape
        self.steps = plan(net, shape[0], planes, kept)
        self.graphs = parted(net, cut)
        self.rings = {}
        for name in kept:
            most = 1
            for step in self.steps:
                low = min([step.holds[name], *(r[0] for (_, s), r in step.reads.items() if s == name)])
                most = max(most, step.after[name] - low)
            self.rings[name] = Ring(plane_of(net, shape, name), most)
        self._core = ov.Core()
        self.made: dict[Any, Any] = {}
        self._out: dict[int, Any] = {}

    def run(self, image: Any) -> Iterator[tuple[int, Any]]:
        """image: (planes, y, x, channels). First plane of each part of the result, and the part, which the next
        overwrites."""
        for step in self.steps:
            for request in self.calls(step, image):
                request.infer()
            low, high = step.before[self.net.result], step.after[self.net.result]
            if low < high:
                yield low, self._out[high - low]

    def calls(self, step: Step, image: Any) -> Iterator[Any]:
        """The requests of a step, bound, in order."""
        for layers in self.graphs:
            if not any(layer.out in step.ranges for layer in layers):
                continue
            request, inputs, outputs = self._made(layers, step)
            bound = []  # OpenVINO keeps no reference
            for table in inputs, outputs:
                for name, (tensor, low, high) in table.items():
                    bound.append(self._planes(tensor, low + step.before[tensor], high + step.before[tensor], image))
                    request.set_tensor(name, ov.Tensor(bound[-1], shared_memory=True))
            yield request

    def _planes(self, tensor: str, low: int, high: int, image: Any) -> Any:
        if tensor == self.net.source:
            return np.ascontiguousarray(image[low:high])[None]
        if tensor == self.net.result:
            if high - low not in self._out:
                self._out[high - low] = np.empty((high - low, *plane_of(self.net, self._shape, tensor)), np.float32)
            return self._out[high - low][None]
        return self.rings[tensor].view(low, high)[None]

    def compile(self) -> None:
        for step in self.steps:
            for layers in self.graphs:
                if any(layer.out in step.ranges for layer in layers):
                    self._made(layers, step)

    def _made(self, layers: list[Layer], step: Step) -> Any:
        """The network of a step, and what to bind it to; steps that differ by their place alone have one."""
        writer = _Writer(self.net, layers, step, self.kept, self._shape)
        if writer.key not in self.made:
            model = self._core.read_model(writer.model().SerializeToString())
            compiled = self._core.compile_model(model, "CPU", self._how)
            self.made[writer.key] = compiled.create_infer_request(), writer.inputs, writer.outputs
        return self.made[writer.key]


def plane_of(net: Net, shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    scale = net.scale[name]
    return shape[1] // scale, shape[2] // scale, net.channels[name]


def parted(net: Net, cut: set[str]) -> list[list[Layer]]:
    """The layers, in groups that hang together but for what is cut, in an order in which they can be computed."""
    group = {layer.out: layer.out for layer in net.layers}
    for layer in net.layers:
        for source in layer.sources:
            if source in group and (source not in cut or layer.pools):
                old, new = group[layer.out], group[source]
                group = {name: new if of == old else of for name, of in group.items()}
    found: dict[str, list[Layer]] = {}
    for layer in net.layers:
        found.setdefault(group[layer.out], []).append(layer)
    return sorted(found.values(), key=lambda layers: net.layers.index(layers[-1]))


class _Writer:
    """The ONNX graph of some layers in one step."""

    def __init__(self, net: Net, layers: list[Layer], step: Step, kept: set[str], shape: tuple[int, ...]) -> None:
        self.net, self.step, self.kept, self._shape = net, step, kept, shape
        self.layers = [layer for layer in layers if layer.out in step.ranges]
        self.own = {layer.out for layer in self.layers}
        self.inputs: dict[str, tuple[str, int, int]] = {}
        self.outputs: dict[str, tuple[str, int, int]] = {}
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._writes = {}
        for name in sorted(self.own & (kept | {net.result})):
            low, high = step.before[name], step.after[name]
            if name in kept:
                outside = [r[0] for (o, s), r in step.reads.items() if s == name and o not in self.own]
                low = max(low, min([step.holds[name], *outside]))
            if low < high:
                self._writes[name] = low, high
        key: list[Any] = []
        for layer in self.layers:
            base = step.before[net.source] // net.scale[layer.out]
            key.append((layer.out, self._pads(layer), *(p - base for p in step.ranges[layer.out])))
            for source in layer.sources:
                base = step.before.get(source, step.before[net.source] // net.scale[source])
                key.append((source, *(p - base for p in step.reads[layer.out, source])))
        key += [(name, low - step.before[name], high - step.before[name]) for name, (low, high) in self._writes.items()]
        self.key = tuple(key)

    def _pads(self, layer: Layer) -> Range:
        low, high = layer.needs(*self.step.ranges[layer.out])
        first, last = self.step.reads[layer.out, layer.sources[0]]
        return first - low, high - last

    def model(self) -> Any:
        for layer in self.layers:
            self._layer(layer)
        for name, (low, high) in self._writes.items():
            part = self._cut(name, self.step.ranges[name], (low, high), name + "_held")
            self.outputs[name + "_out"] = name, low, high
            self._add("Transpose", [part], name + "_out", perm=[0, 2, 3, 4, 1])
        ends: list[list[Any]] = [[], []]
        for listed, table in zip(ends, (self.inputs, self.outputs), strict=True):
            for name, (tensor, low, high) in table.items():
                shape = 1, high - low, *plane_of(self.net, self._shape, tensor)
                listed.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
                table[name] = tensor, low - self.step.before[tensor], high - self.step.before[tensor]
        used = {i for node in self._nodes for i in node.input}
        constants = [t for n, t in self.net.weights.items() if n in used] + list(self._constants.values())
        graph = helper.make_graph(self._nodes, "step", *ends, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _add(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def _layer(self, layer: Layer) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(layer.node)
        others = [i for i in layer.node.input if i in self.net.weights]
        del node.input[:], node.output[:]
        node.input.extend([self._read(layer, source) for source in layer.sources] + others)
        wide = layer.out + "_wide" if layer.spreads else layer.out
        node.output.append(wide)
        for attribute in node.attribute:
            if attribute.name == "pads" and layer.kernel > 1 and not layer.spreads:
                attribute.ints[0], attribute.ints[len(attribute.ints) // 2] = self._pads(layer)
        self._nodes.append(node)
        if layer.spreads:
            made = tuple(layer.stride * p for p in self.step.reads[layer.out, layer.sources[0]])
            if self._cut(wide, made, self.step.ranges[layer.out], layer.out) == wide:
                node.output[0] = layer.out

    def _cut(self, name: str, made: Range, wanted: Range, out: str) -> str:
        if made == wanted:
            return name
        ends = [self._constant(w - made[0]) for w in wanted]
        return self._add("Slice", [name, *ends, self._constant(2)], out)

    def _constant(self, value: int) -> str:
        name = f"constant{value}"
        self._constants[name] = numpy_helper.from_array(np.array([value], np.int64), name)
        return name

    def _read(self, layer: Layer, source: str) -> str:
        """Planes of `source` that the layer needs: made in this graph, kept, or some of both."""
        low, high = self.step.reads[layer.out, source]
        if source not in self.own:
            return self._get(source, low, high)
        there = self.step.ranges[source][0]
        parts = [] if low >= there else [self._get(source, low, min(high, there))]
        if high > there:
            new = max(low, there), high
            parts.append(self._cut(source, self.step.ranges[source], new, f"{source}_{layer.out}_new"))
        return parts[0] if len(parts) == 1 else self._add("Concat", parts, f"{source}_{layer.out}_all", axis=2)

    def _get(self, source: str, low: int, high: int) -> str:
        name = f"{source}_{low}_{high}_in"
        if name not in self.inputs:
            self.inputs[name] = source, low, high
            self._add("Transpose", [name], name + "_turned", perm=[0, 4, 1, 2, 3])
        return name + "_turned"
