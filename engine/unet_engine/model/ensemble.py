"""Several networks that are run as one: which a model file holds, which of them run, and the one spec that they share.

Further networks are attached to an ONNX file behind its own (see `unet_engine.model.attachments`), each a whole ONNX
file of its own. The list of them is an attachment too; their hashes and weights make up the hash of the model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from unet_engine.errors import ModelError, SettingsError
from unet_engine.model import attachments
from unet_engine.model.spec import ModelSpec, plain_name
from unet_engine.units import brief, times

MEMBERS = "members"
"""Key of the attachment that lists them."""
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
"""Of a network in the mean: beyond these a network is left out rather than weighed, and sums overflow in the end."""
_MAY_DIFFER = ("name", "window", "window_min", "window_step", "context", "empty", "input_quantiles", "flops", "classes")


class Listed(BaseModel):
    """One network of a model file."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    weight: float = Field(default=1.0, ge=LEAST_WEIGHT, le=MOST_WEIGHT)
    """In the mean, relative to the others'."""
    network: str = ""
    """SHA-256 of what is attached; empty: the file's own network."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        return plain_name(name)


MOST_MEMBERS = 256
_LIST = TypeAdapter(Annotated[tuple[Listed, ...], Field(max_length=MOST_MEMBERS)], config=ConfigDict(defer_build=True))


def listed(path: Path) -> tuple[Listed, ...]:
    """The networks that the ONNX file at `path` holds; empty where it is one network like any other. Raises
    `ModelError` where the list is not understood."""
    text = attachments.read(path, MEMBERS)
    if text is None:
        return ()
    try:
        return _LIST.validate_json(text)
    except ValidationError as error:
        raise ModelError(
            f"{path}: its list of networks is not valid: {error.errors()[0]['msg']}; import it again"
        ) from error


def as_text(members: Sequence[Listed]) -> bytes:
    """The list as it is attached."""
    return _LIST.dump_json(tuple(members))


def combined_hash(hashes: Sequence[str], weights: Sequence[float]) -> str:
    """Of several networks, in their order, with what each counts."""
    return hashlib.sha256(json.dumps(list(zip(hashes, weights, strict=True))).encode()).hexdigest()


def chosen(names: Sequence[str], folds: str | None) -> tuple[int, ...]:
    """Numbers of the networks that ``--folds`` asks for, in the file's order. ``1`` means the one called ``1`` or
    ``fold_1``, and where none is called so the second. Raises `SettingsError` for one that is not there."""
    if folds is None or folds.strip() == "all":
        return tuple(range(len(names)))
    numbered = any(re.fullmatch(r"(fold_)?\d+", name) for name in names)
    found = set()
    for part in (part.strip() for part in folds.split(",")):
        known = [i for i, name in enumerate(names) if name in (part, f"fold_{part}")]
        if not known and not numbered:
            known = [i for i in range(len(names)) if part == str(i)]
        if not known:
            raise SettingsError(
                f"--folds {brief(folds)}: there is no {brief(part)}; the model has {', '.join(names)}, or say all"
            )
        found.update(known)
    return tuple(sorted(found))


def weighted(weights: Sequence[float], text: str | None) -> tuple[float, ...]:
    """What each network counts: as ``--weights`` says, else as the file does. Raises `SettingsError` where it has not
    as many positive numbers as there are networks."""
    if text is None:
        return tuple(weights)
    given = parse_weights(text)
    if len(given) != len(weights):
        raise SettingsError(
            f"--weights {brief(text)}: it has {len(given)} numbers for {len(weights)} network(s); give one each"
        )
    return given


def parse_weights(text: str) -> tuple[float, ...]:
    """``2,1`` as numbers. Raises `SettingsError` where they are none that a network may count."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(LEAST_WEIGHT <= weight <= MOST_WEIGHT for weight in found):
        raise SettingsError(
            f"--weights {brief(text)}: give a positive number for each network, e.g. 2,1,1, from {LEAST_WEIGHT:g} to "
            f"{MOST_WEIGHT:g}; --folds leaves networks out"
        )
    return found


def common_spec(specs: Sequence[ModelSpec], weights: Sequence[float], names: Sequence[str]) -> ModelSpec:
    """What networks promise together whose answers are averaged. Raises `ModelError` naming what two differ in."""
    first = specs[0]
    for spec, name in zip(specs[1:], names[1:], strict=True):
        for field in ModelSpec.model_fields:
            ours, theirs = getattr(first, field), getattr(spec, field)
            if field not in _MAY_DIFFER and ours != theirs:
                raise ModelError(
                    f"{names[0]} and {name} are not networks of one kind: {field} is {_shown(ours)} and "
                    f"{_shown(theirs)}; run them one by one, or correct their specs"
                )
        if first.classes and spec.classes and first.classes != spec.classes:
            raise ModelError(f"{names[0]} and {name} name other classes; run them one by one, or correct their specs")
        try:
            spec.check_window(first.window)
        except ModelError as error:
            raise ModelError(f"{names[0]} runs windows of {times(first.window)}, and of {name}: {error}") from error
    changes = {
        "classes": next((spec.classes for spec in specs if spec.classes), ()),
        "context": _largest([spec.context for spec in specs]),
        "empty": _mean([spec.empty for spec in specs], weights),
        "flops": _average([spec.flops for spec in specs]),
    }
    if len({(spec.window_min, spec.window_step) for spec in specs}) > 1:  # each takes others: but for this one
        changes |= {"window_min": first.window, "window_step": (0,) * len(first.axes)}
    return first.model_copy(update=changes)


def _shown(value: object) -> str:
    return "not said" if value is None else str(value)


def _largest(radii: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    known = [radius for radius in radii if radius is not None]
    return tuple(map(max, *known)) if len(known) == len(radii) > 1 else (known[0] if len(radii) == 1 else None)


def _mean(values: Sequence[tuple[float, ...] | None], weights: Sequence[float]) -> tuple[float, ...] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    total = sum(weights)
    return tuple(
        sum(w * v for w, v in zip(weights, channel, strict=True)) / total for channel in zip(*known, strict=True)
    )


def _average(flops: Sequence[int | None]) -> int | None:
    known = [count for count in flops if count is not None]
    return round(sum(known) / len(known)) if len(known) == len(flops) else None
