"""What an ONNX file promises: the spec in its metadata, else what a file beside it and the shapes of its graph tell."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, UnetEngineError, first_line
from unet_engine.model.ending import Ending, refusal
from unet_engine.model.onnx_ending import ending, opset_of, proved_of
from unet_engine.model.onnx_outside import weights_outside
from unet_engine.model.spec import METADATA_KEY, Activation, ModelSpec, read_toml
from unet_engine.units import times


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says of its network."""

    spec: ModelSpec
    weights: list[Path]
    """Files that hold weights outside of it."""
    ends_in: str
    """What in the graph told the spec's activation, in words; empty where it was said, or guessed."""
    proved: Ending
    """What the graph proves of the outputs, whatever the spec says."""


def read_onnx(path: Path, window: tuple[int, ...] | None, activation: Activation | None = None) -> OnnxFile:
    """What the file at `path` says.

    `window` is for a graph that fixes no sizes. Where `activation` is given, it is the caller's to put in. Raises
    `ModelError` where the file is corrupt, is no network of one image, or says too little.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ValueError("its graph is empty")
        spec_text = {p.key: p.value for p in model.metadata_props}.get(METADATA_KEY)
        weights = weights_outside(model, path)
        if spec_text is not None:
            spec = ModelSpec.exported(spec_text, path)
            return OnnxFile(spec, weights, "", proved_of(model, (1, spec.channels_in, *spec.window)))
        beside = path.with_suffix(".toml")
        given = _given(beside) if beside.exists() else {}
        said = given | ({"activation": "none"} if activation else {})
        spec, end = _spec_from_graph(path, model, window, said)
        return OnnxFile(spec, weights, "" if "activation" in said else end.activation(spec.channels_out)[1], end)
    except UnetEngineError:
        raise
    except Exception as error:  # the parser and shape inference raise what they like, down to UnicodeDecodeError
        raise ModelError(f"{path} is not a readable ONNX file: {first_line(error)}; export it again") from error


def _given(beside: Path) -> dict[str, Any]:
    """What the file beside a foreign network says. Those keys are checked that are used before all become a spec."""
    given = read_toml(beside)
    for key, kind, example in (("axes", str, '"zyx"'), ("window", list, "[64, 64, 64]"), ("channels_in", int, "1")):
        if key in given and not isinstance(given[key], kind):
            raise ModelError(f"{beside}: {key} = {given[key]!r} is not understood; write it like {key} = {example}")
    return given


def _spec_from_graph(
    path: Path, model: Any, window: tuple[int, ...] | None, given: dict[str, Any]
) -> tuple[ModelSpec, Ending]:
    """A foreign network: everything its graph tells, for the one window it has or is given; `given` keys win."""
    inputs = [i for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
    if len(inputs) != 1:
        raise ModelError(f"{path} has {len(inputs)} inputs; one image input is needed")
    sizes = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    axes = given.get("axes") or {4: "yx", 5: "zyx"}.get(len(sizes))
    if axes is None:
        raise ModelError(f"{path}: its input has {len(sizes)} axes; 4 (batch, channel, y, x) or 5 (with z) are needed")
    window = window or tuple(given.get("window", ())) or tuple(sizes[2:])
    if not all(window) or len(window) != len(axes):
        raise ModelError(
            f"{path} says no window for its axes {axes}; use --window, e.g. --window {','.join(['64'] * len(axes))}"
        )
    for axis, size, fixed in zip(axes, window, sizes[2:], strict=True):
        if fixed not in (0, size):
            raise ModelError(f"{path} takes only {fixed} voxels along {axis}, not {size}; leave out --window")
    channels = sizes[1] or given.get("channels_in", 0)
    if not channels:
        raise ModelError(
            f"{path} says no number of input channels; write channels_in to {path.with_suffix('.toml').name}"
        )
    shape, shapes = _traced(path, model, inputs[0].name, (1, channels, *window))
    margins = [(size - out) // 2 for size, out in zip(window, shape[2:], strict=True)]
    if any(m < 0 or size - out != 2 * m for m, size, out in zip(margins, window, shape[2:], strict=True)):
        raise ModelError(
            f"{path} turns {times(window)} into {times(shape[2:])}; an output of the same size, or smaller evenly, is needed"
        )
    end = ending(model.graph, opset_of(model), shapes, model.graph.output[0].name)
    activation, why = end.activation(shape[1])
    if activation is None and "activation" not in given:
        raise ModelError(refusal(path, why))
    values = {
        "name": path.stem, "axes": axes, "channels_in": channels, "channels_out": shape[1], "window": window, "window_min": window,
        "window_step": (0,) * len(axes), "margin": margins, "activation": activation, "flops": _flops(model.graph, shapes),
    }  # fmt: skip
    spec = ModelSpec.written(
        {**values, **given, "window": window, "window_min": window, "window_step": (0,) * len(axes)}, path
    )
    return spec, end


def _traced(path: Path, model: Any, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, list[int]]]:
    """Output shape of the graph for one input shape, and the shapes of all its tensors by name, by ONNX shape
    inference."""
    import onnx

    graph = model.graph
    for value in graph.input:
        if value.name == name:
            for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                dim.Clear()
                dim.dim_value = size
    del graph.value_info[:]
    for dim in graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except Exception as error:
        raise ModelError(
            f"{path} does not take windows of {times(shape[2:])}: {first_line(error)}; "
            "use a --window that its pooling divides, e.g. a multiple of 16 or 32"
        ) from error
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*inferred.value_info, *inferred.output]
    }
    out = shapes[graph.output[0].name]
    if len(out) != len(shape) or not all(out):
        raise ModelError(
            f"{path}: the shape of its output cannot be told; write the spec to {path.with_suffix('.toml').name}"
        )
    shapes |= {t.name: list(t.dims) for t in graph.initializer} | {name: list(shape)}
    return tuple(out), shapes


def _flops(graph: Any, shapes: dict[str, list[int]]) -> int:
    """Two per multiply-add of convolutions; a transposed one does its kernel once per input voxel."""
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            kernel = shapes.get(node.input[1], [0])
            voxels = shapes.get(node.output[0] if node.op_type == "Conv" else node.input[0], [0, 0])
            total += 2 * prod(kernel) * prod([voxels[0], *voxels[2:]])
    return total
