"""A lower precision proved by a run on the user's data, in windows of another size than its verdict is of: as kept in
the user's cache and in the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError
from unet_engine.model.verdict import Quantiles, difference

KEY = "precision_proof"
"""Key of the proof that a run rests on in the header of its output."""
KIND = "tiling-proof"
"""Of what is kept in the user's cache."""
KINDS = 8
"""Kinds of data that are remembered of windows of one size; the oldest goes."""
_IN_TILING = "tiling_choice", "proof"
"""Where the header of a run that proved it itself has it."""


class Proof(BaseModel):
    """Against fp32, on regions of a volume."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    window: tuple[int, ...]
    regions: int
    voxels: int
    agreement: float
    least_dice: float | None
    max_error: float
    reason: str
    """Why it did not pass; empty where it did."""
    volume: str = ""
    """Where it was proved."""
    quantiles: Quantiles = ()
    """Of the normalised voxels of that volume."""


def known_proofs(key: Mapping[str, object], window: tuple[int, ...]) -> list[Proof]:
    """What was found of these windows before, passed or not, of each kind of data; the latest first."""
    with suppress(BackendError, ValueError, TypeError, ValidationError):
        data = engine_cache.load(KIND, _of(key, window))
        return [Proof.model_validate(entry) for entry in json.loads(data or b"[]")]
    return []


def known_proof(key: Mapping[str, object], window: tuple[int, ...], quantiles: Quantiles) -> Proof | None:
    """The same on data of this kind."""
    return next((p for p in known_proofs(key, window) if not difference(quantiles, p.quantiles)), None)


def remember_proof(key: Mapping[str, object], proof: Proof) -> None:
    """Keep it for later runs, in place of what was found on data of its kind. A cache that cannot be used is no
    error."""
    others = [p for p in known_proofs(key, proof.window) if difference(p.quantiles, proof.quantiles)]
    values = [entry.model_dump(mode="json") for entry in (proof, *others)][:KINDS]
    with suppress(BackendError):
        engine_cache.store(KIND, _of(key, proof.window), json.dumps(values).encode())


def _of(key: Mapping[str, object], window: tuple[int, ...]) -> dict[str, object]:
    return {**key, "proved": list(window)}


def stored_proofs(header: Mapping[str, Any]) -> list[Proof]:
    """Those that the run rests on whose output has this header."""
    tiling, proof = _IN_TILING
    found = header.get(KEY), (header.get(tiling) or {}).get(proof)
    return [Proof.model_validate(entry) for entry in found if entry]
