"""From a source that was read to its model file: networks become ONNX, are compared with themselves and with their
source, and carry whose they are."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_engine.errors import ModelError, OutputError, SettingsError
from unet_engine.model import credit as credits
from unet_engine.model.credit import Credit
from unet_engine.model.file import open_model
from unet_engine.model.normalization import Normalization
from unet_engine.model.spec import ModelSpec
from unet_engine.model.writing import write_members
from unet_engine.units import Tell, times
from unet_export.conversion.adapt import adapted
from unet_export.conversion.checkpoint import Checkpoint
from unet_export.conversion.probe import Geometry, probe
from unet_export.conversion.request import said_by, validated
from unet_export.conversion.runners import OnnxNetwork
from unet_export.conversion.writing import RUN, Meaning, finished, tell_second_opinion, written_with_sizes
from unet_export.importers.base import LINEAR, Imported, Importer, Member, Wanted, read
from unet_export.importers.certificate import certified
from unet_export.importers.files import digest


def make(importer: Importer, wanted: Wanted, tell: Tell = print) -> dict[str, Any]:
    """Import the source ``wanted.checkpoint`` with `importer`, write ``wanted.out``, and return what it is.

    Raises `SettingsError`, `ModelError` or `OutputError`; then nothing is written."""
    if not wanted.out.lower().endswith(".onnx"):
        raise SettingsError(f"--out {wanted.out} names no ONNX file; write it like model.onnx")
    return write(read(importer, wanted, tell), importer, wanted, tell)


def write(found: Imported, importer: Importer, wanted: Wanted, tell: Tell) -> dict[str, Any]:
    """The second half of `make`, with what `importer` read of ``wanted.checkpoint``."""
    source, out = Path(wanted.checkpoint), Path(wanted.out)
    found = _of_spacing(found, wanted)
    for line in found.credit.left_out:
        tell(f"note: left out: {line}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}; choose a folder that can be written") from error
    with folder as name:
        made = replace(wanted, out=str(Path(name, out.name)))
        spec, error_of = _written(found, made, tell)
        credit = _certified(found, made, tell)
        credit = credit.model_copy(update={"sha256": digest(importer.content(source))})
        credits.put(Path(made.out), credit)
        try:
            Path(made.out).replace(out)
        except OSError as error:
            raise OutputError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    tell_second_opinion(wanted.out, spec, tell)
    return {"out": wanted.out, "largest_difference": error_of, "credit": credit.facts(), **spec.model_dump(mode="json")}


def _of_spacing(found: Imported, wanted: Wanted) -> Imported:
    """With how volumes come to the spacing that the user says, where the source says none. Raises `SettingsError`."""
    if wanted.spacing is None and wanted.spacing_unit is not None:
        raise SettingsError("--spacing-unit is that of --spacing; give both, or neither, as the source says its own")
    if wanted.spacing is None:
        return found
    if said := found.promised.get("spacing"):
        raise SettingsError(f"--spacing: {found.credit.source} says its own, {times(said)}; leave out --spacing")
    return replace(found, promised={**found.promised, "resampling": LINEAR})


def _certified(found: Imported, wanted: Wanted, tell: Tell) -> Credit:
    try:
        certificates = certified(found, open_model(wanted.out))
    except ModelError as error:
        if not wanted.uncertified:
            raise
        tell(f"note: not certified: {error}")
        return found.credit
    for certificate in certificates:
        tell(f"certificate: {certificate}")
    if not certificates:
        tell("note: the source has nothing to compare the model file with, but for its own network, which it equals")
    return found.credit.model_copy(update={"certificate": certificates})


# --- one network ---


def _written(found: Imported, wanted: Wanted, tell: Tell) -> tuple[ModelSpec, float]:
    """All its networks, in one file: the spec, and the largest difference of any from what it was made of."""
    if len(found.members) == 1:
        return _written_alone(found.members[0], found, wanted, tell)
    parts, largest = [], 0.0
    with tempfile.TemporaryDirectory(prefix="members-", dir=Path(wanted.out).parent) as folder:
        for number, member in enumerate(found.members):
            tell(f"{member.name}, {number + 1} of {len(found.members)} networks")
            part = Path(folder, f"{number}.onnx")
            _, error = _written_alone(member, found, replace(wanted, out=str(part)), tell)
            parts.append((part, member.name, member.weight))
            largest = max(largest, error)
        return write_members(Path(wanted.out), parts).spec, largest


def _written_alone(member: Member, found: Imported, wanted: Wanted, tell: Tell) -> tuple[ModelSpec, float]:
    facts = dict.fromkeys(found.promised, found.told_by) | ({"resampling": "--spacing"} if wanted.spacing else {})
    told = wanted.activation is not None or "activation" in found.promised
    meaning = Meaning(wanted.checkpoint, told, tell, RUN | facts, described="channels" in found.promised)
    if _is_graph(member.network):
        network = OnnxNetwork(member.network.SerializeToString(), found.credit.source)
        spec = _spec(found, wanted, network)
        return finished(member.network, network, meaning.of(member.network, spec), wanted, meaning, member.name)
    checkpoint = Checkpoint(member.network, "torchscript" if _is_script(member.network) else "module")
    window, channels = _window(found, wanted), found.promised.get("channels_in", wanted.channels)
    network = adapted(member.network, window, channels, found.head, tell)
    return written_with_sizes(checkpoint, network, _spec(found, wanted, network), wanted, meaning)


def _spec(found: Imported, wanted: Wanted, network: Any) -> ModelSpec:
    """What was found by probing; with what the source says; with what the user says about either."""
    channels = found.promised.get("channels_in", wanted.channels)
    fixed = wanted.sizes == "static" or not any(found.promised.get("window_step", (1,)))
    geometry = probe(network, _window(found, wanted), channels, fixed=fixed)
    values = {
        "name": Path(wanted.checkpoint).stem,
        "activation": "softmax" if geometry.channels_out > 1 else "sigmoid",
        **_found(geometry),
        **_promised(found),
        **said_by(wanted),
    }
    if wanted.window:
        values["window"] = tuple(wanted.window)
    if isinstance(values.get("normalization"), str):
        values["normalization"] = Normalization.parse(values["normalization"])
    return validated(values)


def _promised(found: Imported) -> dict[str, Any]:
    """What the source says. Its tools measure all of the image that they are given."""
    said = dict(found.promised)
    if said.get("normalization") is not None:
        said["normalization"] = Normalization.model_validate(said["normalization"]).measured_of_all()
    return said


def _found(geometry: Geometry) -> dict[str, Any]:
    names = ("axes", "channels_in", "channels_out", "window", "window_min", "window_step", "margin", "flops")
    return {name: getattr(geometry, name) for name in names}


def _window(found: Imported, wanted: Wanted) -> tuple[int, ...] | None:
    return tuple(wanted.window) if wanted.window else found.promised.get("window")


def _is_graph(network: Any) -> bool:
    return hasattr(network, "SerializeToString")


def _is_script(network: Any) -> bool:
    """Whether a TorchScript is in it, which PyTorch's newer exporter does not read."""
    import torch

    return any(isinstance(module, torch.jit.ScriptModule) for module in network.modules())
