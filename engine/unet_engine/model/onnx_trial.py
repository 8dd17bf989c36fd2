"""What a graph gives for one window, found by running it: for graphs whose shapes inference cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.errors import ModelError, first_line
from unet_engine.model.onnx_shapes import Tensors, flat, images_of

_BY_NUMPY = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}


def can_run() -> bool:
    """Whether a library is installed that runs ONNX graphs on the CPU."""
    return any(map(find_spec, ("onnxruntime", "openvino")))


def tried(path: Path, shape: Sequence[int], tensors: Sequence[str]) -> Tensors:
    """Shapes and types of `tensors` for an input of `shape` that is all zero. Raises what the library raises."""
    import onnx

    model = flat(onnx.load(path))
    image = images_of(model.graph)[0]
    there = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors if t not in there)
    for dim, size in zip(image.type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size
    voxels = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type))
    run = _onnxruntime if find_spec("onnxruntime") else _openvino
    results = run(model.SerializeToString(), image.name, voxels)
    names = [o.name for o in model.graph.output]
    found = {n: r for n, r in zip(names, results, strict=True) if n in tensors}
    return Tensors(
        {n: list(r.shape) for n, r in found.items()}, {n: _BY_NUMPY.get(str(r.dtype), 0) for n, r in found.items()}
    )


def _onnxruntime(network: bytes, name: str, voxels: Any) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it says of an error comes as an exception too
    session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {name: voxels})
    return found


def _openvino(network: bytes, name: str, voxels: Any) -> list[Any]:
    import sys

    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # its own silent stub then takes over
    import openvino

    model = openvino.Core().read_model(network)
    model.reshape(list(voxels.shape))
    return [np.asarray(r) for r in openvino.compile_model(model, "CPU")(voxels).values()]


def refused(path: object, window: str, error: Exception) -> ModelError:
    """The error where a window does not go through the graph."""
    return ModelError(
        f"{path} does not take windows of {window}: {first_line(error)}; use a --window that its pooling divides, e.g. "
        "a multiple of 16 or 32"
    )
