"""``unet-engine export``: a trained network in whatever form to one ONNX file with its spec, compared with PyTorch
before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_engine.backends import second_opinion
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import choose_backend
from unet_engine.errors import ModelError, SettingsError, UnetEngineError
from unet_engine.model.channels import labels_refusal
from unet_engine.model.ending import applied_again, outputs_note, refusal
from unet_engine.model.file import ModelFile, open_model
from unet_engine.model.onnx_ending import ending_for
from unet_engine.model.onnx_shapes import dims, images_of
from unet_engine.model.origins import origins, said_beside
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.prepare.evidence import Outputs, contradiction
from unet_engine.units import Tell, times
from unet_export.conversion.adapt import Adapted, adapted
from unet_export.conversion.checkpoint import Checkpoint, open_checkpoint
from unet_export.conversion.empty import empty_of
from unet_export.conversion.exporters import from_module, from_program, from_script
from unet_export.conversion.onnx_export import frozen, write_onnx
from unet_export.conversion.probe import Geometry, probe
from unet_export.conversion.proof import Comparison, proved
from unet_export.conversion.request import Export, changed, options_of, spec_for_export, validated
from unet_export.conversion.runners import OnnxNetwork, onnx_runner, plain_graph, second_runner

__all__ = ["Export", "export"]

_RUN = dict.fromkeys(("axes", "channels_in", "channels_out", "window", "margin", "flops"), "a window that was run")
_PROVED = "windows that were compared with the network"


def export(wanted: Export, tell: Tell = print) -> dict[str, Any]:
    """Write ``wanted.out`` and return what it is. Raises `SettingsError`, `ModelError` or `OutputError`."""
    if not wanted.out.lower().endswith(".onnx"):
        raise SettingsError(f"--out {wanted.out} names no ONNX file; write it like model.onnx")
    spec, error = (_onnx if _is_onnx(wanted) else _torch)(wanted, tell)
    if not any(spec.window_step) and wanted.sizes == "auto":
        tell(
            f"note: {wanted.out} takes windows of {spec.window} alone; other sizes are refused by the network or its "
            "file"
        )
    _second_opinion(wanted.out, spec, tell)
    return {
        "out": wanted.out,
        "largest_difference": error,
        "compared_with": _origin(wanted),
        **spec.model_dump(mode="json"),
    }


def _is_onnx(wanted: Export) -> bool:
    return wanted.checkpoint.lower().endswith(".onnx")


def _origin(wanted: Export) -> str:
    return f"the ONNX file {Path(wanted.checkpoint).name}" if _is_onnx(wanted) else "PyTorch"


def _second_opinion(path: str, spec: ModelSpec, tell: Tell) -> None:
    """Tell where the library that a run on this machine's CPU takes computes something else than the file says."""
    model = open_model(path, spec.window)
    noise = np.random.default_rng(0).standard_normal((spec.channels_in, *spec.window), np.float32)
    setup, library = Setup(model, spec.window), choose_backend(model, "cpu")
    opinion = second_opinion.asked(setup, library, noise, "noise")
    if opinion and opinion.wrong == "first":
        other = second_opinion.other_for(model, library, "cpu")
        tell(f"note: of noise, {opinion.text}; a run takes {other.library if other else 'another one'}")


# --- PyTorch in ---


def _torch(wanted: Export, tell: Tell) -> tuple[ModelSpec, float]:
    checkpoint = open_checkpoint(
        wanted.checkpoint, wanted.factory, wanted.arguments, wanted.weights, tell, trust=wanted.trust
    )
    network = adapted(checkpoint.network, wanted.window, wanted.channels, wanted.head, tell)
    geometry = probe(network, wanted.window, wanted.channels, fixed=wanted.sizes == "static")
    _check_free(wanted, geometry)
    embedded = _embedded(wanted.checkpoint)
    known = embedded.spec if embedded else None
    facts = origins(embedded) if embedded else {"activation": "guess by the number of channels"}
    said = wanted.activation is not None or known is not None
    meaning = _Meaning(wanted.checkpoint, said, tell, facts | _RUN, described=known is not None)
    spec = spec_for_export(wanted, geometry, known)
    try:
        return _written(checkpoint, network, spec, wanted, meaning)
    except ModelError:
        if wanted.sizes != "auto" or not any(spec.window_step):
            raise
    # what cannot be exported at all fails again, with the reason that matters
    fixed = spec.model_copy(update={"window_min": spec.window, "window_step": (0,) * len(spec.axes)})
    return _written(checkpoint, network, fixed, wanted, meaning)


def _written(
    checkpoint: Checkpoint, network: Any, spec: ModelSpec, wanted: Export, meaning: _Meaning
) -> tuple[ModelSpec, float]:
    """The spec as it was written, and the largest difference: the exported graph has a say in the activation."""

    def write(proto: Any, reference: Any) -> tuple[ModelSpec, float]:
        return _finished(proto, reference, meaning.of(proto, spec), wanted, meaning)

    if checkpoint.kind == "module":
        with frozen(network) as net:
            return write(from_module(net, spec), net)
    if checkpoint.kind == "torchscript":
        example = torch.zeros((1, spec.channels_in, *spec.window))
        script = network if not isinstance(network, Adapted) else torch.jit.trace(network, example)
        return write(from_script(script, spec), network)
    if isinstance(network, Adapted):
        return write(from_module(network, spec, _rows(checkpoint.program)), network)
    return write(from_program(checkpoint.program, spec.name), network)


def _rows(program: Any) -> int | None:
    """The batch that an exported program was saved for; None where it takes any."""
    name = program.graph_signature.user_inputs[0]
    image = next(node for node in program.graph.nodes if node.name == name)
    rows = image.meta["val"].shape[0]
    return rows if isinstance(rows, int) else None


def _finished(
    proto: Any, reference: Any, spec: ModelSpec, wanted: Export, meaning: _Meaning, origin: str = ""
) -> tuple[ModelSpec, float]:
    """Compare the graph with what it was made of on all sizes that it shall promise, and write it with those that
    hold."""
    data = proto.SerializeToString()
    comparison = Comparison(reference, onnx_runner(data, spec.name), spec, origin or "PyTorch")
    right = proved(comparison, second_runner(data, comparison))
    if right is None:
        raise ModelError(
            f"the exported {spec.name} is right for windows of {times(spec.window)} alone, not for others that the "
            "network takes; use --sizes static, or auto"
        )
    meaning.measured(comparison, right)
    if wanted.empty:
        right = validated({**right.model_dump(), "empty": empty_of(wanted.empty, right, comparison.run)})
        meaning.tell(
            f"note: windows of nothing but {right.background:g} are not inferred: their outputs are {right.empty}"
        )
    facts = meaning.facts | {"window_min": _PROVED, "window_step": _PROVED} | options_of(wanted)
    write_onnx(proto, right, wanted.out, comparison.worst, origin, facts)
    return right, comparison.worst


@dataclass
class _Meaning:
    """What the outputs of an exported graph are: what was said of them, else what the graph proves, else a guess by
    their number."""

    source: str
    said: bool
    """Whether the user or a spec names the activation."""
    tell: Tell
    facts: dict[str, str]
    """By field of the spec: what told it."""
    described: bool
    """Whether a spec or the graph describes the channels already."""
    told: str = ""
    asked: bool = False

    def of(self, proto: Any, spec: ModelSpec) -> ModelSpec:
        """`spec` with the activation of the graph's first output, and `unknown` channels where those are neither said
        nor follow. Raises `ModelError` where the activation has to be said."""
        spec = self._activated(proto, spec)
        if self.described or spec.channels or not labels_refusal(spec, described=False):
            return spec
        if not self.asked:
            self.tell(
                f"note: nothing says what the {spec.channels_out} output channels are, and run will ask; say "
                "--output-channels "
                "classes (they exclude one another), multilabel (they may overlap), image or offsets"
            )
        self.asked = True
        return validated({**spec.model_dump(), "channels": "unknown"})

    def _activated(self, proto: Any, spec: ModelSpec) -> ModelSpec:
        end = ending_for(proto, (1, spec.channels_in, *spec.window))
        found, why = end.activation(spec.channels_out)
        if not self.said and found is None:
            raise ModelError(refusal(self.source, why))
        if not self.said and not why:
            return spec
        if not self.said and found is not None:
            self._tell(outputs_note(found, why))
            self.facts |= {"activation": why} if why else {}
            return validated({**spec.model_dump(), "activation": found})
        self._tell(applied_again(end, spec.activation, spec.channels_out))
        return spec

    def measured(self, comparison: Comparison, spec: ModelSpec) -> None:
        """Tell where what the network makes of noise is not what `spec` says of its outputs, and the graph did not."""
        seen = Outputs()
        seen.look(comparison.expected(comparison.noise())[0].numpy())
        reason = contradiction(seen, spec, labels=False)
        if not self.told:
            self._tell(f"of noise, {reason}" if reason else "")

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


def _embedded(checkpoint: str) -> ModelFile | None:
    """A `.pt2` or TorchScript that carries a spec already."""
    try:
        return open_model(checkpoint)
    except UnetEngineError:
        return None


# --- ONNX in ---


def _onnx(wanted: Export, tell: Tell) -> tuple[ModelSpec, float]:
    """A foreign network gets a spec, one output as the engine takes it, and a check; its own layers stay as they
    are."""
    path = Path(wanted.checkpoint)
    model = open_model(path, wanted.window, wanted.activation, wanted.head)
    for note in model.notes:
        tell(f"note: {note}")
    proto = plain_graph(model)
    network = OnnxNetwork(proto.SerializeToString(), path.name)
    carried = any(entry.key == METADATA_KEY for entry in proto.metadata_props)
    if carried:
        spec = changed(wanted, model.spec)
    else:
        stuck = all(dims(images_of(proto.graph)[0])[2:])
        fixed = wanted.sizes == "static" or stuck
        geometry = probe(network, wanted.window or model.spec.window, model.spec.channels_in, fixed=fixed)
        _check_free(wanted, geometry)
        spec = spec_for_export(wanted, geometry, model.spec)
    for entry in [e for e in proto.metadata_props if e.key.startswith("unet_engine.")]:
        proto.metadata_props.remove(entry)
    said = wanted.activation is not None or carried or said_beside(model, "activation")
    meaning = _Meaning(str(path), said, tell, origins(model), described=model.described)
    return _finished(proto, network, meaning.of(proto, spec), wanted, meaning, _origin(wanted))
