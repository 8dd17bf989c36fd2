"""Axes as ilastik and vigra write them beside an array: ``axistags``, with how far voxels are apart along each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any

from unet_engine.units import unit_along
from unet_engine.volumes.axis_names import letter
from unet_engine.volumes.base import Timing
from unet_engine.volumes.timing import stepped, unit_of_time


@dataclass(frozen=True)
class Tag:
    axis: str
    step: float
    """From one voxel to the next; 0 where it is not known."""
    unit: str


def tags_of(attributes: Mapping[str, Any]) -> list[Tag]:
    """The tags in the order of the axes; none where there are none. ilastik keeps units in ``axis_units``, by axis."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        listed = json.loads(str(attributes.get("axistags", "")))["axes"]
        units = _units(attributes)
        return [
            Tag(letter(str(tag["key"])), _step(tag.get("resolution")), str(units.get(str(tag["key"])) or ""))
            for tag in listed
        ]
    return []


def _units(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    with suppress(ValueError, TypeError):
        found = json.loads(str(attributes.get("axis_units", "")))
        return found if isinstance(found, dict) else {}
    return {}


def _step(value: Any) -> float:
    step = float(value or 0)
    return step if isfinite(step) and step > 0 else 0.0


def placed(attributes: Mapping[str, Any], names: str) -> tuple[list[float], None, str | None, tuple[str, ...]] | None:
    """Spacing of each of `names`, which are the axes, translation, unit, notes; None where the tags do not say how far
    voxels are apart along every spatial axis."""
    tags = {tag.axis: tag for tag in tags_of(attributes)}
    spatial = [tags[a] for a in names if a in "zyx" and a in tags]
    if not spatial or len(spatial) != sum(a in "zyx" for a in names) or not all(tag.step for tag in spatial):
        return None
    if all(tag.unit in ("", "pixel") for tag in spatial) and {tag.step for tag in spatial} == {1.0}:
        return None  # what is written where nothing is known
    unit, factors, notes = unit_along({tag.axis: tag.unit for tag in spatial})
    steps = {tag.axis: tag.step * factors.get(tag.axis, 1.0) for tag in spatial}
    return [steps.get(a, 1.0) for a in names], None, unit, notes


def timing(attributes: Mapping[str, Any]) -> Timing | None:
    """Of its time points, where the tags say it."""
    tag = next((tag for tag in tags_of(attributes) if tag.axis == "t"), None)
    return stepped(tag.step, 0.0, unit_of_time(tag.unit)) if tag else None
