"""What the outputs are taken for, and whether what is asked for can be had of them."""

from __future__ import annotations

import numpy as np

from unet_engine.errors import SettingsError
from unet_engine.model.channels import guess_note, labels_refusal, other_refusal
from unet_engine.model.ending import guess_refusal, outputs_note
from unet_engine.model.file import ModelFile
from unet_engine.model.onnx_rewrite import NUMBERS, RANGES
from unet_engine.model.spec import ARE_PROBABILITIES
from unet_engine.prepare.notes import fall_back
from unet_engine.settings.settings import Settings
from unet_engine.volumes import samples
from unet_engine.volumes.base import Volume


def about_outputs(settings: Settings, model: ModelFile, notes: list[str]) -> None:
    """Say what the outputs are taken for where the graph told it. Raises `SettingsError` where logits are asked of what
    has none."""
    activation = model.spec.activation
    notes.extend(model.notes)
    if model.ends_in:
        notes.append(outputs_note(activation, model.ends_in))
    if model.contradiction:
        fall_back(settings, notes, f"{model.path.name}: {model.contradiction}")
    _about_channels(settings, model, notes)
    if settings.threshold is not None and settings.output not in ("labels", "masks"):
        raise SettingsError(f"--threshold makes labels and masks, not {settings.output}; leave it out")
    if settings.output == "logits" and activation in ARE_PROBABILITIES:
        raise SettingsError(
            f"--output logits: {model.path.name} gives probabilities and has no logits "
            f"({model.ends_in or f'its activation is {activation}'}); "
            "use --output probabilities"
        )


def _about_channels(settings: Settings, model: ModelFile, notes: list[str]) -> None:
    """Raise `SettingsError` where the output asked for means nothing of what the channels are, or is not known to; say
    so where it was guessed."""
    spec = model.spec
    if model.format == "fake" and spec.channels is None:  # stands for any network
        return
    if settings.output == "labels":
        why = labels_refusal(spec, described=model.described, output=model.output)
    else:
        why = other_refusal(spec, settings.output)
    if not why and settings.overlap == "auto" and spec.channels in ("image", "offsets"):
        why = "--overlap auto compares labels, which its channels have not; use --overlap 0.5"
    if not why and model.guessed and settings.output != "logits":
        why = guess_refusal(model.proved, spec.channels_out, settings.output)
    if why:
        raise SettingsError(f"{model.path.name}: {why}")
    if model.guessed and settings.output != "logits" and (note := guess_note(spec)):
        notes.append(f"{model.path.name}: {note}")


def about_whole_numbers(settings: Settings, model: ModelFile, volume: Volume, notes: list[str]) -> None:
    """Say what is lost where the network takes whole numbers and voxels become others."""
    if model.rewriting is None or not model.takes_integers:
        return
    takes = model.rewriting.takes
    if model.spec.normalization.mode != "none":
        fall_back(
            settings,
            notes,
            f"{model.path.name} takes {NUMBERS[takes]}, and normalised voxels are rounded; use --normalize none",
        )
        return
    low, high = RANGES[takes]
    found = [float(v) for values in samples.measured(volume) for v in (np.nanmin(values), np.nanmax(values))]
    if min(found) < low or max(found) > high:
        fall_back(
            settings,
            notes,
            f"{model.path.name} takes {NUMBERS[takes]}, and voxels from {min(found):g} to {max(found):g} are cut off "
            f"at {low:g} and {high:g}; bring them to that range first",
        )
