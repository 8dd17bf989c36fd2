"""Showing volumes: from paths to an open viewer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_engine.errors import InputError, SettingsError
from unet_engine.paths import absolute, plain
from unet_engine.units import Tell
from unet_engine.viewing import tables
from unet_engine.viewing.desk import Desk, neuroglancer_module
from unet_engine.viewing.panes import Kind, Pane, misplaced, pane_of
from unet_engine.volumes.pick import ALL, Pick


@dataclass(frozen=True)
class Wish:
    """What is to be shown."""

    paths: tuple[str, ...]
    """The first one may be what the model is run on."""
    kinds: dict[str, Kind] = field(default_factory=dict)
    """Of paths whose kind the user says."""
    table: str | None = None
    """A table of the objects of the last pane of labels."""
    axes: str | None = None
    """These and the next two are of the first path."""
    image: str | None = None
    pick: Pick = ALL
    port: int = 0


Opened = Callable[[dict[str, Any]], None]
"""Told of the viewer once it is open: `Desk.facts`, and ``objects``, the URL of the list of objects where there is
one."""


def panes_of(wish: Wish, tell: Tell) -> list[Pane]:
    """Raises `InputError` for what cannot be shown."""
    for path in wish.kinds:
        if path not in wish.paths:
            raise SettingsError(f"{path} is not among what is shown; name it as a PATH, too")
    found: list[Pane] = []
    for number, path in enumerate(wish.paths):
        own = {"axes": wish.axes, "image": wish.image, "pick": wish.pick} if number == 0 else {}
        pane = pane_of(path, kind=wish.kinds.get(path), **own)  # type: ignore[arg-type]
        for note in pane.notes:
            tell(note)
        found.append(replace(pane, name=unused(pane, found)))
    for note in misplaced(found):
        tell(note)
    return found


def unused(pane: Pane, others: Sequence[Pane]) -> str:
    """A name that no other pane has: that of the file, else with its folder, else numbered."""
    taken = {other.name for other in others}
    folder = Path(pane.path.rstrip("/")).parent.name
    names = [pane.name, f"{folder}/{pane.name}", *(f"{pane.name} ({i})" for i in range(2, len(others) + 3))]
    return next(name for name in names if name not in taken)


def view(wish: Wish, opened: Opened, tell: Tell) -> None:
    """Show volumes until the process is interrupted. Raises what opening them raises."""
    desk = Desk(panes_of(wish, tell), port=wish.port)
    try:
        opened(facts_of(desk, wish))
        threading.Event().wait()
    except KeyboardInterrupt:  # which is how a viewer is closed
        pass
    finally:
        desk.close()


def refuse_early(wish: Wish) -> None:
    """What can be refused before a model is imported or a network built. Raises what `view` raises of these."""
    neuroglancer_module()
    if wish.table is not None:
        tables.read(plain(absolute(wish.table)))


def facts_of(desk: Desk, wish: Wish) -> dict[str, Any]:
    """What `Opened` is told. Raises `InputError` where the table is none of what is shown."""
    facts = desk.facts()
    if wish.table is None:
        return facts
    labelled = [pane for pane in desk.panes if pane.kind == "labels"]
    if not labelled:
        raise InputError(f"--table {wish.table}: none of what is shown is labels; name them with --as-labels PATH")
    return {**facts, "objects": desk.list_objects(labelled[-1], tables.read(plain(absolute(wish.table))))}
