"""What names a run: all that decides the bytes of its output, as JSON values. An output can be resumed only by a run of
the same identity."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from unet_engine.backends.base import Network, Setup
from unet_engine.plan.resampling import AxisResampling
from unet_engine.prepare import blending
from unet_engine.prepare.decisions import Decisions
from unet_engine.prepare.places import pick_of
from unet_engine.prepare.survey import Survey
from unet_engine.volumes import nodata, samples
from unet_engine.volumes.nodata import Missing
from unet_engine.volumes.normalize import Scaling
from unet_engine.volumes.pick import ALL

FORMAT = 1
"""Changes whenever the same settings would give other bytes than an earlier version's."""

_DECIDE_NO_BYTE = {
    "name", "classes", "colours", "flops", "spacing", "spacing_unit", "input_quantiles", "channels", "mirror_axes"
}  # fmt: skip
"""Fields of a spec that may be corrected without making another run of it."""


def identity(
    survey: Survey, decisions: Decisions, network: Network, scale: Scaling, fingerprint: str
) -> dict[str, Any]:
    """All of it but the block grid, which the plan knows: see `Plan.identity`. fingerprint: of the volume."""
    fill = survey.fill(decisions.kind, decisions.dtype)
    settings, spec, setup, tiling = survey.settings, survey.model.spec, network.setup, decisions.tiling
    return {
        "format": FORMAT,
        "input": fingerprint,
        "shape": list(survey.scan.shape),
        **({"pick": [settings.timepoint, settings.input_channels]} if pick_of(settings) != ALL else {}),
        "roi": str(decisions.roi),
        "model": survey.model.sha256,
        "spec": spec.model_dump_json(exclude=_DECIDE_NO_BYTE),
        "backend": network.version,
        "device": setup.device.partition(":")[0],
        "precision": setup.precision,
        **network.identity(),
        "network": [setup.network or survey.model.sha256, setup.rest],
        **_members(setup),
        **({"window_threads": setup.window_threads} if setup.apart else {}),
        "window": list(tiling.window),
        "overlap": tiling.overlap,
        "blend": tiling.blend,
        **({blending.KEY: "features"} if survey.model.gives_features else {}),
        **({"split_concat": True} if settings.split_concat else {}),
        **({"shared": list(tiling.shared)} if tiling.shared is not None else {}),
        "padding": settings.padding_mode,
        "normalization": [str(spec.normalization), *scale.facts().values()],
        "output": [decisions.kind, decisions.dtype],
        "replace_nonfinite": settings.replace_nonfinite,
        "mask": samples.fingerprint(survey.mask.volume) if survey.mask else None,
        **({"coarse": survey.cells.digest} if survey.cells else {}),
        **({"validity": samples.fingerprint(valid)} if (valid := survey.scan.gaps or survey.scan.validity) else {}),
        **({"components": asdict(objects)} if (objects := survey.objects) else {}),
        **({"poses": [pose.bits for pose in decisions.poses]} if len(decisions.poses) > 1 else {}),
        **({} if fill is None else {"outside": list(map(repr, fill))}),
        **({"nodata": _nodata(survey.scan.missing)} if survey.scan.missing else {}),
        **(
            {"extremes": hashlib.sha256(repr(extremes).encode()).hexdigest()[:16]}
            if (extremes := survey.extremes)
            else {}
        ),
        **(
            {"crop": [str(survey.crop), str(survey.asked), *([str(survey.kept)] if survey.kept else [])]}
            if survey.crop
            else {}
        ),
        **({"turn": [list(survey.turn.order), list(survey.turn.backwards)]} if survey.turn else {}),
        **({"resampling": [_said(survey.grids.image), _said(decisions.back)]} if survey.grids else {}),
    }


def _said(grid: tuple[AxisResampling, ...]) -> list[list[float]]:
    return [
        [
            axis.source,
            axis.target,
            axis.order,
            *([axis.step] if axis.step else []),
            *([axis.start] if axis.start else []),
        ]
        for axis in grid
    ]


def _nodata(missing: Missing) -> list[Any]:
    """Values that mean that nothing was measured: those of all channels, or a list for each."""
    found = nodata.same(missing)
    return [list(map(repr, own)) for own in missing] if found is None else list(map(repr, found))


def _members(setup: Setup) -> dict[str, Any]:
    """Which networks stand for the members of a model of several, and what each counts."""
    if len(setup.members) == 1:
        return {}
    shares = [repr(share) for share in setup.model.shares]
    return {"members": [[m.network or m.model.sha256, s] for m, s in zip(setup.members, shares, strict=True)]}
