"""Which labels of which image a run with ``--into`` makes."""

from __future__ import annotations

import os
import re

from unet_engine.errors import SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.paths import is_local, parts, plain
from unet_engine.postprocess.into_store import LABELS, has_room_beside
from unet_engine.settings.fields import AUTO
from unet_engine.settings.settings import Settings
from unet_engine.storage import archives, stores
from unet_engine.volumes.collection import image_of, levels_in, version_of

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")


def named_into(settings: Settings, spec: ModelSpec, volume: str) -> str:
    """Where the labels go of the image that `volume` is, or lies in: ``IMAGE/labels/NAME``. `Settings.into` is that,
    the name, the image, what that lies in, or nothing, which is called after the model. Raises `SettingsError` where
    that makes no sense, or is not safe, and `InputError` where levels of the image do not."""
    given = str(settings.into)
    if settings.output != "labels":
        raise SettingsError(
            f"--into puts labels into an image, not {settings.output}; leave --output out, or use --out"
        )
    if settings.grid == "model":
        raise SettingsError(
            "--into: labels lie on the grid of their image, and --grid model is another; leave that out"
        )
    image = image_of(volume)
    if image is None and len(parts(volume)) > 1:
        raise SettingsError(
            f"--into: the channels of {settings.input} are images of their own, and labels go into one; use --out NAME.zarr"
        )
    if image is None:
        raise SettingsError(f"--into: {settings.input} is no OME-Zarr image; use --out NAME.zarr")
    if archives.cut(image) is not None or image.lower().startswith(("http://", "https://")):
        raise SettingsError(f"--into: {image} can be read, not written to; use --out NAME.zarr")
    if not is_local(image) and not has_room_beside(image):
        raise SettingsError(
            f"--into: {image} is a whole bucket, and labels are made beside their image; use --out NAME.zarr"
        )
    if version_of(image) not in ("0.4", "0.5"):
        raise SettingsError(
            f"--into: {image} is OME-Zarr {version_of(image)}, and labels are written as 0.4 or 0.5; use --out NAME.zarr"
        )
    levels_in(image)  # labels get levels like these once they are complete: what is wrong with them is said now
    name = _usual(spec.name)
    if given != AUTO and not _is_path(given):
        name = given
    elif given != AUTO:
        path = plain(given).rstrip("/")
        whole, slash, rest = path.rpartition(f"/{LABELS}/")
        if slash and stores.within(image, whole) and stores.within(whole, image):
            name = rest
        elif not stores.within(image, path):
            raise SettingsError(
                f"--into {given}: the input is of the image {image}, which does not lie there; give that image, or a name"
            )
    if not _NAME.fullmatch(name) or name.startswith("__"):
        raise SettingsError(
            f"--into {given}: labels cannot be called {name!r}; use letters, digits, and . _ - between them"
        )
    return f"{image}/{LABELS}/{name}"


def _is_path(given: str) -> bool:
    return "/" in given or given.endswith(".zarr") or os.path.lexists(given)


def _usual(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "labels"
