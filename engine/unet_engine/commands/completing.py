"""What a shell offers behind an option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import click

WORDS = {
    "devices": ("cpu", "cuda:0"),
    "device": ("auto", "cpu", "cuda"),
    "durable": ("yes", "no"),
    "folds": ("all",),
    "mirror_axes": ("none",),
    "nodata": ("none",),
    "normalize": ("none", "zscore", "minmax", "percentile:1,99", "range:", "fixed:mean=", "imagenet"),
    "outside": ("keep",),
    "tiling": ("auto",),
    "image": ("all",),
    "timepoint": ("all",),
    "tta": ("none", "mirror", "turns", "mirror+turns"),
}
"""By the name of an option that takes other text as well, words that mean something there."""


def files(_ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[Any]:
    """Has a shell complete names of files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def words(_ctx: click.Context, option: click.Parameter, incomplete: str) -> list[Any]:
    """Has a shell complete what an option takes: of a setting the words that its type lists, and those of `WORDS`."""
    from click.shell_completion import CompletionItem

    name = str(option.name)
    offered, first, last = list(_meaning(name)), "", incomplete
    if str(option.metavar).startswith("A,B"):
        before, comma, last = incomplete.rpartition(",")
        offered, first = [word for word in offered if word not in ("auto", *before.split(","))], before + comma
    return [CompletionItem(first + word) for word in offered if word.startswith(last)]


def _meaning(name: str) -> Iterator[str]:
    from unet_engine.backends.libraries import LIBRARIES
    from unet_engine.settings.settings import Settings

    yield from WORDS.get(name, ())
    if name == "backend":
        yield from (library.name for library in LIBRARIES if library.modules)  # the one without stands for none
    if hint := get_type_hints(Settings).get(name):
        yield from (word for word in _listed(hint) if word not in WORDS.get(name, ()))


def _listed(hint: Any) -> Iterator[str]:
    """The words of all ``Literal`` in a type."""
    for one in get_args(hint):
        if isinstance(one, str):
            yield one
        else:
            yield from _listed(one)
