"""The region that a user asks for."""

from __future__ import annotations

import re

from unet_engine.errors import SettingsError
from unet_engine.plan.box import Box
from unet_engine.settings.settings import Settings
from unet_engine.volumes.base import Volume
from unet_engine.volumes.turned import as_stored, turn_of


def region_of_interest(settings: Settings, volume: Volume) -> Box:
    """What ``--roi`` names in voxels of the volume as it is stored, in those of `volume`, as it is seen; without, all of
    it. Raises `SettingsError` as `parse_roi`."""
    if not settings.roi:
        return Box.of_shape(volume.shape)
    roi, turn = parse_roi(settings.roi, volume.spatial, as_stored(volume).shape), turn_of(volume)
    return turn.seen_box(roi) if turn else roi


def parse_roi(text: str, names: str, shape: tuple[int, ...]) -> Box:
    """``z0:z1,y0:y1,x0:x1`` as a box inside `shape`. Raises `SettingsError` where it is malformed, empty or outside."""
    parts = text.split(",")
    if len(parts) != len(names):
        raise SettingsError(
            f"--roi {text!r} has {len(parts)} axes, the volume has {names}; give start:stop for each, e.g. 0:64"
        )
    lo, hi = [], []
    for part, name, size in zip(parts, names, shape, strict=True):
        match = re.fullmatch(r"\s*([0-9]{0,20})\s*:\s*([0-9]{0,20})\s*", part)
        if not match:
            raise SettingsError(f"--roi: {part!r} is not start:stop for axis {name}; write it like 0:64")
        start, stop = int(match[1] or 0), int(match[2] or size)
        if not start < stop <= size:
            raise SettingsError(f"--roi: {part} along {name} is empty or leaves the volume; stay within 0:{size}")
        lo.append(start)
        hi.append(stop)
    return Box(tuple(lo), tuple(hi))
