"""``unet-engine export``: a trained network in whatever form to one ONNX file with its spec, compared with PyTorch
before it is written."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, SettingsError, UnetEngineError
from unet_engine.model.file import ModelFile, open_model
from unet_engine.model.onnx_shapes import dims, images_of
from unet_engine.model.origins import origins, said_beside
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.units import Tell
from unet_export.conversion.adapt import GivesLabels, adapted
from unet_export.conversion.checkpoint import Checkpoint, open_checkpoint
from unet_export.conversion.labels import cut_file, gives_whole_numbers
from unet_export.conversion.probe import Geometry, probe
from unet_export.conversion.request import Export, changed, spec_for_export
from unet_export.conversion.runners import OnnxNetwork, plain_graph
from unet_export.conversion.writing import RUN, Meaning, finished, tell_second_opinion, written_with_sizes

__all__ = ["Export", "export", "export_module"]


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
    tell_second_opinion(wanted.out, spec, tell)
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


# --- PyTorch in ---


def _torch(wanted: Export, tell: Tell) -> tuple[ModelSpec, float]:
    checkpoint = open_checkpoint(
        wanted.checkpoint, wanted.factory, wanted.arguments, wanted.weights, tell, trust=wanted.trust
    )
    return _written(checkpoint, _embedded(wanted.checkpoint), wanted, tell)


def export_module(network: Any, wanted: Export, tell: Tell = print) -> ModelSpec:
    """Write ``wanted.out`` for a torch module, which ``wanted.checkpoint`` is a name of; its mode and device are as
    before. Returns the spec. Raises as `export`."""
    training, devices = network.training, {parameter.device for parameter in network.parameters()}
    if len(devices) > 1:
        raise ModelError(f"{wanted.checkpoint} lies on several devices; move it to one, e.g. with .cpu()")
    device = next(iter(devices), None)
    try:
        return _written(Checkpoint(network.cpu().eval(), "module"), None, wanted, tell)[0]
    finally:
        network.train(training)
        if device is not None:
            network.to(device)


def _written(checkpoint: Checkpoint, embedded: ModelFile | None, wanted: Export, tell: Tell) -> tuple[ModelSpec, float]:
    """embedded: what the checkpoint says of itself"""
    labels: GivesLabels | None = None
    try:
        network = adapted(checkpoint.network, wanted.window, wanted.channels, wanted.head, tell)
    except GivesLabels as found:
        labels, network = found, found.network
    geometry = probe(network, wanted.window, wanted.channels, fixed=wanted.sizes == "static")
    _check_free(wanted, geometry)
    if labels or (not embedded and gives_whole_numbers(network, geometry.channels_in, geometry.window)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{Path(wanted.checkpoint).stem}.onnx")
            if cut_file(checkpoint, network, spec_for_export(_plain(wanted), geometry, None), file):
                return _onnx(replace(wanted, head=None), tell, file)
        _check_said(wanted, labels)
    known = embedded.spec if embedded else None
    facts = origins(embedded) if embedded else {"activation": "guess by the number of channels"}
    said = wanted.activation is not None or known is not None
    meaning = Meaning(wanted.checkpoint, said, tell, facts | RUN, described=known is not None)
    spec = spec_for_export(wanted, geometry, known)
    return written_with_sizes(checkpoint, network, spec, wanted, meaning)


def _plain(wanted: Export) -> Export:
    """Without what is said of channels that are not there yet."""
    return Export(wanted.checkpoint, wanted.out)


def _check_said(wanted: Export, labels: GivesLabels | None) -> None:
    """Refuse labels and masks that no argmax makes, unless the user says that their numbers can be blended."""
    if labels:
        raise labels
    if wanted.activation is None and wanted.output_channels not in ("image", "offsets"):
        raise ModelError(
            f"{wanted.checkpoint}: of noise, the network gives whole numbers alone: labels or masks it seems, which "
            "cannot be blended; export what lies before its threshold or rounding, or say what the numbers are with "
            "--activation, e.g. probabilities for masks of 0 and 1"
        )


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


def _onnx(wanted: Export, tell: Tell, file: Path | None = None) -> tuple[ModelSpec, float]:
    """A foreign network gets a spec, one output as the engine takes it, and a check; its own layers stay as they
    are. file: what was made of PyTorch's, and is read instead."""
    path = file or Path(wanted.checkpoint)
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
    meaning = Meaning(wanted.checkpoint, said, tell, origins(model), described=model.described)
    return finished(proto, network, meaning.of(proto, spec), wanted, meaning, "" if file else _origin(wanted))
