"""What was learnt and proved of a model on this machine, as people are told: later runs on data of these kinds go by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError
from unet_engine.model.verdict import Quantiles
from unet_engine.prepare.precision_proof import KIND as PROVED
from unet_engine.prepare.precision_proof import Proof
from unet_engine.prepare.tiling_choice import KIND as LEARNT
from unet_engine.prepare.tiling_choice import Learnt
from unet_engine.units import times

T = TypeVar("T", bound=BaseModel)


def tilings(sha256: str) -> list[str]:
    """A line for each kind of data that ``--tiling auto`` has looked at, the latest first."""
    return _told(LEARNT, sha256, Learnt, _tiling)


def precisions(sha256: str) -> list[str]:
    """A line for each precision, size of windows and kind of data that was compared with fp32, passed or not."""
    return _told(PROVED, sha256, Proof, _precision)


def _told(kind: str, sha256: str, made: type[T], line: Callable[[dict[str, Any], T], str]) -> list[str]:
    found = []
    with suppress(BackendError):
        for key, value in engine_cache.of_model(kind, sha256):
            with suppress(ValueError, ValidationError, KeyError, TypeError, IndexError):  # of another version
                found += [line(key, made.model_validate(entry)) for entry in json.loads(value)]
    return found


def _tiling(key: dict[str, Any], learnt: Learnt) -> str:
    passed = sum(m.passed for m in learnt.measured)
    judge = "labels" if learnt.truth else f"windows of {times(learnt.yardstick or ())}"
    bar = (
        f"{learnt.bar_agreement:.5f} and least Dice {learnt.bar_dice:.5f} of the model's own"
        if learnt.tolerance is None
        else f"{learnt.tolerance:g}"
    )
    contexts = " and ".join(dict.fromkeys(times(m.context) for m in learnt.measured))
    return (
        f"{key['precision'][0]} with {key['library']}, windows of {times(key['window'])}: {passed} of "
        f"{len(learnt.measured)} margins in {contexts} reach {bar} against {judge}, {len(learnt.regions)} regions"
        f"{_values(learnt.quantiles)}"
    )


def _precision(key: dict[str, Any], proof: Proof) -> str:
    state = f"failed, {proof.reason}" if proof.reason else "passed"
    dice = "" if proof.least_dice is None else f", least Dice {proof.least_dice:.5f}"
    return (
        f"{key['precision'][0]} with {key['library']}, windows of {times(proof.window)}: {state}; agreement "
        f"{proof.agreement:.5f}{dice} with fp32, {proof.regions} regions of {proof.volume or 'a volume'}"
        f"{_values(proof.quantiles)}"
    )


def _values(quantiles: Quantiles) -> str:
    """Which kind of data that was."""
    if not quantiles:
        return ""
    spans = [f"{channel[0]:.3g} to {channel[-1]:.3g}" for channel in quantiles]
    return f", values {' and '.join(spans)} once normalised"
