"""Whether what a graph gives is left to chance, to the statistics of one window, or to what other windows share its
batch: files that were exported as a network is trained, which give other labels each time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.onnx_shapes import (
    all_of,
    attribute,
    dims,
    graphs_in,
    images_of,
    integers,
    is_own,
    is_trained,
    read_by,
)

_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


def refuse_chance(path: object, graph: Any, output: str) -> None:
    """Raise `ModelError` where the tensor called `output` depends on numbers that are drawn when the graph runs."""
    truths = _truths(graph)
    for node in all_of(_needed(graph, output)):
        if is_own(node) and node.op_type in _RANDOM:
            raise ModelError(
                f"{path} draws random numbers ({node.op_type}), so that each run gives others; export it without them, in "
                "inference mode (net.eval())"
            )
        if is_own(node) and node.op_type == "Dropout" and len(node.input) > 2 and truths.get(node.input[2]):
            raise ModelError(
                f"{path} was exported as it is trained: a Dropout in it leaves out values at random; export it in "
                "inference mode (net.eval())"
            )


def about_training(graph: Any, output: str) -> str:
    """What people should know of normalisations that work as in training; empty where none does."""
    if not learns(graph, output):
        return ""
    return (
        "its BatchNormalization works as in training, by the statistics of each window and not by those that it learned: "
        "labels depend on where windows lie; export it in inference mode (net.eval())"
    )


def learns(graph: Any, output: str) -> bool:
    """Whether the tensor called `output` comes through a BatchNormalization that works as in training."""
    return any(map(is_trained, all_of(_needed(graph, output))))


def about_branches(graph: Any, output: str) -> str:
    """What people should know of branches and loops that the values of a window decide; empty where there are none."""
    found = _decided_by_values(_needed(graph, output), {images_of(graph)[0].name})
    if not found:
        return ""
    return (
        f"its {' and '.join(sorted(found))} asks for values of the window: what is computed differs from window to window, "
        "so labels depend on where windows lie; export it without such conditions, or run it on the windows that it was "
        "made for"
    )


def _decided_by_values(nodes: Iterable[Any], seen: set[str]) -> set[str]:
    """Kinds of nodes that go one way or another by what is made of the values of `seen`, which grows. Shapes are no
    values."""
    found: set[str] = set()
    for node in nodes:
        if node.op_type in ("Shape", "Size") or not seen & read_by(node):
            continue
        deciding = {"If": node.input[:1], "Loop": node.input[:2]}.get(node.op_type, ())
        found |= {node.op_type} if is_own(node) and seen & set(deciding) else set()
        for inner in graphs_in(node):
            found |= _decided_by_values(inner.node, seen)
        seen.update(node.output)
    return found


def rows_meet(graph: Any, output: str) -> bool:
    """Whether the tensor called `output` looks across a batch of any size: the statistics of all its windows go into a
    normalisation, or into a sum, a mean or a softmax along the first axis of what is made of the image."""
    image = images_of(graph)[0]
    numbers, rank, seen = integers(graph), len(dims(image)), {image.name}
    for node in _needed(graph, output):
        given = seen & read_by(node)
        if not given or node.op_type in ("Shape", "Size"):
            continue
        if any(is_trained(inner) or _is_along_rows(inner, numbers, rank) for inner in all_of([node])):
            return True
        seen.update(node.output)
    return False


def _is_along_rows(node: Any, numbers: dict[str, list[int]], rank: int) -> bool:
    kind = node.op_type
    if not is_own(node):
        return False
    if kind in ("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin", "TopK"):
        default = 0 if kind.startswith("Arg") else -1
        return attribute(node, "axis", default) in (0, -rank)
    if not kind.startswith("Reduce"):
        return False
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        axes = numbers.get(node.input[1], [0])  # what is not known may be any
    if not axes:
        return not attribute(node, "noop_with_empty_axes", 0)
    return bool({0, -rank} & set(axes))


def _needed(graph: Any, output: str) -> list[Any]:
    """The nodes that lead to the tensor called `output`."""
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= read_by(node)
            nodes.append(node)
    return nodes[::-1]


def _truths(graph: Any) -> dict[str, bool]:
    """Constants that are true or false, by name."""
    from onnx import TensorProto, numpy_helper

    held = {t.name: t for t in graph.initializer}
    held |= {n.output[0]: attribute(n, "value", None) for n in graph.node if n.op_type == "Constant" and n.output}
    return {
        name: bool(numpy_helper.to_array(t).reshape(-1)[:1].any())
        for name, t in held.items()
        if t is not None and t.data_type == TensorProto.BOOL and not t.external_data
    }
