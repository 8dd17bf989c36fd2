"""``unet-engine export``: a trained network in whatever form to one ONNX file with its spec, compared with PyTorch
before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from unet_engine.errors import ModelError, SettingsError, UnetEngineError, first_line
from unet_engine.model.channels import labels_refusal
from unet_engine.model.ending import applied_again, outputs_note, refusal
from unet_engine.model.file import open_model
from unet_engine.model.normalization import Normalization
from unet_engine.model.onnx_ending import ending_for
from unet_engine.model.spec import ACTIVATION_OF, METADATA_KEY, Activation, Channels, ModelSpec, read_toml
from unet_engine.prepare.evidence import Outputs, contradiction
from unet_engine.units import Tell
from unet_export.conversion.checkpoint import Checkpoint, open_checkpoint
from unet_export.conversion.exporters import from_module, from_program, from_script
from unet_export.conversion.onnx_export import frozen, write_onnx
from unet_export.conversion.probe import FullResolution, Geometry, head_count, probe

Sizes = Literal["auto", "dynamic", "static"]


@dataclass(frozen=True)
class Export:
    """What is exported and what its file shall promise. None: found out, or left open in the spec."""

    checkpoint: str
    out: str
    factory: str | None = None
    arguments: str = "{}"
    weights: str | None = None
    """Key or prefix of the weights that are meant, where a file holds several that fit."""
    window: tuple[int, ...] | None = None
    channels: int | None = None
    sizes: Sizes = "auto"
    """auto: free window sizes where the exporter can, else those of `window` alone, which is said."""
    name: str | None = None
    classes: tuple[str, ...] | None = None
    activation: Activation | None = None
    output_channels: Channels | None = None
    """What output channels are."""
    normalize: str | None = None
    spacing: tuple[float, ...] | None = None
    spacing_unit: str | None = None
    background: float | None = None
    trust: bool = False
    """The user trusts a checkpoint that runs code as it is opened."""


def export(wanted: Export, tell: Tell = print) -> dict[str, Any]:
    """Write ``wanted.out`` and return what it is. Raises `SettingsError`, `ModelError` or `OutputError`."""
    if not wanted.out.lower().endswith(".onnx"):
        raise SettingsError(f"--out {wanted.out} names no ONNX file; write it like model.onnx")
    if wanted.checkpoint.lower().endswith(".onnx"):
        spec, error = _onnx(wanted, tell)
    else:
        spec, error = _torch(wanted, tell)
    if not any(spec.window_step) and wanted.sizes == "auto":
        tell(
            f"note: {wanted.out} takes windows of {spec.window} alone; other sizes are refused by the network or its file"
        )
    return {"out": wanted.out, "largest_difference": error, **spec.model_dump(mode="json")}


# --- PyTorch in ---


def _torch(wanted: Export, tell: Tell) -> tuple[ModelSpec, float]:
    checkpoint = open_checkpoint(
        wanted.checkpoint, wanted.factory, wanted.arguments, wanted.weights, tell, trust=wanted.trust
    )
    network = checkpoint.network
    if (heads := head_count(network, wanted.window, wanted.channels)) > 1:
        tell(f"note: the network has {heads} outputs; that of the highest resolution is kept")
        network = FullResolution(network)
    geometry = probe(network, wanted.window, wanted.channels, fixed=wanted.sizes == "static")
    _check_free(wanted, geometry)
    embedded = _embedded(wanted.checkpoint)
    known = embedded is not None
    meaning = _Meaning(wanted.checkpoint, wanted.activation is not None or known, tell, described=known)
    spec = _spec(wanted, geometry, embedded)
    try:
        return _written(checkpoint, network, spec, wanted.out, meaning)
    except ModelError:
        if wanted.sizes != "auto" or not any(spec.window_step):
            raise
    # what cannot be exported at all fails again, with the reason that matters
    fixed = spec.model_copy(update={"window_min": spec.window, "window_step": (0,) * len(spec.axes)})
    return _written(checkpoint, network, fixed, wanted.out, meaning)


def _written(
    checkpoint: Checkpoint, network: Any, spec: ModelSpec, out: str, meaning: _Meaning
) -> tuple[ModelSpec, float]:
    """The spec as it was written, and the largest difference: the exported graph has a say in the activation."""

    def write(proto: Any, reference: Any) -> tuple[ModelSpec, float]:
        looked_at = meaning.of(proto, spec)
        meaning.measured(reference, looked_at)
        return looked_at, write_onnx(proto, reference, looked_at, out)

    if checkpoint.kind == "module":
        with frozen(network) as net:
            return write(from_module(net, spec), net)
    if checkpoint.kind == "torchscript":
        example = torch.zeros((1, spec.channels_in, *spec.window))
        script = network if not isinstance(network, FullResolution) else torch.jit.trace(network, example)
        return write(from_script(script, spec), network)
    if isinstance(network, FullResolution):
        return write(from_module(network, spec), network)
    return write(from_program(checkpoint.program, spec.name), network)


@dataclass
class _Meaning:
    """What the outputs of an exported graph are: what was said of them, else what the graph proves, else a guess by
    their number."""

    source: str
    said: bool
    """Whether the user or a spec names the activation."""
    tell: Tell
    described: bool
    """Whether a spec describes the network already."""
    told: str = ""
    asked: bool = False

    def of(self, proto: Any, spec: ModelSpec) -> ModelSpec:
        """`spec` with the activation of the graph's first output, and `unknown` channels where those are neither said
        nor follow. Raises `ModelError` where the activation has to be said."""
        spec = self._activated(proto, spec)
        if self.described or spec.channels or not labels_refusal(spec, described=False):
            return spec
        self._ask(
            f"note: nothing says what the {spec.channels_out} output channels are, and run will ask; say --output-channels "
            "classes (they exclude one another), multilabel (they may overlap), image or offsets"
        )
        return _validated({**spec.model_dump(), "channels": "unknown"})

    def _activated(self, proto: Any, spec: ModelSpec) -> ModelSpec:
        end = ending_for(proto, (1, spec.channels_in, *spec.window))
        found, why = end.activation(spec.channels_out)
        if not self.said and found is None:
            raise ModelError(refusal(self.source, why))
        if not self.said and not why:
            return spec
        if not self.said and found is not None:
            self._tell(outputs_note(found, why))
            return _validated({**spec.model_dump(), "activation": found})
        self._tell(applied_again(end, spec.activation, spec.channels_out))
        return spec

    def measured(self, network: Any, spec: ModelSpec) -> None:
        """Tell where what `network` makes of noise is not what `spec` says of its outputs, and the graph did not."""
        noise = torch.from_numpy(
            np.random.default_rng(0).standard_normal((1, spec.channels_in, *spec.window), np.float32)
        )
        seen = Outputs()
        with torch.inference_mode():
            seen.look(network(noise)[0].numpy())
        reason = contradiction(seen, spec, labels=False)
        if not self.told:
            self._tell(f"of noise, {reason}" if reason else "")

    def _ask(self, text: str) -> None:
        if not self.asked:
            self.tell(text)
        self.asked = True

    def _tell(self, text: str) -> None:
        if text and text != self.told:
            self.tell(f"note: {text}")
        self.told = text


def _check_free(wanted: Export, found: Geometry) -> None:
    stuck = [axis for axis, step in zip(found.axes, found.window_step, strict=True) if not step]
    if wanted.sizes == "dynamic" and stuck:
        raise ModelError(
            f"{wanted.checkpoint} takes one size alone along {', '.join(stuck)}; leave out --sizes dynamic"
        )


def _embedded(checkpoint: str) -> ModelSpec | None:
    """The spec that a `.pt2` or TorchScript may carry already."""
    try:
        return open_model(checkpoint).spec
    except UnetEngineError:
        return None


# --- ONNX in ---


class _Onnx(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """An ONNX file as a callable on tensors, through ONNX Runtime."""

    def __init__(self, data: bytes, path: str) -> None:
        import onnxruntime

        super().__init__()
        try:
            self._session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"{path}: ONNX Runtime refuses the network: {first_line(error)}") from error
        self.input = self._session.get_inputs()[0]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def forward(self, x: Tensor) -> list[Tensor]:
        return [torch.from_numpy(np.array(y)) for y in self._session.run(None, {self.input.name: x.numpy()})]


def _onnx(wanted: Export, tell: Tell) -> tuple[ModelSpec, float]:
    """A foreign network gets a spec, a single output and a check; its own layers stay as they are."""
    import onnx

    path = Path(wanted.checkpoint)
    given = open_model(path, wanted.window, wanted.activation).spec
    proto = onnx.load(path)
    network = FullResolution(_Onnx(proto.SerializeToString(), str(path)))
    said = _says_activation(wanted, proto, path)
    if any(entry.key == METADATA_KEY for entry in proto.metadata_props):
        spec = _changed(wanted, given)
    else:
        sizes = network.network.input.shape[2:]
        fixed = wanted.sizes == "static" or not any(isinstance(s, str) or s is None for s in sizes)
        geometry = probe(network, wanted.window or given.window, given.channels_in, fixed=fixed)
        _check_free(wanted, geometry)
        spec = _spec(wanted, geometry, given)
    for entry in [e for e in proto.metadata_props if e.key.startswith("unet_engine.")]:
        proto.metadata_props.remove(entry)
    if len(network.network.outputs) > 1:
        _keep_output(proto, network, spec)
    described = any(entry.key == METADATA_KEY for entry in proto.metadata_props)
    meaning = _Meaning(str(path), said, tell, described=described)
    spec = meaning.of(proto, spec)
    meaning.measured(network, spec)
    return spec, write_onnx(proto, network, spec, wanted.out, origin=f"the ONNX file {path.name}")


def _says_activation(wanted: Export, proto: Any, path: Path) -> bool:
    """Whether the activation was said, by the user, by the file's own spec or by the one beside it."""
    beside = path.with_suffix(".toml")
    return (
        wanted.activation is not None
        or any(entry.key == METADATA_KEY for entry in proto.metadata_props)
        or (beside.exists() and "activation" in read_toml(beside))
    )


def _keep_output(proto: Any, network: Any, spec: ModelSpec) -> None:
    """Leave one output in the graph, that of the highest resolution, and of the nodes those that lead to it."""
    outputs = network.network(torch.zeros((1, spec.channels_in, *spec.window)))
    best = max(range(len(outputs)), key=lambda i: (outputs[i].shape[2:].numel(), -i))
    kept = proto.graph.output[best]
    del proto.graph.output[best + 1 :], proto.graph.output[:best]
    needed, nodes = {kept.name}, []
    for node in reversed(proto.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    nodes.reverse()
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    unused = [t for t in proto.graph.initializer if t.name not in needed]
    for tensor in unused:
        proto.graph.initializer.remove(tensor)


# --- the spec ---


def _spec(wanted: Export, found: Geometry, known: ModelSpec | None) -> ModelSpec:
    """What was found by probing, with what `known` says about meaning, with what the user says about either."""
    meaning: dict[str, Any] = {
        "name": Path(wanted.out).stem,
        "activation": "softmax" if found.channels_out > 1 else "sigmoid",
    }
    if known is not None:
        kept = (
            "name",
            "classes",
            "activation",
            "normalization",
            "spacing",
            "spacing_unit",
            "background",
            "empty",
            "context",
            "channels",
        )
        meaning |= {key: getattr(known, key) for key in kept}
    if wanted.output_channels in ACTIVATION_OF and (known is None or known.activation == "softmax"):
        meaning["activation"] = ACTIVATION_OF[wanted.output_channels]  # where the graph tells another, it wins
    values = {
        "axes": found.axes,
        "channels_in": found.channels_in,
        "channels_out": found.channels_out,
        "window": found.window,
        "window_min": found.window_min,
        "window_step": found.window_step,
        "margin": found.margin,
        "flops": found.flops,
    }
    return _validated({**meaning, **values, **_said(wanted)})


def _changed(wanted: Export, spec: ModelSpec) -> ModelSpec:
    window = {"window": wanted.window} if wanted.window else {}
    return _validated({**spec.model_dump(), **window, **_said(wanted)})


def _said(wanted: Export) -> dict[str, Any]:
    said = {
        "name": wanted.name,
        "classes": wanted.classes,
        "activation": wanted.activation,
        "channels": wanted.output_channels,
        "normalization": Normalization.parse(wanted.normalize) if wanted.normalize else None,
        "spacing": wanted.spacing,
        "spacing_unit": wanted.spacing_unit,
        "background": wanted.background,
    }
    return {key: value for key, value in said.items() if value is not None}


def _validated(values: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(f"--{str(key).replace('_', '-')}: " for key in first["loc"][:1])
        said = str(first["msg"]).removeprefix("Value error, ")
        raise SettingsError(f"{option}{said}; correct it, see unet-engine export --help") from error
