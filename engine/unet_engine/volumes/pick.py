"""Which part of what a path leads to is the volume, as the user says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_engine.errors import InputError
from unet_engine.units import brief


@dataclass(frozen=True)
class Pick:
    timepoint: int | None = None
    """Counted from 0; None: the only one."""
    channels: tuple[str | int, ...] | None = None
    """Names, or numbers from 0, in the order in which the network takes them; a number as text is a name first. None:
    all, as they are stored, but for alpha."""

    def time(self, path: str, count: int) -> int:
        """Which of `count` time points. Raises `InputError` where that is none, or nothing says it."""
        if self.timepoint is None and count > 1:
            raise InputError(
                f"{path} has {count} time points; name one, e.g. --timepoint 0, or say with --axes what the axis is"
            )
        if (self.timepoint or 0) >= count:
            raise InputError(f"--timepoint {self.timepoint}: {path} has {count}; count them from 0")
        return self.timepoint or 0

    def numbers(self, path: str, names: Sequence[str], count: int) -> tuple[int, ...] | None:
        """Which of `count` channels, called `names` as far as that is known. Raises `InputError` for what is none, or
        no single one."""
        if self.channels is None:
            return None
        found = []
        for text in self.channels:
            if isinstance(text, int):
                found.append(text)
                continue
            called = [i for i, name in enumerate(names) if name == text]
            called = called or [i for i, name in enumerate(names) if name.lower() == text.lower()]
            if not called and text.isascii() and text.isdigit() and int(text[:9]) < count:
                called = [int(text)]
            if len(called) != 1:
                known = (f"0 to {count - 1}" if count > 1 else "0 alone") + (
                    f", {', '.join(map(brief, names[:20]))}" if names else ""
                )
                why = "several are called so" if called else "there is none"
                raise InputError(f"--input-channels {brief(text)}: {why} in {path}; it has {known}: name of these")
            found.append(called[0])
        return tuple(found)


ALL = Pick()


@dataclass(frozen=True)
class Meant:
    """What of a path is meant, as options say it: an image of several, a level, a time point, channels."""

    image: str | None = None
    level: int | None = None
    timepoint: int | None = None
    input_channels: str | None = None

    @property
    def pick(self) -> Pick:
        given = self.input_channels
        return Pick(self.timepoint, tuple(part.strip() for part in given.split(",")) if given else None)

    @property
    def options(self) -> tuple[str, ...]:
        """As they are given on the command line."""
        said = {"--image": self.image, "--level": self.level, "--timepoint": self.timepoint}
        said["--input-channels"] = self.input_channels
        return tuple(text for name, value in said.items() if value is not None for text in (name, str(value)))


ANYTHING = Meant()
