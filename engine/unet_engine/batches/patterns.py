"""Globs that name several volumes at once, whose channels are one volume: ``*_B02.tif+*_B03.tif``."""

from __future__ import annotations

import re
from collections.abc import Callable

from unet_engine.errors import InputError

_WILD = re.compile(r"\*\*/|\*+|\?|\[!?\]?[^\]]*\]")


def together(pattern: str, called: Callable[[str], list[str]]) -> list[str]:
    """For each volume that the first of the patterns stands for, its path and those of the others in which the wildcards
    stand for the same text. What has no wildcard belongs to all of them. `called`: what there is of a name, sorted.

    Raises `InputError` where one of them is missing, or nothing is called so."""
    pieces = _pieces(pattern, called)
    found = [{_stands_for(piece, path): path for path in called(piece)} for piece in pieces]
    for piece, paths in zip(pieces, found, strict=True):
        if not paths:
            raise InputError(f"--in {piece}: nothing there is called so; check the pattern, and quote it in a shell")
    first = next((paths for paths in found if () not in paths), found[0])
    for piece, paths in zip(pieces, found, strict=True):
        if () in paths:
            continue
        odd = next((key for key in [*first, *paths] if (key in first) != (key in paths)), None)
        if odd is not None:
            there, missing = (first[odd], piece) if odd in first else (paths[odd], pieces[found.index(first)])
            raise InputError(
                f"--in {pattern}: {there} has nothing of {missing} beside it, where wildcards stand for the same; restore "
                "that, or name fewer with the pattern"
            )
    return ["+".join(paths.get((), paths.get(key, "")) for paths in found) for key in first]


def _pieces(pattern: str, called: Callable[[str], list[str]]) -> list[str]:
    """The patterns that `pattern` joins: of those with a plus in them, the longest that anything is called by."""
    words, found = pattern.split("+"), []
    while words:
        longer = range(len(words), 1, -1)
        count = next((n for n in longer if "" not in words[:n] and called("+".join(words[:n]))), 1)
        found.append("+".join(words[:count]))
        words = words[count:]
    return found


def _stands_for(pattern: str, path: str) -> tuple[str, ...]:
    """What the wildcards of `pattern` stand for in `path`; nothing where it is that name."""
    if path == pattern:
        return ()
    text, at = "", 0
    for wild in _WILD.finditer(pattern):
        text += re.escape(pattern[at : wild.start()]) + f"({_expression(wild[0])})"
        at = wild.end()
    match = re.fullmatch(text + re.escape(pattern[at:]), path, re.DOTALL)
    return match.groups("") if match else (path,)


def _expression(wild: str) -> str:
    if wild == "**/":
        return "(?:.*/)?"
    if wild.startswith("["):
        return "[^/]"
    return "[^/]" if wild == "?" else "[^/]*"
