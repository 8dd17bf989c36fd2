"""ONNX graphs as callables on tensors, in the libraries that may run them later."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_engine.errors import ModelError
from unet_engine.units import Tell, times
from unet_export.conversion.proof import Comparison, Run, short

SECOND_TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that a second library may show: it computes in another order,
and that is no fault of the file."""


class OnnxNetwork(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """An ONNX graph in ONNX Runtime: float32 in, its outputs by name."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__()
        self._session = _session(data, name)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self._session.run(None, {self._input: x.numpy()})
        return {name: torch.from_numpy(np.array(y)) for name, y in zip(self._outputs, found, strict=True)}

    def __deepcopy__(self, memo: Any) -> OnnxNetwork:
        raise TypeError("a session of ONNX Runtime is not copied")


def onnx_runner(data: bytes, name: str) -> Run:
    """The first output of the graph `data` in ONNX Runtime. Raises `ModelError` where that refuses the graph."""
    session = _session(data, name)
    image = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {image: x.numpy()})[0])


def _session(data: bytes, name: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it refuses is told by us, in one line
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"{name}: ONNX Runtime refuses the network: {short(error)}; export it in another form"
        ) from error


def second_runner(data: bytes, comparison: Comparison, tell: Tell) -> Callable[[tuple[int, ...]], None] | None:
    """What raises where OpenVINO, in which files run on a CPU, does not compute what the network does on a window.

    None, which is told, where it already fails on the file's own window: then sizes rest on ONNX Runtime alone.
    """
    if find_spec("openvino") is None:
        return None
    check = _OpenVINO(data, comparison)
    window = comparison.spec.window
    try:
        comparison.difference(window)
    except Exception:  # the file itself is wrong, which is said where it is compared
        return None
    try:
        check(window)
    except Exception as error:
        tell(
            f"note: OpenVINO does not compute this network on windows of {times(window)}: {short(error)}; run it with --backend onnxruntime"
        )
        return None
    return check


class _OpenVINO:
    def __init__(self, data: bytes, comparison: Comparison) -> None:
        self._data, self._comparison = data, comparison
        self._right: set[tuple[int, ...]] = set()

    def __call__(self, window: tuple[int, ...]) -> None:
        if window not in self._right:
            self._check(window)
        self._right.add(window)

    def _check(self, window: tuple[int, ...]) -> None:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(self._data)
        x = self._comparison.window(window)
        model.reshape(list(x.shape))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = torch.from_numpy(np.array(compiled(x.numpy())[0]))
        expected = self._comparison.expected(x)
        if got.shape != expected.shape:
            raise ModelError(f"it gives {tuple(got.shape)}, not {tuple(expected.shape)}")
        worst = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        if not worst <= SECOND_TOLERANCE and not worst <= self._comparison.limit(window):
            raise ModelError(f"its result differs by {worst:.1e} of the largest output")


def keep_output(proto: Any, name: str) -> None:
    """Leave the output `name` in the graph, and of the nodes those that lead to it."""
    kept = next(output for output in proto.graph.output if output.name == name)
    others = [output for output in proto.graph.output if output.name != kept.name]
    for output in others:
        proto.graph.output.remove(output)
    needed, nodes = {kept.name}, []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    nodes.reverse()
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for tensor in [t for t in proto.graph.initializer if t.name not in needed]:
        proto.graph.initializer.remove(tensor)
