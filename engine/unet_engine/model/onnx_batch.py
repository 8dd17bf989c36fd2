"""Graphs that were saved for a batch of one size: whether they compute any other as well, proved node by node.

A tensor is *batched* where its first axis is the batch and each row is what that row of the input alone gives. The
input is; a node keeps it so where it never looks across rows, and where no size that it was saved with is in its way.
Sizes in shapes that a graph gives a Reshape, Expand or Resize are taken from the tensor instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unet_engine.model.onnx_shapes import Shapes, attribute, integers, is_own, is_trained, opset_of

OPSET = 13
"""From here on Slice and Concat make shapes as they are made here."""


_GRAPHS = (5, 10)
"""Types of attributes that hold graphs: GRAPH and GRAPHS of ONNX's AttributeProto."""


class _NotProved(Exception):
    """A node may look across the rows of a batch."""


def freed(model: Any, name: str, shapes: Shapes) -> Any | None:
    """A copy of the model whose rows are computed on their own, whatever the batch; None where that is not proved.

    `name`: of its input. `shapes`: of all its tensors, for the batch it was saved for. Of the copy's input the size is
    still to be set.
    """
    import onnx

    try:
        patches = _Proof(model, name, shapes).patches()
    except _NotProved:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for i, node in enumerate(nodes):
        if i in patches:
            copy.graph.node.extend(_rows_of(node, patches[i], i))
        copy.graph.node.append(node)
    if patches:
        copy.graph.initializer.extend(_numbers())
    return copy


def _rows_of(node: Any, place: int, number: int) -> list[Any]:
    """Nodes that make the shape at input `place` of `node` begin with the size of the batch that is there."""
    from onnx import helper

    stem = f"unet_engine.batch{number}"
    made = [
        helper.make_node("Shape", [node.input[0]], [f"{stem}.shape"]),
        helper.make_node("Slice", [f"{stem}.shape", "unet_engine.zero", "unet_engine.one"], [f"{stem}.rows"]),
        helper.make_node("Slice", [node.input[place], "unet_engine.one", "unet_engine.end"], [f"{stem}.rest"]),
        helper.make_node("Concat", [f"{stem}.rows", f"{stem}.rest"], [f"{stem}.sizes"], axis=0),
    ]
    node.input[place] = f"{stem}.sizes"
    return made


def _numbers() -> list[Any]:
    import numpy as np
    from onnx import numpy_helper

    values = {"zero": 0, "one": 1, "end": 2**31 - 1}
    return [numpy_helper.from_array(np.array([v], np.int64), f"unet_engine.{k}") for k, v in values.items()]


class _Proof:
    """Goes through the nodes in order, and keeps which tensors are batched."""

    def __init__(self, model: Any, name: str, shapes: Shapes) -> None:
        self._graph, self._shapes, self._opset = model.graph, shapes, opset_of(model)
        self._numbers = integers(model.graph)
        self._batched = {name}
        self._patches: dict[int, int] = {}
        self._outputs = {o.name for o in model.graph.output}

    def patches(self) -> dict[int, int]:
        """Per node whose shape has to be taken from its tensor, the place of that shape among its inputs. Raises
        `_NotProved`."""
        for i, node in enumerate(self._graph.node):
            if any(a.type in _GRAPHS for a in node.attribute):  # what is inside may read tensors that are no inputs
                raise _NotProved
            if not self._batched & set(node.input):
                continue
            if not is_own(node):
                raise _NotProved
            rule: Callable[[int, Any], bool] = getattr(self, f"on_{node.op_type.lower()}", self._refused)
            if node.op_type in _ROW_BY_ROW:
                rule = self._row_by_row
            if rule(i, node):
                self._batched.update(o for o in node.output if o)
        if (self._patches and self._opset < OPSET) or not self._outputs <= self._batched:
            raise _NotProved
        return self._patches

    def _refused(self, i: int, node: Any) -> bool:
        raise _NotProved

    def _need(self, holds: object) -> bool:
        if not holds:
            raise _NotProved
        return True

    def _shape(self, name: str) -> list[int]:
        shape = self._shapes.get(name, [])
        self._need(shape and all(shape))
        return shape

    def _alone(self, node: Any) -> bool:
        """Only the first input is batched."""
        return self._need(node.input[0] in self._batched and not self._batched & set(node.input[1:]))

    def _axis(self, node: Any, default: int) -> int:
        return int(attribute(node, "axis", default)) % len(self._shape(node.input[0]))

    # --- what computes rows on their own ---

    def _row_by_row(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._need(not is_trained(node))

    def _pointwise(self, i: int, node: Any) -> bool:
        """What is not batched is the same for all rows: it has no first axis beside theirs, or one of one element."""
        rank = len(self._shape(node.output[0]))
        for name in node.input:
            if name in self._batched:
                self._need(len(self._shape(name)) == rank)
            elif name:
                shape = self._shapes.get(name)
                self._need(shape is not None and (len(shape) < rank or shape[0] == 1))
        return True

    on_add = on_sub = on_mul = on_div = on_pow = on_max = on_min = on_mean = on_sum = on_where = on_prelu = _pointwise
    on_greater = on_less = on_equal = on_greaterorequal = on_lessorequal = on_and = on_or = _pointwise

    def on_softmax(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._need(self._axis(node, 1 if self._opset < 13 else -1) > 0)

    on_logsoftmax = on_softmax

    def on_layernormalization(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._need(self._axis(node, -1) > 0)

    def on_argmax(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._need(self._axis(node, 0) > 0)

    def on_flatten(self, i: int, node: Any) -> bool:
        return self._need(self._axis(node, 1) == 1)

    def on_split(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._need(self._axis(node, 0) > 0)

    def on_concat(self, i: int, node: Any) -> bool:
        return self._need(set(node.input) <= self._batched and self._axis(node, 1) > 0)

    def on_gather(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._need(self._axis(node, 0) > 0)

    def on_transpose(self, i: int, node: Any) -> bool:
        return self._need(attribute(node, "perm", [1])[0] == 0)

    def _listed(self, node: Any, name: str, place: int) -> list[int]:
        """Numbers that are an attribute in older versions and an input in newer ones."""
        given = attribute(node, name, None)
        if given is None and len(node.input) > place:
            given = self._numbers.get(node.input[place])
        self._need(given is not None)
        return list(given)

    def _axes(self, i: int, node: Any) -> bool:
        rank = max(len(self._shape(node.input[0])), len(self._shape(node.output[0])))
        return self._alone(node) and self._need(all(a % rank for a in self._listed(node, "axes", 1)))

    on_squeeze = on_unsqueeze = _axes
    on_reducemean = on_reducesum = on_reducemax = on_reducemin = on_reducel2 = on_reduceprod = _axes

    def on_slice(self, i: int, node: Any) -> bool:
        rank = len(self._shape(node.input[0]))
        return self._alone(node) and self._need(all(a % rank for a in self._listed(node, "axes", 3)))

    def on_pad(self, i: int, node: Any) -> bool:
        pads = self._listed(node, "pads", 1)
        return self._alone(node) and self._need(len(node.input) < 4 and not pads[0] and not pads[len(pads) // 2])

    def on_matmul(self, i: int, node: Any) -> bool:
        rank = len(self._shape(node.output[0]))
        left, right = (len(self._shape(name)) for name in node.input)
        if node.input[1] not in self._batched:
            return self._need(left == rank and right < rank and (right <= 2 or left > right))
        return self._need(set(node.input) <= self._batched and left == right == rank > 2)

    # --- what is given a shape ---

    def _same_rows(self, node: Any) -> bool:
        """Whether the first axis has as many elements before and after."""
        return self._need(self._shape(node.input[0])[0] == self._shape(node.output[0])[0])

    def _sized(self, i: int, node: Any, place: int) -> bool:
        """A shape at input `place`: a constant one is patched, one that is computed is not looked into."""
        self._alone(node)
        self._same_rows(node)
        sizes = self._numbers.get(node.input[place])
        self._need(sizes)
        assert sizes is not None
        if sizes[0] > 0:
            self._patches[i] = place
        return self._need(min(sizes[1:], default=0) >= (0 if sizes[0] == -1 else -1))

    def on_reshape(self, i: int, node: Any) -> bool:
        self._need(len(node.input) == 2 and not attribute(node, "allowzero", 0))
        return self._sized(i, node, 1)

    def on_expand(self, i: int, node: Any) -> bool:
        self._need(len(self._shape(node.input[0])) == len(self._numbers.get(node.input[1], [])))
        return self._sized(i, node, 1)

    def on_resize(self, i: int, node: Any) -> bool:
        self._need(attribute(node, "axes", None) is None)
        if len(node.input) > 3 and node.input[3]:
            return self._sized(i, node, 3)
        return self._alone(node) and self._same_rows(node)

    on_upsample = on_resize

    def on_tile(self, i: int, node: Any) -> bool:
        return self._alone(node) and self._same_rows(node)

    def on_shape(self, i: int, node: Any) -> bool:
        """Sizes are no rows: what is made of them is a shape again, and a node that is given one has to prove it."""
        return False


_ROW_BY_ROW = frozenset(
    ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
     "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth",
     "Identity", "Cast", "Dropout", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "HardSwish", "Softplus",
     "Softsign", "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal", "Floor",
     "Ceil", "Round", "Clip", "Sign", "ThresholdedRelu", "Not", "Swish")
)  # fmt: skip
"""Operators that never look from one row at another, and whose other inputs belong to all rows."""
