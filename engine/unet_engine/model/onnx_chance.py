"""Whether what a graph gives is left to chance, or to the statistics of one window: files that were exported as a
network is trained, which give other labels each time."""

from __future__ import annotations

from typing import Any

from unet_engine.errors import ModelError
from unet_engine.model.onnx_shapes import all_of, attribute, is_own, read_by

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
    nodes = (n for n in _needed(graph, output) if n.op_type == "BatchNormalization" and is_own(n))
    if not any(attribute(n, "training_mode", 0) for n in nodes):
        return ""
    return (
        "its BatchNormalization works as in training, by the statistics of each window: labels depend on where windows "
        "lie; export it in inference mode (net.eval())"
    )


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
