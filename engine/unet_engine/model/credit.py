"""Whose network a model file holds, and what it was compared with when it was imported: carried from the source to the
file, and from there to every output. It does not name a run, since no byte of a result depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from unet_engine.model import attachments

KEY = "credit"
"""Of the attachment, see `unet_engine.model.attachments`."""


class Certificate(BaseModel):
    """A comparison of the model file with what it was made of, on the same input, all in float32."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    against: str
    """What it was compared with, for people."""
    shape: tuple[int, ...]
    """Of what was compared: (channels, [z,] y, x)."""
    equal_labels: float | None = None
    """Fraction of voxels with the same label; None where outputs are no classes, or the source gives one label
    alone."""
    dice: dict[str, float] = {}
    """By name of a class that is present on either side."""
    largest_difference: float
    """Of a value, relative to the largest absolute value."""
    mean_difference: float
    """As that, over all values."""
    versions: dict[str, str] = {}
    """Of the libraries that took part."""

    def __str__(self) -> str:
        labels = "" if self.equal_labels is None else f"{self.equal_labels:.6f} of labels equal, "
        dice = f"Dice {min(self.dice.values()):.6f} or more, " if self.dice else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.against}: {labels}{dice}values apart by {self.largest_difference:.1e} at most, "
            f"{self.mean_difference:.1e} on average" + (f" ({versions})" if versions else "")
        )


class Credit(BaseModel):
    """Who made a network, under which terms, and what of its source the model file does not keep."""

    model_config = ConfigDict(defer_build=True, frozen=True)

    source: str
    """Kind and name of what was imported, e.g. "bioimage.io 0.5: Membrane 2D"."""
    sha256: str = ""
    """Of the source's content."""
    version: str = ""
    licence: str = ""
    authors: tuple[str, ...] = ()
    citation: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """What the source says and the model file does not do, each with its reason."""
    inference: dict[str, str] = {}
    """Settings of a run that puts windows together as the source does."""
    certificate: tuple[Certificate, ...] = ()

    def facts(self) -> dict[str, Any]:
        """As JSON values, without what is not known."""
        return {key: value for key, value in self.model_dump(mode="json").items() if value}

    def lines(self) -> dict[str, str]:
        """For people: what is known, by its name."""
        said = {
            "source": self.source,
            "version": self.version,
            "licence": self.licence,
            "authors": ", ".join(self.authors),
            "citation": "; ".join(self.citation),
            "left_out": "; ".join(self.left_out),
            "blends_as": " ".join(f"--{name} {value}" for name, value in self.inference.items()),
            "certificate": "; ".join(map(str, self.certificate)),
        }
        return {key: value for key, value in said.items() if value}


def read(path: Path) -> Credit | None:
    """The credit in the ONNX file at `path`; None where there is none, or none of ours."""
    text = attachments.read(path, KEY)
    try:
        return Credit.model_validate_json(text) if text else None
    except ValidationError:
        return None


def put(path: Path, credit: Credit) -> None:
    """Write `credit` into the ONNX file at `path`; what else is attached stays. Raises `OutputError` where it cannot be
    written."""
    kept = {found.key: attachments.read(path, found.key) for found in attachments.attachments(path)}
    values = {key: value for key, value in kept.items() if value is not None}
    attachments.attach(path, path, values | {KEY: credit.model_dump_json(exclude_defaults=True).encode()})
