"""The sources of models: a new one is a file, and a line here."""

from __future__ import annotations

from pathlib import Path

from unet_engine.errors import ModelError
from unet_export.importers.base import Importer
from unet_export.importers.bioimageio.importer import BioimageIO
from unet_export.importers.checkpoints.importer import Checkpoint, SmpFolder
from unet_export.importers.foreign import Foreign
from unet_export.importers.monai.importer import MonaiBundle
from unet_export.importers.nnunet.importer import NnUNet

IMPORTERS: tuple[Importer, ...] = (BioimageIO(), MonaiBundle(), NnUNet(), SmpFolder(), Checkpoint(), Foreign())
"""In the order in which they are asked."""


def recognised(path: str | Path) -> Importer | None:
    """Which source `path` is; None where it is none that is known."""
    path = Path(path)
    if not (path.is_file() or path.is_dir()):
        return None
    return next((importer for importer in IMPORTERS if importer.recognises(path)), None)


def importer_of(path: str | Path) -> Importer:
    """Which source `path` is. Raises `ModelError` where it is missing, or none that is known."""
    if not Path(path).exists():
        raise ModelError(f"{path} does not exist; give a folder or file of: {names()}")
    found = recognised(path)
    if found is None:
        raise ModelError(f"{path} is no model of a kind that is imported: {names()}; see unet-engine import --list")
    return found


def names() -> str:
    return ", ".join(importer.name for importer in IMPORTERS)
