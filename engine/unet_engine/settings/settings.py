"""What a user can ask for: the same names on the command line, in ``unet-engine.toml`` and in Python. The fields are those
of `unet_engine.settings.fields`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PrivateAttr, ValidationError

from unet_engine.errors import SettingsError
from unet_engine.paths import plain
from unet_engine.redaction import hide, hide_in_url
from unet_engine.settings.checks import check
from unet_engine.settings.fields import Fields
from unet_engine.settings.files import SettingsFile, settings_files
from unet_engine.settings.sources import Sources, variables
from unet_engine.settings.text import parse_tiling, parse_values


class Settings(Fields):
    """One run. Everything but `input` has a default; `model` may come from a ``unet-engine.toml``."""

    _notes: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken from which settings file, as people are told."""
        return self._notes

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """Settings from keywords; what those leave open from the environment (`UNET_ENGINE_<SETTING>`), then from
        settings files: the one in the current folder, then the one beside the input, then the user's.

        Raises `SettingsError` naming the option that makes no sense, or that a file beside the input may not set.
        """
        given = {key: value for key, value in given.items() if value is not None}
        around = {key: value for key, value in from_environment().items() if key not in given}
        given = {**around, **given}
        files: dict[str, SettingsFile] = {}
        for file in settings_files(plain(str(given.get("input", "")))):
            files |= {key: file for key in file.values if key not in given and key not in files}
        sources = Sources(around, files)
        try:
            settings = cls.model_validate({**{key: file.values[key] for key, file in files.items()}, **given})
        except ValidationError as error:
            raise SettingsError(sources.explained(error)) from error
        hide(settings.dashboard_token)
        hide_in_url(settings.input, settings.out, settings.mask, settings.truth, settings.scheduler)
        try:
            check(settings)
        except SettingsError as error:
            raise sources.told(error) from error
        for key, file in files.items():
            file.check(key)
        if settings.part:  # other parts may have begun the output
            settings = settings.model_copy(update={"resume": True})
        if settings.tiling and settings.tiling != "auto":
            window, _, blend = parse_tiling(settings.tiling)
            settings = settings.model_copy(update={"window": window, "blend": blend})
        settings._notes = sources.notes(cls.model_fields)
        return settings

    @property
    def padding_mode(self) -> Literal["reflect", "constant", "edge"]:
        return self.padding or ("constant" if self.blend in ("monai", "nnunet") else "reflect")

    @property
    def nodata_values(self) -> tuple[float, ...]:
        """Values of voxels that were not measured, as far as the settings name them."""
        return () if self.nodata in (None, "none") else parse_values(str(self.nodata))


def from_environment() -> dict[str, str]:
    """What the environment says of settings, by their names. An empty value says nothing."""
    return variables(Settings.model_fields)
