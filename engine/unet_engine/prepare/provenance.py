"""What an output says of how it came about: the attribute `unet_engine` of its group."""

from __future__ import annotations

import json
import platform
from typing import Any

from unet_engine.output.header import spans
from unet_engine.pipeline.job import Job
from unet_engine.prepare import coarse_choice, overlap_choice, precision_proof, tiling_choice
from unet_engine.prepare.prepare import Prepared
from unet_engine.redaction import redacted
from unet_engine.stitching import operations
from unet_engine.version import version_of
from unet_engine.volumes import nodata


def provenance(prepared: Prepared) -> dict[str, Any]:
    """JSON for the header of the run's output: `identity`, what ran, on what grid and blocks, and what was chosen where
    the settings left it open. Secrets of URLs are hidden, but in `identity`, which a resume compares to the letter."""
    job, plan = prepared.job, prepared.job.plan
    facts = {
        "identity": dict(plan.identity),
        "input": job.volume,
        **({"input_axes": job.volume_axes} if prepared.survey.settings.axes else {}),
        "model": {
            "file": job.model.path.name,
            "sha256": job.model.sha256,
            "name": job.model.spec.name,
            **_members(job),
        },
        **({"credit": job.model.credit.facts()} if job.model.credit else {}),
        "classes": list(job.model.spec.classes),
        **({} if job.model.spec.classes or job.kind != "labels" else {"labels": job.model.spec.label_count}),
        **({"colours": list(job.model.spec.colours)} if job.model.spec.colours else {}),
        "output": job.kind,
        "probability_scale": 255 if job.kind == "probabilities" and job.layout.dtype == "uint8" else None,
        "backend": job.setup.device + " " + str(plan.identity["backend"]),
        "precision": job.setup.precision,
        "stitching": operations.IMPLEMENTATION,
        "normalization": job.scaling.facts(),
        **({"poses": [str(pose) for pose in job.poses]} if len(job.poses) > 1 else {}),
        **_outside(job),
        **_resampling(job),
        **({"frame": job.layout.frame.facts()} if job.layout.frame else {}),
        **({"start": list(job.layout.start)} if job.layout.start else {}),
        "grid": {
            "windows": list(plan.window_range.shape),
            "window": list(plan.window_shape),
            "stride": [a.stride for a in plan.axes],
        },
        "begun": job.begun,
        "blocks": [spans(indices) for indices in plan.writing],
        "versions": {name: version_of(name) for name in ("unet-engine", "numpy", "zarr", "zarrs")}
        | {"python": platform.python_version()},
    }
    decoded: dict[str, Any] = json.loads(json.dumps(facts))
    return {**redacted(decoded), "identity": decoded["identity"], **_choices(prepared)}


def _choices(prepared: Prepared) -> dict[str, Any]:
    """What a resume takes over in place of choosing again."""
    found = {overlap_choice.KEY: overlap_choice.facts(prepared.overlap)}
    if prepared.tiling:
        found[tiling_choice.KEY] = tiling_choice.facts(prepared.tiling)
    if prepared.coarse:
        found[coarse_choice.KEY] = coarse_choice.facts(prepared.coarse)
    if proof := prepared.survey.choice.elsewhere:
        found[precision_proof.KEY] = proof.model_dump(mode="json")
    return found


def _members(job: Job) -> dict[str, Any]:
    """The networks of a model of several."""
    if not job.model.members:
        return {}
    shares = zip(job.model.networks, job.model.shares, strict=True)
    return {"members": [{"file": n.path.name, "name": n.label, "sha256": n.sha256, "share": s} for n, s in shares]}


def _outside(job: Job) -> dict[str, Any]:
    """Which voxels are not the network's; nothing where all are."""
    facts = {
        "mask": job.mask,
        **{"nodata": [], **nodata.facts(job.missing)},
        "written": None if job.outside is None else [f"{value:g}" for value in job.outside],
    }
    return {"outside": facts} if job.mask or job.missing or job.outside is not None else {}


def _resampling(job: Job) -> dict[str, Any]:
    """How the volume came to the spacing of the model, and what grid the result is on; nothing where it did not."""
    image, back = job.plan.image, job.plan.back
    if all(axis.is_identity for axis in image):
        return {}
    return {
        "resampling": {
            "shape": [axis.target for axis in image],
            "image_orders": [axis.order for axis in image],
            "output_orders": [axis.order for axis in back] or None,
            "written_on": "scan" if back else "model",
        }
    }
