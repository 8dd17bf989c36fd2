"""Showing volumes, and computing what is looked at: from paths and settings to an open viewer, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_engine.api import run_volume
from unet_engine.errors import InputError, SettingsError
from unet_engine.paths import absolute, plain
from unet_engine.prepare.prepare import Prepared
from unet_engine.settings import Settings
from unet_engine.units import Tell
from unet_engine.viewing import tables
from unet_engine.viewing.demand import Demand
from unet_engine.viewing.desk import Desk
from unet_engine.viewing.on_demand import Closed, OnDemandTeam, Previews
from unet_engine.viewing.panes import Kind, Pane, pane_of
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
"""Told of the viewer once it is open: `Desk.facts`, and ``objects``, the URL of the list of objects where there is one."""


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
        found.append(replace(pane, name=_unused(pane, found)))
    return found


def _unused(pane: Pane, others: Sequence[Pane]) -> str:
    """A name that no other pane has: that of the file, else with its folder, else numbered."""
    taken = {other.name for other in others}
    folder = Path(pane.path.rstrip("/")).parent.name
    names = [pane.name, f"{folder}/{pane.name}", *(f"{pane.name} ({i})" for i in range(2, len(others) + 3))]
    return next(name for name in names if name not in taken)


def view(wish: Wish, opened: Opened, tell: Tell) -> None:
    """Show volumes until the process is interrupted. Raises what opening them raises."""
    desk = Desk(panes_of(wish, tell), port=wish.port)
    try:
        opened(_opened(desk, wish))
        threading.Event().wait()
    except KeyboardInterrupt:  # which is how a viewer is closed
        pass
    finally:
        desk.close()


def view_model(settings: Settings, wish: Wish, opened: Opened, tell: Tell) -> dict[str, Any]:
    """Show the input of `settings` and what is computed of its output as it is looked at, until the process is
    interrupted. What is computed is committed as in any run. Returns what is there: ``out``, ``blocks``,
    ``blocks_planned``, ``complete``.

    Raises what a run raises, `OutputError` where another one is writing the output.
    """
    if settings.part:
        raise SettingsError("--part is for runs that nobody looks at; leave it out")
    panes = panes_of(wish, tell)

    @contextmanager
    def show(prepared: Prepared, demand: Demand, previews: Previews) -> Iterator[Desk]:
        out = pane_of(prepared.job.out, name=_name(prepared))
        desk = Desk([*panes, replace(out, name=_unused(out, panes))], asked=out.path, port=wish.port)
        try:
            desk.ask, desk.looked, desk.renewed = demand.ask, demand.look, demand.renew
            desk.overlay(previews.over)
            demand.look(desk.sight())
            opened(_opened(desk, wish))
            yield desk
        finally:
            desk.close()

    crew = OnDemandTeam(settings, show, tell)
    try:
        prepared = crew.prepare()
        for note in (*crew.notes, *prepared.notes):
            tell(note)
        try:
            result = run_volume(crew, prepared, tell=tell)
        except Closed as closed:
            return {"out": prepared.job.out, "blocks": closed.there, "blocks_planned": closed.of, "complete": False}
    finally:
        crew.close()
    if result.already_complete:
        view(replace(wish, paths=(*wish.paths, result.out)), opened, tell)
    count = prepared.job.plan.block_count
    return {"out": result.out, "blocks": count, "blocks_planned": count, "complete": result.complete}


def _name(prepared: Prepared) -> str:
    return Path(prepared.survey.named.rstrip("/")).name


def _opened(desk: Desk, wish: Wish) -> dict[str, Any]:
    facts = desk.facts()
    if wish.table is None:
        return facts
    labelled = [pane for pane in desk.panes if pane.kind == "labels"]
    if not labelled:
        raise InputError(f"--table {wish.table}: none of what is shown is labels; name them with --as-labels PATH")
    return {**facts, "objects": desk.list_objects(labelled[-1], tables.read(plain(absolute(wish.table))))}
