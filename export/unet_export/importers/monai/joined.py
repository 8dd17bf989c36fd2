"""What a configuration says with what other files say put into it: ``%configs/common.yaml::network``, and with relative
ids (``@##name``) as those from the root. As `monai.bundle.ConfigParser` does it, of which macros are not macros again."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_RELATIVE = re.compile(r"[@%](?:::|#)+")
_OF_FILE = re.compile(r"%(.*\.(?:json|yaml|yml))(?:(?:::|#)(.*))?", re.IGNORECASE)
_DEEPEST = 60


def joined(said: Mapping[str, Any], load: Callable[[str], Mapping[str, Any]]) -> dict[str, Any]:
    """`said`, where no value is in another file or relative any more. load: what the file of a name says, which raises
    what it likes. Raises `KeyError` with the text of what leads nowhere, and `RecursionError` where it is too deep."""

    def of(value: Any, place: tuple[str, ...]) -> Any:
        if len(place) > _DEEPEST:
            raise RecursionError
        if isinstance(value, Mapping):
            return {key: of(inner, (*place, str(key))) for key, inner in value.items()}
        if isinstance(value, list):
            return [of(inner, (*place, str(i))) for i, inner in enumerate(value)]
        if not isinstance(value, str):
            return value
        value = _RELATIVE.sub(lambda found: _from_root(found[0], place), value)
        file = _OF_FILE.fullmatch(value)
        return _inside(load(file[1]), file[2], value) if file else value

    return {key: of(value, (str(key),)) for key, value in said.items()}


def _from_root(prefix: str, place: tuple[str, ...]) -> str:
    """``@##`` at `place` as the beginning of an id from the root."""
    up = len(re.findall("::|#", prefix))
    if up > len(place):
        raise KeyError(prefix)
    above = place[:-up]
    return prefix[0] + "".join(f"{name}::" for name in above)


def _inside(said: Any, ids: str | None, text: str) -> Any:
    for name in re.split("::|#", ids) if ids else ():
        try:
            said = said[int(name)] if isinstance(said, list) else said[name]
        except (KeyError, IndexError, ValueError, TypeError):
            raise KeyError(text) from None
    return said
