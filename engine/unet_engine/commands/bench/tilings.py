"""What tilings of a volume cost and how their labels agree: what ``--tiling auto`` learns, as plain values."""

from __future__ import annotations

from typing import Any

from unet_engine.prepare import tiling_choice
from unet_engine.prepare.prepare import prepare
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell


def tilings(tell: Tell, budget: float, **options: Any) -> dict[str, Any]:
    """`tiling_choice.facts` of a run with these options, which may compute `budget` of its voxels to find out.

    Raises what a run raises before it writes."""
    prepared = prepare(survey(Settings.of(**options, tiling="auto", tiling_budget=budget)), tell=tell)
    if prepared.network:
        prepared.network.close()
    assert prepared.tiling is not None
    return {
        **(tiling_choice.facts(prepared.tiling) or {}),
        "line": prepared.tiling.line,
        "table": prepared.tiling.table,
    }
