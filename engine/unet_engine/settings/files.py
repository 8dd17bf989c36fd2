"""Settings files: where they lie, and what each may say.

A file beside the input comes with the data, from whoever made them. It may say what data and model are like; what runs
code, replaces, listens or writes elsewhere is for the user to say.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_engine.errors import SettingsError
from unet_engine.paths import is_local, parts, root_of, several, unusable
from unet_engine.text_files import NotReadable, read_toml

CONFIG = "unet-engine.toml"
ENVIRONMENT = "UNET_ENGINE_"
"""What variables of the environment that say settings begin with."""

AUTO_PROFILE = "auto"

DESCRIPTIVE = ("model", "axes", "normalize", "nodata", "activation", "channels", "head", "window", "overlap")
"""Keys that a file beside the input may have: they describe data and model."""
_RISKY = (
    "overwrite",
    "cluster",
    "scheduler",
    "protocol",
    "dashboard",
    "dashboard_token",
    "tls_ca",
    "tls_cert",
    "tls_key",
)
"""Keys that the file in the current folder may not have where it lies with the data: what one finds in a folder of
data, one did not write."""
_PATHS = ("model", "mask", "truth", "out", "profile", "cluster", "tls_ca", "tls_cert", "tls_key")
"""Keys whose relative paths start at the file."""


@dataclass(frozen=True)
class SettingsFile:
    """A file that was found, and what it says. Paths in `values` are absolute."""

    path: Path
    values: Mapping[str, Any]
    beside: bool = False
    """Whether it lies with the data."""
    here: bool = False
    """Whether it lies in the current folder."""

    def check(self, key: str) -> None:
        """Raise `SettingsError` where `key` is not this file's to say."""
        if key == "trust":
            raise SettingsError(f"{self.path}: trust is given by hand alone; use --trust on the command line")
        if not self.beside:
            return
        if key not in DESCRIPTIVE and (key in _RISKY or not self.here):
            raise SettingsError(
                f"{self.path}: {key} may not be set beside the input, only {', '.join(DESCRIPTIVE)}; "
                f"give --{key.replace('_', '-')} on the command line, or write it to {_elsewhere(self)}"
            )
        value = self.values[key]
        if self.here and key == "model":  # what carries code is asked about wherever it lies
            return
        if key in _PATHS and not all(_inside(place, self.path.parent) for place in _places(key, value)):
            raise SettingsError(
                f"{self.path}: {key} = {value!r} lies outside the folder of the data; "
                f"give --{key} on the command line, or a path inside that folder"
            )


def _places(key: str, value: Any) -> list[str]:
    """The paths that are the value of a key: one, or those of several models."""
    if not isinstance(value, str) or value == AUTO_PROFILE:
        return []
    return several(value) if key == "model" else [value]


def _elsewhere(file: SettingsFile) -> str:
    """Where the user may write what a file beside the input may not say."""
    own = str((user_folder() or Path("~/.config/unet-engine")) / CONFIG)
    return f"{own}, or to {CONFIG} in another folder and run there" if file.here else f"{CONFIG} here, or {own}"


def _inside(path: str, folder: Path) -> bool:
    """Whether `path` leads into `folder`, through whatever links."""
    return is_local(path) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def user_folder() -> Path | None:
    """The folder of the user's own settings: ``~/.config/unet-engine``, or where ``XDG_CONFIG_HOME`` says. None where
    the user has no home."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):  # noqa: PTH117  # pathlib raises where there is no home
        base = os.path.expanduser("~/.config")  # noqa: PTH111
    return Path(base, "unet-engine") if os.path.isabs(base) else None  # noqa: PTH117


def settings_files(volume: str) -> tuple[SettingsFile, ...]:
    """Those in the current folder, beside the input `volume` and in the user's folder, as far as present, in the order
    in which they win over one another. Raises `SettingsError` where one is not readable."""
    data = _data(volume)
    found: list[SettingsFile] = []
    for place, here in ((Path.cwd(), True), (data.parent if data else None, False), (user_folder(), False)):
        path = place / CONFIG if place else None
        # a FIFO or a device is there as well, and is refused rather than passed by
        if path is None or not path.exists() or path.is_dir() or any(path.samefile(file.path) for file in found):
            continue
        found.append(SettingsFile(path, _read(path), data is not None and _with_data(path, data), here))
    return tuple(found)


def _data(volume: str) -> Path | None:
    """What the input lies in, of which a settings file is beside: the outermost folder called .zarr, else itself."""
    if not volume or unusable(volume) or not is_local(first := parts(volume)[0]):
        return None
    return Path(root_of(first))


def _with_data(file: Path, data: Path) -> bool:
    """Whether `file` lies beside `data`, or in it."""
    folder, top = Path(os.path.realpath(file.parent)), Path(os.path.realpath(data.parent))
    return folder == top or folder.is_relative_to(top / data.name) or folder.is_relative_to(os.path.realpath(data))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_toml(path)
    except NotReadable as error:
        raise SettingsError(f"{path} {error}") from error

    def placed(place: str) -> str:
        return str(path.parent / place) if place and is_local(place) and place != AUTO_PROFILE else place

    model = values.get("model")
    if isinstance(model, list) and model and all(isinstance(part, str) for part in model):
        values["model"] = ",".join(map(placed, model))
    elif isinstance(model, str):  # of several models each starts at the file
        whole = placed(model)
        values["model"] = ",".join(map(placed, several(model))) if several(whole) != [whole] else whole
    for key in _PATHS:
        if key != "model" and isinstance(value := values.get(key), str):
            values[key] = placed(value)
    return values
