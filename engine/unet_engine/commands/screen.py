"""What is printed for people, and the one place that prints it: text as it is.

Paths, names of models and classes, and what libraries say may hold brackets and colons, which rich would take for
markup and pictures. So no console here knows either; what is bold or coloured is told by a style.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from unet_engine.commands.log import Level, Log
from unet_engine.units import printable


class Screen(Console):
    """A console of ours, on stdout or stderr; see `stdout` and `stderr`."""

    kept: Log | None = None
    """Takes all that is said, too."""
    silent = False
    """Whether nothing is shown, but errors."""

    def say(self, text: str, heading: str = "", style: str = "bold", level: Level = "info") -> None:
        """One line that is never folded, after `heading` in `style`."""
        if self.kept:
            self.kept.write(level, heading + text)
        if self.silent:
            return
        self.print(Text.assemble((heading, style), printable(text)), soft_wrap=True)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Names and what belongs to them, one pair a line."""
        width = max(len(name) for name, _ in pairs)
        for name, text in pairs:
            self.say(f"  {text}", f"{name:>{width}}")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self.say(f": {text}", "note", "yellow", "note")


def stdout() -> Screen:
    return Screen(markup=False, emoji=False, highlight=False)


def stderr() -> Screen:
    return Screen(markup=False, emoji=False, highlight=False, stderr=True, file=sys.stderr)
