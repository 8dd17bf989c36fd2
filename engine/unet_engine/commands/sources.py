"""A model of another tool wherever a model file is asked for: it is imported once, into the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from unet_engine.settings.settings import Settings


def _tell(line: str) -> None:
    click.echo(line, err=True)


def is_source(path: str | None) -> bool:
    """Whether `path` may be a source rather than a model file: it is there, and not called like one."""
    from unet_engine.model.file import is_model
    from unet_engine.paths import is_local

    return path is not None and path != "" and not is_model(path) and is_local(path) and Path(path).exists()


def model_of(
    path: str,
    tell: Callable[[str], None] = _tell,
    *,
    trust: bool = False,
    head: str | None = None,
    folds: str | None = None,
) -> str:
    """`path`, where it is a model file or nothing that is known; else the file that its source was imported to. What
    was done is told. `folds`: which networks of the source.

    Raises what importing it raises."""
    if not is_source(path):
        return path
    from unet_export.importers.sources import recognised

    importer = recognised(path)
    if importer is None:
        return path
    from unet_export.importers.base import Wanted
    from unet_export.importers.cached import model_of as cached

    return str(cached(importer, Wanted(checkpoint=path, out="", trust=trust, head=head, folds=folds), tell))


def with_model(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """`settings` with the model files of the sources that they name; as they are where they name model files. What can
    be refused before anything is imported is."""
    from unet_engine.paths import several

    parts = several(settings.model) if settings.model else []
    if settings.model is None or not any(map(is_source, parts)):
        return settings
    from unet_engine.prepare.survey import refuse_early

    refuse_early(settings)
    path = ",".join(model_of(part, tell, trust=bool(settings.trust), head=settings.head) for part in parts)
    return settings if path == settings.model else settings.model_copy(update={"model": path, "head": None})
