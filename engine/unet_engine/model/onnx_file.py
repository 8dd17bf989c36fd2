"""What an ONNX file promises: the spec in its metadata, else what a file beside it and its graph tell; and what of the
graph has to be changed before a library runs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, UnetEngineError, first_line
from unet_engine.model.ending import UNPROVED, Ending, refusal
from unet_engine.model.last_layer import LastLayer, last_layer
from unet_engine.model.onnx_ending import ending, proved_of
from unet_engine.model.onnx_foreign import Found, image_of, look
from unet_engine.model.onnx_outside import weights_outside
from unet_engine.model.onnx_rewrite import FLOAT, Rewriting
from unet_engine.model.onnx_shapes import Shapes, are_joint, dims, flat, is_trained, needs_tidying, opset_of
from unet_engine.model.spec import ACTIVATION_OF, METADATA_KEY, Activation, ModelSpec, read_toml


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says of its network."""

    spec: ModelSpec
    weights: list[Path]
    """Files that hold weights outside of it."""
    rewriting: Rewriting
    """What of the graph is changed for whichever library runs it."""
    saved_batch: int | None
    """The batch that the graph was saved for; None where it is free."""
    ends_in: str = ""
    """What in the graph told the spec's activation, in words; empty where it was said, or guessed."""
    proved: Ending = UNPROVED
    """What the graph proves of the outputs, whatever the spec says."""
    notes: tuple[str, ...] = ()
    """What people should know of how the graph is understood."""
    ran: bool = False
    """Whether a window was run to see what the graph gives."""
    described: bool = True
    """Whether what the outputs are was said, in the file or beside it, or follows from an ArgMax behind them."""
    output: str = ""
    """Name of the output in a graph without a spec."""
    last: LastLayer | None = None
    """Its last layer, where that is linear and of one voxel."""


def read_onnx(
    path: Path,
    window: tuple[int, ...] | None,
    activation: Activation | None = None,
    head: str | None = None,
    data: bytes | None = None,
) -> OnnxFile:
    """What the file at `path` says, or `data` that lies in it: one of its networks.

    `window` is for a graph that fixes no sizes. Where `activation` is given, it is the caller's to put in. `head`: the
    output that is wanted, of several. Raises `ModelError` where the file is corrupt, is no network of one image, or
    says too little.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False) if data is None else onnx.load_from_string(data)
        if not model.graph.node:
            raise ValueError("its graph is empty")
        spec_text = {p.key: p.value for p in model.metadata_props}.get(METADATA_KEY)
        weights = weights_outside(model, path)
        plain = flat(model)
        found = (
            _foreign(path, plain, window, weights, activation, head) if spec_text is None
            else _carried(path, plain, ModelSpec.exported(spec_text, path), weights, head)
        )  # fmt: skip
        # not every library knows functions of a file's own
        changes = found.rewriting.changes or len(model.functions) > 0 or needs_tidying(plain.graph)
        rewriting = replace(found.rewriting, changes=changes)
        return replace(found, rewriting=rewriting, last=last_layer(plain, path, rewriting))
    except UnetEngineError:
        raise
    except Exception as error:  # the parser and shape inference raise what they like, down to UnicodeDecodeError
        raise ModelError(f"{path} is not a readable ONNX file: {first_line(error)}; export it again") from error


def _carried(path: Path, model: Any, spec: ModelSpec, weights: list[Path], head: str | None) -> OnnxFile:
    """A network with its spec. Most have one output on the grid of the input, in float32, and need no second look."""
    image, graph = image_of(path, model), model.graph
    batch = (dims(image) or [0])[0] or None
    types = {v.type.tensor_type.elem_type for v in (image, *graph.output)}
    known = (
        len(graph.output) == 1 and types == {FLOAT} and not any(map(is_trained, graph.node)) and not are_joint(model)
    )
    if known and not any(spec.margin) and head in (None, graph.output[0].name):
        proved = proved_of(model, (1, spec.channels_in, *spec.window))
        return OnnxFile(spec, weights, Rewriting(graph.output[0].name, changes=False), batch, proved=proved)
    given = {
        "axes": spec.axes,
        "channels_in": spec.channels_in,
        "channels_out": spec.channels_out,
        "margin": spec.margin,
    }
    found = look(path, model, given, spec.window, head, said=True)
    return OnnxFile(spec, weights, found.rewriting, batch, proved=_ending(model, found), notes=found.notes)


def _foreign(
    path: Path,
    model: Any,
    window: tuple[int, ...] | None,
    weights: list[Path],
    activation: Activation | None,
    head: str | None,
) -> OnnxFile:
    """A network without a spec: everything its graph tells, for the one window it has or is given; keys of the file
    beside it win."""
    beside = path.with_suffix(".toml")
    given = _given(beside) if beside.exists() else {}
    said = given | ({"activation": "none"} if activation else {})
    found = look(path, model, given, window, head, said="activation" in said)
    end = _ending(model, found)
    kind, why = end.activation(found.channels_out)
    if not why and given.get("channels") in ACTIVATION_OF:
        kind = ACTIVATION_OF[given["channels"]]
    if kind is None and "activation" not in said:
        raise ModelError(refusal(path, why))
    step = (0,) * len(found.axes)
    values = {
        "name": path.stem, "channels_in": found.channels_in, "channels_out": found.channels_out,
        "window_min": found.window,
        "window_step": step, "margin": found.margin, "activation": kind,
        "flops": _flops(model.graph, found.tensors.shapes),
    }  # fmt: skip
    keys = {key: value for key, value in said.items() if key != "head"}
    spec = ModelSpec.written({**values, **keys, "axes": found.axes, "window": found.window}, path)
    batch = (dims(image_of(path, model)) or [0])[0] or None
    ends_in = "" if "activation" in said else why
    described = "activation" in given or "channels" in given or found.head.is_cut
    return OnnxFile(
        spec, weights, found.rewriting, batch, ends_in, end, found.notes, found.tensors.ran, described=described,
        output=found.head.name,
    )  # fmt: skip


def _ending(model: Any, found: Found) -> Ending:
    channel = found.rewriting.output_axes[1] if found.rewriting.output_axes else 1
    return ending(
        model.graph, opset_of(model), found.tensors.shapes, found.head.tensor, -1 if channel is None else channel
    )


def _given(beside: Path) -> dict[str, Any]:
    """What the file beside a foreign network says. Those keys are checked that are used before all become a spec."""
    given = read_toml(beside)
    kinds = (
        ("axes", str, '"zyx"'), ("window", list, "[64, 64, 64]"), ("channels_in", int, "1"), ("channels_out", int, "2"),
        ("margin", list, "[0, 0, 0]"), ("head", str, '"logits"'),
    )  # fmt: skip
    for key, kind, example in kinds:
        if key in given and not isinstance(given[key], kind):
            raise ModelError(f"{beside}: {key} = {given[key]!r} is not understood; write it like {key} = {example}")
    return given


def _flops(graph: Any, shapes: Shapes) -> int:
    """Two per multiply-add of convolutions; a transposed one does its kernel once per input voxel."""
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            kernel = shapes.get(node.input[1], [0])
            voxels = shapes.get(node.output[0] if node.op_type == "Conv" else node.input[0], [0, 0])
            total += 2 * prod(kernel) * prod([voxels[0], *voxels[2:]])
    return total
