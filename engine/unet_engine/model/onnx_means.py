"""Means over a window taken in steps: of boxes, of boxes of these, until few numbers are left.

Libraries add up all voxels of a channel in float32, one after the other. Where many are alike, the air of a CT or the
empty border of a slide, every addition is rounded in the same direction: the mean of 2**18 voxels is 1e-3 off, and so
is what InstanceNorm makes of it, by up to 4e-3 of the range of the outputs. In steps an error is that of `FEW`
additions (pairwise summation: Higham, SIAM J. Sci. Comput. 14, 1993), 1e-6, for as much time. A norm is written as what
it means,

    d = x - mean(x);  y = d · scale / sqrt(mean(d²) + epsilon) + bias

in nodes that libraries fuse. The steps are poolings: means one after the other are joined to one by a library.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from unet_engine.model.onnx_rewrite import FLOAT
from unet_engine.model.onnx_shapes import (
    Tensors,
    attribute,
    images_of,
    inferred,
    integers,
    is_own,
    opset_of,
    read_by,
)

FEW = 64
"""Numbers that are added up at once, about."""
ENOUGH = 512
"""Of so many voxels a mean is left to the library."""
EDGES = {1: 64, 2: 8, 3: 4}
"""Of a box of `FEW` numbers, by its dimensions."""
OLDEST = 8
"""The operators of earlier opsets lack what is used here."""
NAMED = {"means": "in steps"}
"""What names a run by a library that is given such a network."""
KINDS = ("InstanceNormalization", "GroupNormalization", "ReduceMean", "GlobalAveragePool")


def has_means(model: Any) -> bool:
    """Whether the graph has nodes that `in_steps` may change."""
    return opset_of(model) >= OLDEST and any(node.op_type in KINDS and is_own(node) for node in model.graph.node)


def in_steps(model: Any, shape: Sequence[int]) -> int:
    """Change the means over space, and the norms of such means, of an ONNX graph whose input has `shape` (batch, channel,
    \\*space); how many there were. Only those of float32 over more than `ENOUGH` voxels whose sizes are known."""
    graph = model.graph
    found = inferred(model, images_of(graph)[0].name, shape, strict=False)
    norms, means = _norms(model, found), _means(graph, found)
    gone = {norm.out for norm in norms.values()}
    nodes, steps = list(graph.node), _Steps(graph)
    del graph.node[:]
    for node in nodes:
        name = node.output[0]
        if name in norms:
            steps.norm(norms[name])
        elif name in means:
            steps.mean(node, means[name])
        elif name not in gone:
            graph.node.append(node)
    return len(norms) + len(means)


@dataclass(frozen=True)
class _Norm:
    """Of the channels of each group together."""

    data: str
    sizes: Sequence[int]
    groups: int
    parts: tuple[str, str]
    """Scale and bias: of a number for each channel, or for each group where they are `of_groups`."""
    of_groups: bool
    epsilon: float
    out: str


def _norms(model: Any, found: Tensors) -> dict[str, _Norm]:
    """By what the node gives."""
    norms = {}
    regrouped = _Regrouped(model.graph, found)
    for node in model.graph.node:
        if node.op_type not in KINDS[:2] or not is_own(node) or len(node.input) < 3:
            continue
        sizes = found.shapes.get(node.input[0], [])
        groups = attribute(node, "num_groups", sizes[1] if len(sizes) > 1 else 0)
        norm = regrouped.norm(node) or _Norm(
            node.input[0], sizes, groups, (node.input[1], node.input[2]), epsilon=_epsilon(node), out=node.output[0],
            of_groups=node.op_type == "GroupNormalization" and opset_of(model) < 21,
        )  # fmt: skip
        if _is_large(found, norm.data):
            norms[node.output[0]] = norm
    return norms


def _epsilon(node: Any) -> float:
    return float(attribute(node, "epsilon", 1e-5))


def _means(graph: Any, found: Tensors) -> dict[str, Sequence[int]]:
    """Sizes of what is averaged over all of space and nothing else, by what the node gives."""
    constants, means = integers(graph), dict[str, Sequence[int]]()
    for node in graph.node:
        if node.op_type not in KINDS[2:] or not is_own(node) or not _is_large(found, node.input[0]):
            continue
        sizes = found.shapes[node.input[0]]
        space = list(range(2, len(sizes)))
        axes = attribute(node, "axes", constants.get(node.input[1]) if len(node.input) > 1 else None)
        if node.op_type == "GlobalAveragePool" or (axes and sorted(a % len(sizes) for a in axes) == space):
            means[node.output[0]] = sizes
    return means


def _is_large(found: Tensors, name: str) -> bool:
    sizes = found.shapes.get(name, [])
    known = len(sizes) - 2 in EDGES and all(sizes) and found.types.get(name) == FLOAT
    return known and prod(sizes[2:]) > ENOUGH


class _Regrouped:
    """GroupNorm as exporters write it where ONNX has none: InstanceNorm of (batch, group, all else), and back."""

    def __init__(self, graph: Any, found: Tensors) -> None:
        self._shapes = found.shapes
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, Any] = {name: node for node in graph.node for name in read_by(node)}
        read = [name for node in graph.node for name in read_by(node)]
        self._count = Counter([*read, *(o.name for o in graph.output)])

    def norm(self, node: Any) -> _Norm | None:
        before, after = self._makers.get(node.input[0]), self._readers.get(node.output[0])
        if before is None or after is None or {before.op_type, after.op_type} != {"Reshape"}:
            return None
        sizes, given = self._shapes.get(before.input[0], []), self._shapes.get(node.input[0], [])
        back = self._shapes.get(after.output[0], [])
        if len(given) != 3 or len(sizes) < 3 or not all(sizes) or back != sizes or self._count[node.output[0]] != 1:
            return None
        if given[0] != sizes[0] or sizes[1] % given[1]:
            return None
        parts = node.input[1], node.input[2]
        return _Norm(
            before.input[0], sizes, given[1], parts, of_groups=True, epsilon=_epsilon(node), out=after.output[0]
        )


class _Steps:
    """Puts nodes behind those that a graph has."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def mean(self, node: Any, sizes: Sequence[int]) -> None:
        """The node is given the means of boxes."""
        node.input[0] = self._boxes(node.input[0], sizes, f"{node.output[0]}.steps")
        self._graph.node.append(node)

    def norm(self, norm: _Norm) -> None:
        out = norm.out
        apart = self._add("Sub", [norm.data, self._mean(norm.data, norm, f"{out}.mean")], f"{out}.apart")
        squares = self._add("Mul", [apart, apart], f"{out}.squares")
        variance = self._mean(squares, norm, f"{out}.variance")
        above = self._add("Add", [variance, self._number(norm.epsilon, f"{out}.epsilon")], f"{out}.above")
        deviation = self._add("Sqrt", [above], f"{out}.deviation")
        scale, bias = (self._of_channels(p, norm, f"{out}.{i}") for i, p in enumerate(norm.parts))
        factor = self._add("Div", [scale, deviation], f"{out}.factor")
        self._add("Add", [self._add("Mul", [apart, factor], f"{out}.scaled"), bias], out)

    def _mean(self, data: str, norm: _Norm, name: str) -> str:
        """Of each group, for each of its channels: (batch, channel, 1, …)."""
        mean = self._add("GlobalAveragePool", [self._boxes(data, norm.sizes, f"{name}.steps")], f"{name}.channels")
        batch, channels = norm.sizes[:2]
        if norm.groups == channels:
            return mean
        each = [batch, norm.groups, channels // norm.groups]
        mean = self._add("GlobalAveragePool", [self._reshaped(mean, each, f"{name}.each")], f"{name}.groups")
        mean = self._add("Expand", [mean, self._whole(each, f"{name}.spread.sizes")], f"{name}.spread")
        return self._reshaped(mean, [batch, channels] + [1] * len(norm.sizes[2:]), name)

    def _boxes(self, data: str, sizes: Sequence[int], name: str) -> str:
        """Means of boxes of boxes, not more than `FEW` in a channel. Boxes at the end that are not full are filled with
        zeros, so that all weigh the same; what these take from the mean is given back."""
        space, at, step, filled = list(sizes[2:]), data, 0, 1.0
        while prod(space) > FEW:
            box = [min(EDGES[len(space)], n) for n in space]
            more = [-n % edge for n, edge in zip(space, box, strict=True)]
            whole = [n + m for n, m in zip(space, more, strict=True)]
            filled *= prod(whole) / prod(space)
            at = self._add(
                "AveragePool", [at], f"{name}.{step}", kernel_shape=box, strides=box,
                pads=[0] * len(space) + more, count_include_pad=1,
            )  # fmt: skip
            space = [n // edge for n, edge in zip(whole, box, strict=True)]
            step += 1
        return at if filled == 1.0 else self._add("Mul", [at, self._number(filled, f"{name}.filled")], f"{name}.whole")

    def _of_channels(self, name: str, norm: _Norm, out: str) -> str:
        """Numbers of channels or groups, as (1, channel, 1, …)."""
        channels = norm.sizes[1]
        if norm.of_groups and norm.groups != channels:
            column = self._reshaped(name, [norm.groups, 1], f"{out}.groups")
            each = self._whole([norm.groups, channels // norm.groups], f"{out}.each")
            name = self._add("Expand", [column, each], f"{out}.spread")
        return self._reshaped(name, [1, channels] + [1] * len(norm.sizes[2:]), f"{out}.channels")

    def _reshaped(self, name: str, sizes: Sequence[int], out: str) -> str:
        return self._add("Reshape", [name, self._whole(sizes, f"{out}.sizes")], out)

    def _number(self, value: float, name: str) -> str:
        import numpy as np

        return self._constant(np.array(value, np.float32), name)

    def _whole(self, values: Sequence[int], name: str) -> str:
        import numpy as np

        return self._constant(np.array(values, np.int64), name)

    def _constant(self, value: Any, name: str) -> str:
        from onnx import numpy_helper

        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _add(self, kind: str, inputs: Sequence[str], out: str, **attributes: Any) -> str:
        from onnx import helper

        self._graph.node.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out
