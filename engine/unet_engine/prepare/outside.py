"""Voxels that are not meant: outside the mask, or never measured. What is written there, and what says where they
are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_engine.errors import ModelError, SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.pipeline.reduction import REDUCTIONS, Kind
from unet_engine.prepare.places import pick_of
from unet_engine.settings.settings import Settings
from unet_engine.settings.values import KEEP
from unet_engine.volumes import nodata, samples
from unet_engine.volumes.base import Volume
from unet_engine.volumes.cropped import Cropped
from unet_engine.volumes.mask import Mask, open_mask
from unet_engine.volumes.turned import as_stored, turn_of


def as_measured(settings: Settings, volume: Volume, notes: list[str]) -> Volume:
    """The volume with the values that mean that nothing was measured: those that the settings give, else its own, which
    are told. Raises `SettingsError` for a value that no voxel can have."""
    if settings.nodata is None:
        if volume.missing:
            notes.append(
                f"voxels of {_of_channels(volume)} are taken as not measured, as the attributes of {volume.path} "
                "say: left out of normalisation and result; --nodata none takes them as voxels"
            )
        return volume
    values = settings.nodata_values
    if settings.nodata == "none":
        return volume.taken_whole()
    for value in values:
        if nodata.in_type(value, volume.dtype) is None:
            raise SettingsError(
                f"--nodata {value:g}: no voxel of {volume.path} can be that, they are {volume.dtype}; give another "
                "value"
            )
    return volume.with_missing((values,) * volume.channels)


def about_marks(settings: Settings, volume: Volume, notes: list[str]) -> None:
    """Say where a value looks as if nothing was measured there, and neither the volume nor the user says so."""
    if settings.nodata is not None or volume.missing or settings.mask or volume.validity or volume.gaps:
        return
    found = {value for channel in samples.values(volume) if (value := nodata.suspected(channel)) is not None}
    if found:
        listed = ",".join(f"{value:g}" for value in sorted(found))
        notes.append(
            f"voxels of {_listed(tuple(sorted(found)))} lie far from all others, which looks as if nothing was measured "
            f"there: they are taken as voxels, in normalisation too; --nodata {listed} leaves them out, none keeps them"
        )


def mask_of(settings: Settings, volume: Volume, spec: ModelSpec) -> Mask | None:
    """The mask that the settings name. Raises `InputError` where it does not fit, `SettingsError` where the settings
    speak of an outside that there is not, and `ModelError` where the output outside is to be kept and is not known."""
    if settings.mask is None:
        if settings.outside not in (None, KEEP) and not _has_missing(volume):
            raise SettingsError(
                f"--outside {settings.outside}: nothing is outside; give --mask, or --nodata where the volume names no "
                "such value"
            )
        return None
    if settings.outside == KEEP and spec.empty is None:
        raise ModelError(
            f"--mask with --outside {KEEP}: the model {spec.name} does not say what it gives where "
            f"nothing is; write empty = [value of each channel] to the .toml beside it, or leave out --outside {KEEP}"
        )
    origin = volume.box.lo if isinstance(volume, Cropped) else None
    return open_mask(settings.mask, as_stored(volume), turn_of(volume), pick_of(settings).timepoint, origin)


def fill_of(
    settings: Settings, spec: ModelSpec, *, masked: bool, volume: Volume, kind: Kind, dtype: str
) -> tuple[float, ...] | None:
    """What is written outside, for each channel that is written; None where nothing is overwritten.

    By default what the spec's `empty` comes to, as far as it names one; else 0, which is the background label."""
    if settings.outside == KEEP or (not masked and not _has_missing(volume)):
        return None
    channels = 1 if kind == "labels" else spec.channels_out
    if settings.outside is not None and kind == settings.output:
        return (float(settings.outside),) * channels
    return (0.0,) * channels if spec.empty is None else stored_of(spec, kind, dtype, spec.empty)


def stored_of(spec: ModelSpec, kind: Kind, dtype: str, outputs: Sequence[float]) -> tuple[float, ...]:
    """What is stored where the network gives these `outputs`, one per channel: for each channel that is written."""
    sums = np.asarray(outputs, np.float32).reshape(-1, 1, 1)
    reduction = REDUCTIONS[kind](spec.activation, dtype, spec.regions, spec.threshold, kept=spec.kept_labels)
    return tuple(map(float, reduction.on_host(sums).ravel()))


def _has_missing(volume: Volume) -> bool:
    """Whether voxels of it may not have been measured, as it says or the user does."""
    return bool(volume.missing) or volume.validity is not None or volume.gaps is not None


def _of_channels(volume: Volume) -> str:
    """The values that mean it, and in which channels, where these have others."""
    if (found := nodata.same(volume.missing)) is not None:
        return _listed(found)
    of: dict[tuple[float, ...], list[int]] = {}
    for channel, values in enumerate(volume.missing):
        of.setdefault(values, []).append(channel)
    each = [f"{_listed(values)} in channel {_numbers(found)}" for values, found in of.items() if values]
    return ", ".join(each)


def _numbers(channels: Sequence[int]) -> str:
    more = f" and {len(channels) - _NAMED} more" if len(channels) > _NAMED else ""
    return ", ".join(map(str, channels[:_NAMED])) + more


_NAMED = 8


def _listed(values: tuple[float, ...]) -> str:
    return " and ".join(f"{value:g}" for value in values)
