"""Test-time augmentation: in which poses the windows of a run are inferred."""

from __future__ import annotations

from unet_engine.errors import SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.plan.poses import Pose, poses
from unet_engine.settings.text import parse_tta
from unet_engine.units import times


def poses_of(asked: str | None, spec: ModelSpec, window: tuple[int, ...]) -> tuple[Pose, ...]:
    """What ``--tta`` asks for, else the mirrors that the model names; the upright pose comes first.

    window: input size per axis of the model. Raises `SettingsError` where the network or its window cannot be held so.
    """
    mirrors, turns = (None, False) if asked is None else parse_tta(asked)
    if asked is None:
        mirrors = "" if spec.channels == "offsets" else spec.mirror_axes or ""
    elif mirrors is None:
        mirrors = _named(spec)
    found = poses(mirrors, turns)
    if len(found) > 1:
        _check(asked, spec, window, mirrors, turns=turns)
    return found


def _named(spec: ModelSpec) -> str:
    """The axes of a plain ``mirror``: those that the model names, else all."""
    if spec.mirror_axes == "":
        raise SettingsError(
            f"--tta mirror: the model {spec.name} says that it was trained without mirrors; leave it out, or name the "
            f"axes, e.g. --tta mirror:{spec.axes}"
        )
    return spec.mirror_axes or spec.axes


def _check(asked: str | None, spec: ModelSpec, window: tuple[int, ...], mirrors: str, *, turns: bool) -> None:
    if spec.channels == "offsets":
        raise SettingsError(
            f"--tta {asked}: the channels of {spec.name} are offsets or affinities, which mean another direction "
            "in a mirrored window; leave --tta out"
        )
    if foreign := set(mirrors) - set(spec.axes):
        raise SettingsError(
            f"--tta {asked}: the model {spec.name} has the axes {spec.axes}, not {min(foreign)}; name its axes"
        )
    if turns and (window[-1] != window[-2] or spec.margin[-1] != spec.margin[-2]):
        raise SettingsError(
            f"--tta {asked}: windows of {times(window)} are not square in the plane {spec.axes[-2:]}, so they "
            "cannot be turned; use a square --window, or mirror"
        )


def told(asked: str | None, found: tuple[Pose, ...]) -> str:
    """What people should know of mirrors that they did not ask for; empty where there are none."""
    if asked is not None or len(found) == 1:
        return ""
    return (
        f"each window is inferred {len(found)} times, mirrored as in the model's own predictions; --tta none infers it "
        "once"
    )
