"""``unet-engine view``: volumes and results in a browser."""

from __future__ import annotations

import json
from typing import Any

import click

from unet_engine.commands import interruption
from unet_engine.commands.completing import files
from unet_engine.commands.option_kinds import PLACE, Command
from unet_engine.commands.options import shown_options
from unet_engine.commands.sources import with_model
from unet_engine.errors import SettingsError


@click.command("view", cls=Command)
@click.argument("paths", metavar="PATH...", nargs=-1, type=PLACE, required=True)
@click.option("--table", metavar="FILE", type=PLACE, help="A table of objects: adds a page with a link to each.")
@click.option("--as-labels", metavar="PATH", shell_complete=files, multiple=True, help="Show this PATH as labels.")
@click.option("--as-image", metavar="PATH", shell_complete=files, multiple=True, help="Show this PATH as an image.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="On this machine; default: any.")
@click.option("--browser/--no-browser", default=True, help="Open it in a browser, where there is a screen.")
@click.option("--json", "as_json", is_flag=True, help="Tell in lines of JSON: first the URL, in the end what is there.")
@shown_options
def view_command(
    paths: tuple[str, ...],
    *,
    table: str | None,
    as_labels: tuple[str, ...],
    as_image: tuple[str, ...],
    port: int,
    browser: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show volumes, labels and probabilities, over one another, in a browser on this machine: until Ctrl-C.

    With --model the first PATH is segmented where one looks, and what was computed is kept: the same command goes on,
    and run --resume does the rest.
    """
    from unet_engine.commands import screen
    from unet_engine.viewing.view import Wish, refuse_early, view

    console = screen.stderr()
    if both := set(as_labels) & set(as_image):
        raise SettingsError(f"--as-labels and --as-image both name {sorted(both)[0]}; take one")
    kinds: dict[str, Any] = {**dict.fromkeys(as_labels, "labels"), **dict.fromkeys(as_image, "image")}

    def opened(facts: dict[str, Any]) -> None:
        if as_json:
            click.echo(json.dumps(facts))
        else:
            click.echo(facts["url"])
            if "objects" in facts:
                click.echo(facts["objects"])
            console.say("shown to whoever has this address, on this machine; Ctrl-C closes it")
        if browser and console.is_terminal:
            import webbrowser

            webbrowser.open(facts["url"])

    if given.get("model") is None:
        _refuse_options(given)
        view(Wish(paths, kinds, table, **_first(given), port=port), opened, console.note)
        return
    from unet_engine.settings.settings import Settings
    from unet_engine.viewing.view_model import view_model

    wish = Wish(paths, kinds, table, **_first(given), port=port)
    refuse_early(wish)
    settings = with_model(Settings.of(**{**given, "input": paths[0], "resume": True}), console.note)
    interruption.writing(settings.out)
    facts = view_model(settings, wish, opened, console.note)
    interruption.writing(None)
    more = "" if facts["complete"] else "; view goes on with it, and run --resume does the rest"
    console.say(f"{facts['out']}: {facts['blocks']:,} of {facts['blocks_planned']:,} blocks are computed{more}")
    if as_json:
        click.echo(json.dumps(facts))


def _first(given: dict[str, Any]) -> dict[str, Any]:
    """What is said of the first path."""
    from unet_engine.volumes.pick import Pick

    channels = given.get("input_channels")
    asked = given.get("timepoint")
    if asked is not None and not str(asked).isdecimal():
        raise SettingsError(f"--timepoint {asked}: one is shown; give its number from 0")
    pick = Pick(
        None if asked is None else int(asked), tuple(c.strip() for c in channels.split(",")) if channels else None
    )
    return {"axes": given.get("axes"), "image": given.get("image"), "pick": pick}


_READING = {"axes", "image", "timepoint", "input_channels"}


def _refuse_options(given: dict[str, Any]) -> None:
    """What is for a model means nothing without one."""
    for name, value in given.items():
        if value is not None and name not in _READING:
            option = "--" + name.replace("_", "-")
            raise SettingsError(f"{option} is for a model that is run; give it with --model, or leave {option} out")
