"""ONNX graphs as callables on tensors, in the libraries that may run them later."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet_engine.errors import ModelError
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_network import largest_batch
from unet_engine.model.onnx_rewrite import rewritten
from unet_engine.model.onnx_shapes import flat
from unet_export.conversion.proof import Comparison, Run, short

SECOND_TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, that a second library may show: it computes in another order,
and that is no fault of the file."""


class OnnxNetwork(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """An ONNX graph in ONNX Runtime: float32 in, its first output out."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__()
        self._run = onnx_runner(data, name)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)

    def __deepcopy__(self, memo: Any) -> OnnxNetwork:
        raise TypeError("a session of ONNX Runtime is not copied")


def plain_graph(model: ModelFile) -> Any:
    """The graph of an ONNX file with its one output, float32 (batch, channel, *space) in and out, and a free batch
    where it was saved for several windows at once and computes others too.

    Raises `ModelError` where it cannot be read.
    """
    import onnx

    how = model.rewriting
    try:
        proto = onnx.load(model.path)
        if how is not None and (how.changes or model.saved_batch not in (None, 1)):
            batch = 0 if largest_batch(model) is None else 1
            proto = onnx.load_from_string(rewritten(flat(proto), how, batch, model.path))
            sizes = proto.graph.output[0].type.tensor_type.shape.dim
            sizes.extend(onnx.TensorShapeProto.Dimension() for _ in range(len(model.spec.axes) + 2))
    except ModelError:
        raise
    except Exception as error:  # the parser raises what it likes
        raise ModelError(f"{model.path}: its graph cannot be read: {short(error)}; export it again") from error
    return proto


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


def second_runner(data: bytes, comparison: Comparison) -> Callable[[tuple[int, ...]], None] | None:
    """What raises where OpenVINO, in which files run on a CPU, does not compute what the network does on a window.

    None where it already fails on the file's own window, which is found out and told for any run: then sizes rest on
    ONNX Runtime alone.
    """
    if find_spec("openvino") is None:
        return None
    check = _OpenVINO(data, comparison)
    try:
        check(comparison.spec.window)
    except Exception:
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
        x, expected = self._comparison.smooth(window)
        model.reshape(list(x.shape))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = torch.from_numpy(np.array(compiled(x.numpy())[0]))
        if got.shape != expected.shape:
            raise ModelError(f"it gives {tuple(got.shape)}, not {tuple(expected.shape)}")
        worst = float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
        if not worst <= SECOND_TOLERANCE and not worst <= self._comparison.limit(window):
            raise ModelError(f"its result differs by {worst:.1e} of the largest output")
