"""What is printed for people, and the one place that prints it: text as it is.

Paths, names of models and classes, and what libraries say may hold brackets and colons, which rich would take for
markup and pictures. So no console here knows either; what is bold or coloured is told by a style. Where nobody looks,
in files and pipes, text needs no rich, whose import is 2 % of a run's start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from unet_engine.commands.log import Level, Log
from unet_engine.units import printable

if TYPE_CHECKING:
    from rich.console import Console

_ASKED = ("FORCE_COLOR", "TTY_COMPATIBLE")
"""Variables that say what a stream is, whatever it is."""


class Screen:
    """On stdout or stderr; see `stdout` and `stderr`."""

    kept: Log | None = None
    """Takes all that is said, too."""
    silent = False
    """Whether nothing is shown, but errors."""

    def __init__(self, file: IO[str] | None = None) -> None:
        """file: None is stdout, whatever that is then"""
        self._file = file

    @cached_property
    def rich(self) -> Console:
        """What draws tables and bars there."""
        from rich.console import Console

        return Console(markup=False, emoji=False, highlight=False, file=self._file, stderr=self._file is not None)

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks."""
        return not self._is_plain and self.rich.is_terminal

    @property
    def _is_plain(self) -> bool:
        file = self._file or sys.stdout
        asked = "rich" in vars(self) or "IPython" in sys.modules or any(name in os.environ for name in _ASKED)
        return not (asked or file is None or file.isatty())

    def say(self, text: str, heading: str = "", style: str = "bold", level: Level = "info") -> None:
        """One line that is never folded, after `heading` in `style`."""
        if self.kept:
            self.kept.write(level, heading + text)
        if self.silent:
            return
        if self._is_plain:
            file = self._file or sys.stdout
            file.write(f"{heading}{printable(text)}".expandtabs() + "\n")  # at once: threads speak
            file.flush()
            return
        from rich.text import Text

        self.rich.print(Text.assemble((heading, style), printable(text)), soft_wrap=True)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Names and what belongs to them, one pair a line."""
        width = max(len(name) for name, _ in pairs)
        for name, text in pairs:
            self.say(f"  {text}", f"{name:>{width}}")

    def note(self, text: str) -> None:
        """Something that the user should know."""
        self.say(f": {text}", "note", "yellow", "note")

    def print(self, *shown: Any) -> None:
        """A table, or an empty line."""
        self.rich.print(*shown)


def stdout() -> Screen:
    return Screen()


def stderr() -> Screen:
    return Screen(sys.stderr)
