"""Showing a volume and what a network makes of it where one looks: from settings to an open viewer, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_engine.api import run_volume
from unet_engine.batches.batch import opened as opened_model
from unet_engine.errors import SettingsError
from unet_engine.prepare.channels import of_own_files
from unet_engine.prepare.prepare import Prepared
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell
from unet_engine.viewing.demand import Demand
from unet_engine.viewing.desk import Desk
from unet_engine.viewing.on_demand import Closed, OnDemandTeam, Previews
from unet_engine.viewing.panes import pane_of
from unet_engine.viewing.view import Opened, Wish, facts_of, panes_of, unused, view


def view_model(settings: Settings, wish: Wish, opened: Opened, tell: Tell) -> dict[str, Any]:
    """Show the input of `settings` and what is computed of its output as it is looked at, until the process is
    interrupted. What is computed is committed as in any run. Returns what is there: ``out``, ``blocks``,
    ``blocks_planned``, ``complete``.

    Raises what a run raises, `OutputError` where another one is writing the output.
    """
    if settings.part:
        raise SettingsError("--part is for runs that nobody looks at; leave it out")
    settings = _with_own_files(settings)
    wish = replace(wish, paths=(settings.input, *wish.paths[1:]))
    panes = panes_of(wish, tell)

    @contextmanager
    def show(prepared: Prepared, demand: Demand, previews: Previews) -> Iterator[Desk]:
        out = pane_of(prepared.job.out, name=_name(prepared))
        desk = Desk([*panes, replace(out, name=unused(out, panes))], asked=out.path, port=wish.port)
        try:
            desk.ask, desk.looked, desk.renewed = demand.ask, demand.look, demand.renew
            desk.overlay(previews.over)
            demand.look(desk.sight())
            opened(facts_of(desk, wish))
            yield desk
        finally:
            desk.close()

    crew = OnDemandTeam(settings, show, tell, levels=panes[0].levels)
    try:
        prepared = crew.prepare()
        for note in (*crew.notes, *prepared.notes):
            tell(note)
        try:
            result = run_volume(crew, prepared, tell=tell)
        except Closed as closed:
            return {
                "out": prepared.survey.named,
                "blocks": closed.there,
                "blocks_planned": closed.of,
                "complete": False,
            }
    finally:
        crew.close()
    if result.already_complete:
        view(replace(wish, paths=(*wish.paths, result.out)), opened, tell)
    count = prepared.job.plan.block_count
    return {"out": result.out, "blocks": count, "blocks_planned": count, "complete": result.complete}


def _with_own_files(settings: Settings) -> Settings:
    """Where the input is a channel of a case and the others lie beside it, all of them: what the run reads is shown."""
    model = opened_model(settings)
    some = settings.input_channels is not None
    files = of_own_files(settings.input, model.spec, every=some) if model else ()
    return settings.model_copy(update={"input": "+".join(files)}) if files else settings


def _name(prepared: Prepared) -> str:
    return Path(prepared.survey.named.rstrip("/")).name
