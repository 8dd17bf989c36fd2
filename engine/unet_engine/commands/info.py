"""Describing a volume or a model file in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unet_engine.backends import second_opinion
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import choose_backend
from unet_engine.commands.option_kinds import sizes
from unet_engine.endings import made_readable
from unet_engine.errors import InputError, UnetEngineError
from unet_engine.model.credit import Credit
from unet_engine.model.file import ModelFile, is_model, open_model
from unet_engine.model.origins import origins, told_by
from unet_engine.model.verdict import Verdict
from unet_engine.postprocess.formats import account_of, is_one_file
from unet_engine.prepare import cached_proofs, streams_choice
from unet_engine.volumes import samples
from unet_engine.volumes.collection import shapes_in
from unet_engine.volumes.formats import READ, format_of, open_volume
from unet_engine.volumes.pick import Pick


def describe(path: str, axes: str | None = None, window: str | None = None, head: str | None = None) -> dict[str, Any]:
    """What `path` is, as plain values. Raises `ModelError` or `InputError` as opening it does."""
    if is_model(path):
        return _model(path, window, head)
    if Path(path).is_file() and format_of(path) is None:
        raise InputError(
            f"{path} is neither a model file (.onnx, .pt2, .pt, .ts) nor a volume ({READ}); {made_readable(path)}"
        )
    return _volume(path, axes)


def is_volume_file(path: str) -> bool:
    """Whether `path` is a file that is called like a volume. Models of other tools may be called so too, as weights of
    Keras in ``.h5``: none of them is read here."""
    return Path(path).is_file() and not is_model(path) and format_of(path) is not None


def _model(path: str, window: str | None, head: str | None) -> dict[str, Any]:
    model = open_model(path, sizes("--window", window), head=head)
    spec = model.spec.model_dump(mode="json")
    spec["normalization"] = str(model.spec.normalization)
    judged = [
        f"{network.label}: {_judged(verdict)}" if network.label else _judged(verdict)
        for network in model.networks for verdict in network.verdicts
    ]  # fmt: skip
    return {
        "model": str(model.path),
        "format": model.format,
        "sha256": model.sha256,
        **_members(model),
        "judged": judged,
        "output": model.rewriting.output if model.rewriting else None,
        "notes": list(model.notes),
        "ends_in": model.ends_in or None,
        "contradiction": model.contradiction or None,
        "second_opinion": _opinion(model),
        "streams": _streams(model),
        "tilings": cached_proofs.tilings(model.sha256) or None,
        "proofs": cached_proofs.precisions(model.sha256) or None,
        **spec,
        "credit": model.credit.facts() if model.credit else None,
        "told_by": told_by(model) or None,
        "origins": origins(model, {"window": "--window"} if window else None),
    }


def _members(model: ModelFile) -> dict[str, Any]:
    """The networks of a model of several."""
    if not model.members:
        return {}
    return {
        "members": [
            f"{n.label}: {100 * s:.3g} %, {n.sha256}" for n, s in zip(model.networks, model.shares, strict=True)
        ]
    }


def _opinion(model: ModelFile) -> str | None:
    """What a second library said of the one that a run on the CPU takes; None where the format has one alone."""
    try:
        setup, library = Setup(model, model.spec.window), choose_backend(model, "cpu")
    except UnetEngineError:
        return None
    if second_opinion.other_for(model, library, "cpu") is None:
        return (
            "no second library is installed: pip install 'unet-engine[onnxruntime]'" if model.format == "onnx" else None
        )
    found = second_opinion.known(setup, library)
    if found is not None:
        return found.text
    found = second_opinion.known(setup, library, "noise")
    return f"{found.text}, of noise" if found else "not asked yet: the first run does"


def _streams(model: ModelFile) -> list[str] | None:
    """What was measured on this machine of windows at once and threads for each; None where nothing was."""
    try:
        found = streams_choice.remembered(model, choose_backend(model, "cpu"))
    except UnetEngineError:
        return None
    return [entry.line for entry in found] or None


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Facts for people: what the spec says, each with where it came from."""
    origins = facts.get("origins", {})
    said = {key: value for key, value in facts.items() if key not in ("origins", "credit")}
    if facts.get("credit"):
        said |= Credit.model_validate(facts["credit"]).lines()
    return [
        (key.replace("_", " "), f"{value}  ({origins[key]})" if key in origins else str(value))
        for key, value in said.items()
    ]


def _judged(verdict: Verdict) -> str:
    state = "emulated" if verdict.emulated else "passed" if verdict.passed else "failed"
    speed = "" if verdict.speedup is None else f", {verdict.speedup:.2f} times fp32"
    return f"{verdict.precision} on {verdict.library}: {state}{speed} ({verdict.reason})"


def _volume(path: str, axes: str | None) -> dict[str, Any]:
    volume = open_volume(path, axes, Pick(timepoint=0))  # what is sampled is the first
    sample = np.concatenate(samples.measured(volume))
    said = account_of(path) if is_one_file(path) else None
    finite = sample[np.isfinite(sample)] if sample.dtype.kind == "f" else sample
    return {
        "volume": path,
        **({"levels": levels} if (levels := shapes_in(path)) else {}),
        **volume.facts(),
        **({"classes": list(said["classes"])} if said and said.get("classes") else {}),
        "channels": volume.channels,
        "spacing": list(volume.spacing) if volume.spacing else None,
        **({"translation": list(volume.translation)} if any(volume.translation) else {}),
        "unit": volume.unit,
        **({"notes": list(volume.notes)} if volume.notes else {}),
        "sampled_range": [float(finite.min()), float(finite.max())] if finite.size else None,
        "sampled_mean": float(finite.mean()) if finite.size else None,
    }
