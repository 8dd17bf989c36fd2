"""Where each of several volumes goes: `--out` as a pattern."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Sequence

from unet_engine import endings
from unet_engine.errors import SettingsError
from unet_engine.paths import absolute, inside, is_local, parts, plain, roots_of
from unet_engine.units import brief

FIELDS = {
    "name": "what the volume is called, scan.nii.gz",
    "stem": "the same without its ending, scan",
    "parent": "the folder it lies in",
    "case": "the same without the number of a channel, as nnU-Net has it: CASE of CASE_0000.nii.gz",
    "image": "which image of a plate, collection, TIFF or folder of DICOM, with --image all",
    "number": "its place among the volumes, from 1",
}
"""What a pattern may name in braces."""


def out_of(pattern: str, volume: str, number: int, image: str = "") -> str:
    """The output of one volume, which is the `image` of several, where these are counted. Raises
    `SettingsError` for a pattern that names what there is not."""
    several = parts(plain(volume))
    place = endings.together(several)[0] if len(several) > 1 else several[0]
    file, within = inside((place if is_local(place) else place.partition("?")[0]).rstrip("/"))
    folder, _, name = (file if is_local(file) else file.partition("://")[2]).rpartition("/")
    known = {
        "name": name + (f"-{within.strip('/').replace('/', '-')}" if within else ""),
        "stem": endings.stem(name) + (f"-{within.strip('/').replace('/', '-')}" if within else ""),
        "case": re.sub(r"(?<=.)_0000$", "", endings.stem(name)),
        "parent": folder.rpartition("/")[2] or ("" if folder else os.path.basename(os.getcwd())),  # noqa: PTH109, PTH119
        "image": image.replace("/", "-"),
        "number": str(number),
    }
    text = ""
    for literal, field, form, conversion in _parsed(pattern):
        text += literal
        if field is None:
            continue
        if field not in known or conversion or (form and field != "number"):
            raise SettingsError(f"--out {pattern}: {brief(field)} is nothing it may name; use {_listed()}")
        try:
            text += format(number, form or "") if field == "number" else known[field]
        except ValueError as error:
            raise SettingsError(f"--out {pattern}: {error}; write numbers like {{number:04}}") from error
    return text


def out_of_one(out: str, volume: str) -> str:
    """The output of the only volume of a command: `out` is a pattern where it names any of `FIELDS`; other braces mean
    themselves. Raises `SettingsError` as `out_of` does."""
    named = re.search(rf"(?<!{{){{({'|'.join(FIELDS)})(:[^{{}}]*)?}}(?!}})", out)
    return out_of(out, volume, 1) if named else out


def check_pattern(pattern: str, volumes: int) -> None:
    """Raises `SettingsError` where one place is named for several volumes."""
    if volumes > 1 and not any(field is not None for _, field, _, _ in _parsed(pattern)):
        raise SettingsError(
            f"--out {pattern} is one place for {volumes:,} volumes; name it after each, e.g. "
            f"{pattern.removesuffix('.zarr').rstrip('/')}/{{stem}}.zarr with {_listed()}"
        )


def _parsed(pattern: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise SettingsError(f"--out {pattern}: {error}; write braces that mean themselves twice") from error


def _listed() -> str:
    return ", ".join(f"{{{name}}}" for name in FIELDS)


def check_apart(pairs: Sequence[tuple[str, str]]) -> None:
    """Refuse volumes (input, output) whose results would lie in one place, in one another, or in what another one is
    read from. Raises `SettingsError`."""
    places = [(_comparable(out), True, source, out) for source, out in pairs]
    roots = {_comparable(root): source for source, _ in pairs for root in roots_of(source)}
    places += [(place, False, source, source) for place, source in roots.items()]
    above: list[tuple[tuple[str, ...], bool, str, str]] = []
    for found in sorted(places):
        while above and found[0][: len(above[-1][0])] != above[-1][0]:
            above.pop()
        for other in above:
            if found[1] and other[1]:
                raise SettingsError(
                    f"{other[2]} and {found[2]} would both be written to {other[3]}"
                    f"{'' if other[3] == found[3] else ' and ' + found[3]}; have --out tell them apart, {_listed()}"
                )
            if found[1] or other[1]:
                written, read = (found, other) if found[1] else (other, found)
                raise SettingsError(
                    f"the output {written[3]} of {written[2]} overlaps the input {read[3]}; give another --out"
                )
        above.append(found)


def _comparable(path: str) -> tuple[str, ...]:
    path = plain(path)
    path = os.path.realpath(path) if is_local(path) else absolute(path)
    return tuple(path.rstrip("/").split("/"))
