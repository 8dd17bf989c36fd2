"""What a kind of fault is, and the words that the tables of faults are written in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from support.volumes import fake_model, make_volume

Make = Callable[[Path], None]
"""Spoils the scene in this folder, which is the current one."""


@dataclass(frozen=True)
class Fault:
    """One kind. `says` are words that the last line on stderr must hold: what is wrong and where."""

    name: str
    command: tuple[str, ...]
    code: int
    says: tuple[str, ...] = ()
    make: Make | None = None
    leaves: tuple[str, ...] = ()
    """What may be there afterwards that was not before."""
    changes: tuple[str, ...] = ()
    """What may be other afterwards: the name of something in the scene."""
    spoken: int | None = 1
    """Lines on stderr; None where notes or the plan come before the error."""
    shell: str = ""
    """How a process of its own is started, for what only such a one can be asked: ``{}`` stands for the command."""
    needs: tuple[str, ...] = ()
    """Outputs that the scene must hold."""
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False
    """Whether it takes seconds: only tried with all others."""

    @property
    def alone(self) -> bool:
        """Whether only a process of its own can be asked for it."""
        return bool(self.shell or self.environment)


# --- commands ---


def run(*flags: str, **options: object) -> tuple[str, ...]:
    """``run`` on the scene's volume with its model; options given replace these, None leaves one out."""
    return _command("run", flags, {"in": "scan.zarr", "model": "id.fake.toml", "out": "out.zarr", **options})


def plan(*flags: str, **options: object) -> tuple[str, ...]:
    return _command("plan", flags, {"in": "scan.zarr", "model": "id.fake.toml", **options})


def quantize(*flags: str, **options: object) -> tuple[str, ...]:
    return ("quantize", "net.onnx", *_command("", flags, {"calibrate": "scan.zarr", **options})[1:])


def bench(*flags: str, **options: object) -> tuple[str, ...]:
    return _command("bench", flags, {"in": "scan.zarr", "model": "net.onnx", "seconds": 20, **options})


def export(*flags: str, **options: object) -> tuple[str, ...]:
    return ("export", "net.onnx", *_command("", flags, {"out": "other.onnx", **options})[1:])


def _command(name: str, flags: tuple[str, ...], options: dict[str, object]) -> tuple[str, ...]:
    given = (f"--{key.replace('_', '-')}={value}" for key, value in options.items() if value is not None)
    return (name, *flags, *given)


# --- how things are spoiled ---


def both(*makes: Make) -> Make:
    def make(here: Path) -> None:
        for one in makes:
            one(here)

    return make


def file(name: str, content: str | bytes = b"") -> Make:
    def make(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def folder(name: str) -> Make:
    return lambda here: (here / name).mkdir(parents=True)


def fifo(name: str) -> Make:
    """A file that whoever opens it waits at for ever."""

    def make(here: Path) -> None:
        gone(name)(here)
        os.mkfifo(here / name)

    return make


def gone(name: str) -> Make:
    def make(here: Path) -> None:
        if (here / name).is_dir():
            shutil.rmtree(here / name)
        else:
            (here / name).unlink(missing_ok=True)

    return make


def link(name: str, target: str) -> Make:
    return lambda here: (here / name).symlink_to(target)


def cut(name: str, part: float = 0.5) -> Make:
    """A file that breaks off."""

    def make(here: Path) -> None:
        whole = (here / name).read_bytes()
        (here / name).write_bytes(whole[: int(len(whole) * part)])

    return make


def metadata(name: str, **changed: object) -> Make:
    """Keys of a JSON file changed; `...` takes one away. A key with dots in it lies deeper: ``attributes.ome``."""

    def make(here: Path) -> None:
        content = json.loads((here / name).read_text())
        for key, value in changed.items():
            *path, last = key.split("__")
            inside = content
            for step in path:
                inside = inside.setdefault(step, {})
            if value is ...:
                inside.pop(last, None)
            else:
                inside[last] = value
        (here / name).write_text(json.dumps(content))

    return make


def volume(name: str, array: object = None, **options: object) -> Make:
    """A volume, of zeros where no `array` is given."""
    return lambda here: (
        make_volume(here / name, np.zeros((8, 8, 8), "u1") if array is None else array, **options),
        None,
    )[1]


def model(name: str, **spec: object) -> Make:
    """The identity network ``NAME.fake.toml`` with another spec."""
    return lambda here: (fake_model(here, name=name, **spec), None)[1]
