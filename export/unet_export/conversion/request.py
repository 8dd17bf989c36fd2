"""What ``unet-engine export`` is asked for, and the spec that follows from it and from what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from unet_engine.errors import SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.model.spec import ACTIVATION_OF, Activation, Channels, ModelSpec
from unet_engine.units import unit_of_length

if TYPE_CHECKING:  # PyTorch is heavy, and whoever asks for an import may have it in the cache
    from unet_export.conversion.probe import Geometry

_OPTIONS = {"normalization": "normalize", "channels_in": "channels", "channels": "output-channels"}
"""Options that are not called as the fields of the spec are."""
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
    empty: str | None = None
    """Output per channel on background, or auto; see `unet_export.conversion.empty`."""
    threshold: float | None = None
    """What channels on their own have to exceed to be labels, see `ModelSpec.threshold`."""
    mirror_axes: str | None = None
    """Along which runs mirror, ``zyx``; ``none``: trained without mirrors."""
    head: str | None = None
    """Name of the output that is meant; None: as its resolution and name tell."""
    trust: bool = False
    """The user trusts a checkpoint that runs code as it is opened."""


def spec_for_export(wanted: Export, found: Geometry, known: ModelSpec | None) -> ModelSpec:
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
            "regions",
            "threshold",
            "mirror_axes",
            "orientation",
            "resampling",
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
    return validated({**meaning, **values, **said_by(wanted)})


def changed(wanted: Export, spec: ModelSpec) -> ModelSpec:
    window = {"window": wanted.window} if wanted.window else {}
    return validated({**spec.model_dump(), **window, **said_by(wanted)})


def said_by(wanted: Export) -> dict[str, Any]:
    said = {
        "name": wanted.name,
        "classes": wanted.classes,
        "activation": wanted.activation,
        "channels": wanted.output_channels,
        "normalization": Normalization.parse(wanted.normalize) if wanted.normalize else None,
        "spacing": wanted.spacing,
        "spacing_unit": _unit(wanted.spacing_unit),
        "background": wanted.background,
        "threshold": wanted.threshold,
        "mirror_axes": "" if wanted.mirror_axes == "none" else wanted.mirror_axes,
    }
    return {key: value for key, value in said.items() if value is not None}


def _unit(text: str | None) -> str | None:
    try:
        return None if text is None else unit_of_length(text)
    except ValueError as error:
        raise SettingsError(f"--spacing-unit: {error}") from error


def options_of(wanted: Export) -> dict[str, str]:
    """By field of the spec that the user said: the option that does."""
    said: dict[str, str] = dict.fromkeys(said_by(wanted), "")
    said |= {name: "" for name in ("window", "empty") if getattr(wanted, name)}
    said |= {"channels_in": ""} if wanted.channels else {}
    return {field: "--" + _OPTIONS.get(field, field.replace("_", "-")) for field in said}


def validated(values: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(values)
    except ValidationError as error:
        said = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise SettingsError(f"{said}; correct it, see unet-engine export --help") from error
