"""Which planes each layer of a U-Net computes in each step along the first axis, and which are kept, for
`benchmarks/streaming.py`. Integers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import helper

Range = tuple[int, int]
POINTWISE = ("Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Identity")


@dataclass(frozen=True)
class Layer:
    """A node as the first spatial axis sees it: plane o is made of planes o·stride − pad and the kernel − 1 after it;
    where it spreads, plane i makes `stride` planes."""

    node: Any
    sources: tuple[str, ...]
    out: str
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    spreads: bool = False

    @property
    def pools(self) -> bool:
        return self.stride > 1 and not self.spreads

    def reached(self, have: int) -> int:
        """Planes that can be made of the first `have`, more to come."""
        if self.spreads:
            return have * self.stride
        return max(0, (have - self.kernel + self.pad) // self.stride + 1)

    def needs(self, low: int, high: int) -> Range:
        """What planes `low` to `high` are made of, padding included."""
        if self.spreads:
            return low // self.stride, -(-high // self.stride)
        return low * self.stride - self.pad, (high - 1) * self.stride - self.pad + self.kernel


@dataclass
class Net:
    layers: list[Layer]
    source: str
    result: str
    weights: dict[str, Any]
    channels: dict[str, int]
    scale: dict[str, int]
    flops: dict[str, int] = field(default_factory=dict)  # a voxel of the layer's own output


def network(path: str) -> Net:
    """The layers of an ONNX U-Net with its norms folded. Raises `ValueError` for what has no streaming form here."""
    graph = onnx.load(path).graph
    weights = {t.name: t for t in graph.initializer}
    source = next(i.name for i in graph.input if i.name not in weights)
    layers: list[Layer] = []
    channels, scale, flops = {source: graph.input[0].type.tensor_type.shape.dim[1].dim_value}, {source: 1}, {}
    for node in graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        data, out = tuple(i for i in node.input if i and i not in weights), node.output[0]
        at = data[0]
        kind = node.op_type
        if kind in ("Conv", "MaxPool", "ConvTranspose"):
            kernel, stride = given["kernel_shape"][0], given.get("strides", [1])[0]
            pad = given.get("pads", [0])[0]
            spreads = kind == "ConvTranspose"
            if (spreads and (kernel != stride or pad)) or any(d != 1 for d in given.get("dilations", [])):
                raise ValueError(f"{kind} {node.name}: no streaming form")
            layers.append(Layer(node, data, out, kernel, stride, pad, spreads))
            scale[out] = scale[at] // stride if spreads else scale[at] * stride
            channels[out] = channels[at]
            if kind != "MaxPool":
                shape = weights[node.input[1]].dims
                channels[out] = shape[1] if spreads else shape[0]
                flops[out] = 2 * math.prod(shape) // (math.prod(shape[2:]) if spreads else 1)
        elif (kind == "Concat" and given["axis"] == 1) or kind in POINTWISE:
            layers.append(Layer(node, data, out))
            channels[out], scale[out] = sum(channels[d] for d in data), scale[at]
        else:
            raise ValueError(f"{kind} {node.name}: no streaming form")
    return Net(layers, source, graph.output[0].name, weights, channels, scale, flops)


def kept_of(net: Net, every_from: int) -> set[str]:
    """Tensors that are kept from step to step: what blocks of convolutions begin with, and from the level `every_from`
    on what each convolution begins with. All between is computed again at the seams."""
    spread = {layer.out for layer in net.layers if layer.spreads}
    kept = {layer.out for layer in net.layers if layer.pools}
    for layer in net.layers:
        if layer.spreads or layer.node.op_type == "Concat":
            kept |= set(layer.sources)
    every = {s for layer in net.layers for s in layer.sources if layer.kernel > 1 and net.scale[s] >= 2**every_from}
    return (kept - spread | every) - {net.source}


@dataclass
class Step:
    """One call: what was there before, what there is after, and what each layer computes."""

    before: dict[str, int]
    after: dict[str, int]
    ranges: dict[str, Range]
    reads: dict[tuple[str, str], Range]  # (layer, source)
    holds: dict[str, int] = field(default_factory=dict)  # first plane of a kept tensor that later steps need


def plan(net: Net, length: int, planes: int, kept: set[str]) -> list[Step]:
    """Steps of at most `planes` planes each over an axis of `length`."""
    ends = kept | {net.source, net.result}
    before = dict.fromkeys(ends, 0)
    steps: list[Step] = []
    while before[net.result] < length:
        step = _step(net, before, length, planes, ends)
        steps.append(step)
        before = step.after
    holds = {name: length // net.scale[name] for name in kept}
    for step in reversed(steps):
        step.holds = dict(holds)
        for (_, source), (low, _high) in step.reads.items():
            if source in kept:
                holds[source] = min(holds[source], low)
    return steps


def _step(net: Net, before: dict[str, int], length: int, planes: int, ends: set[str]) -> Step:
    full = {name: length // scale for name, scale in net.scale.items()}
    pooled = {layer.sources[0]: layer.stride for layer in net.layers if layer.pools}
    have = {net.source: min(length, before[net.source] + planes)}
    for layer in net.layers:
        limits = []
        for source in layer.sources:
            limits.append(full[layer.out] if have[source] == full[source] else layer.reached(have[source]))
        have[layer.out] = min(limits)
        if layer.out in ends and have[layer.out] < full[layer.out]:
            have[layer.out] -= have[layer.out] % pooled.get(
                layer.out, 1
            )  # no plane waits for another to be pooled with
            have[layer.out] = min(have[layer.out], before[layer.out] + planes // net.scale[layer.out])
    wanted = {name: (before[name], have[name]) for name in ends if have[name] > before[name]}
    ranges: dict[str, Range] = {}
    reads: dict[tuple[str, str], Range] = {}
    for layer in reversed(net.layers):
        if layer.out not in wanted:
            continue
        ranges[layer.out] = low, high = wanted[layer.out]
        first, last = layer.needs(low, high)
        for source in layer.sources:
            reads[layer.out, source] = needed = max(0, first), min(full[source], last)
            if source not in ends:
                known = wanted.get(source, needed)
                wanted[source] = min(known[0], needed[0]), max(known[1], needed[1])
    return Step(before, {name: have[name] for name in ends}, ranges, reads)


def work(net: Net, steps: list[Step], shape: tuple[int, ...]) -> float:
    """Operations of all steps, of those of one window over the whole volume."""
    done = whole = 0.0
    for name, flops in net.flops.items():
        scale = net.scale[name]
        whole += flops * shape[0] / scale**3
        done += flops * sum(s.ranges[name][1] - s.ranges[name][0] for s in steps if name in s.ranges) / scale**2
    return done / whole
