"""What a run reads of its input, and where it writes: never into what it reads."""

from __future__ import annotations

from unet_engine.errors import SettingsError
from unet_engine.output.header import ARRAY
from unet_engine.paths import parts, roots_of
from unet_engine.settings.files import AUTO_PROFILE
from unet_engine.settings.settings import Settings
from unet_engine.storage import stores
from unet_engine.volumes.pick import Pick


def pick_of(settings: Settings) -> Pick:
    """Which time point and channels of the volume."""
    given = settings.input_channels
    if isinstance(settings.timepoint, str):
        raise SettingsError(
            f"--timepoint {settings.timepoint}: several are run by unet-engine run, of one volume; name one here"
        )
    return Pick(settings.timepoint, tuple(part.strip() for part in given.split(",")) if given else None)


def named_of(settings: Settings, place: str) -> str:
    """What is read, as it was named; several volumes that are one, at `place`, by the names of all."""
    return place if len(parts(place)) > 1 else settings.input


def keep_apart(settings: Settings, place: str, out: str) -> None:
    """Raise `SettingsError` where the output `out`, or a profile, would overlap what is read: the volume at `place`, and
    what the settings name."""
    top = roots_of(named_of(settings, place))
    read = [settings.mask, settings.truth] if settings.into else [*top, settings.mask, settings.truth]
    inputs = [one for one in read if one]
    for one in inputs:
        # an output from elsewhere may have a link for its array
        if stores.nested(out, one) or stores.within(f"{out.rstrip('/')}/{ARRAY}", one):
            raise SettingsError(
                f"--out {out} overlaps the input {one}; choose a folder of its own"
                + (", or put labels into an OME-Zarr image with --into" if one in top else "")
            )
    if settings.profile and settings.profile != AUTO_PROFILE:
        keep_out("--profile", settings.profile, (*inputs, out))


def keep_out(option: str, file: str, places: tuple[str, ...]) -> None:
    """Raise `SettingsError` where `file`, which `option` asks for, would lie in one of `places`."""
    for place in places:
        if stores.within(file, place):
            raise SettingsError(f"{option} {file} lies in {place}, which holds voxels; choose another place")
