"""``unet-engine components``, ``table``, ``polygons`` and ``pyramid``: what is made of results that are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click

from unet_engine.commands import interruption
from unet_engine.commands.completing import files, words
from unet_engine.commands.option_kinds import COUNT, PLACE, Command
from unet_engine.commands.options import cluster_options
from unet_engine.commands.shared_options import OBJECTS
from unet_engine.errors import SettingsError
from unet_engine.units import times

_READ: list[Callable[..., Any]] = [
    click.option("--axes", metavar="AXES", help="Axes of the stored array, e.g. tzyx."),
    click.option("--image", metavar="NAME", help="Of a plate, collection, TIFF or folder of DICOM: an image in it."),
    click.option("--level", type=int, metavar="N", help="Of a pyramid or overviews; default: 0, the full resolution."),
    click.option("--timepoint", type=int, metavar="N", help="The time point, counted from 0."),
    click.option("--input-channels", metavar="C", help="The channel, by name or number from 0."),
    click.option(
        "--nodata",
        metavar="V",
        shell_complete=words,
        help="Values that count as background, or none; default: what the volume says.",
    ),
]
_WORK: list[Callable[..., Any]] = [
    click.option("--memory", metavar="SIZE", help="RAM to stay within, e.g. 8GiB; default: half of what is free."),
    cluster_options,
    click.option("--overwrite", is_flag=True, default=None, help="Replace what an earlier command made."),
    click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout."),
]
_DURABLE = click.option(
    "--durable",
    type=bool,
    metavar="yes|no",
    shell_complete=words,
    help="Have the disk keep what is written; default: yes.",
)
INTENSITY = click.option(
    "--intensity",
    metavar="PATH",
    shell_complete=files,
    help="The image whose mean over each object is told, or none; default: the volume that the labels were made of.",
)


def _with(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command("components", cls=Command)
@click.argument("labels", type=PLACE)
@click.argument("out", type=PLACE)
@_with(*OBJECTS)
@click.option(
    "--classes", metavar="C,C", help="Labels that all this concerns; objects of others are kept. Default: all labels."
)
@click.option(
    "--values",
    type=click.Choice(["numbers", "labels"]),
    help="What is written: the number of each object (default), or the labels that are kept.",
)
@click.option(
    "--dtype",
    type=click.Choice(["uint8", "uint16", "uint32", "uint64"]),
    help="Of what is written; default: the smallest that holds it.",
)
@click.option("--resume", is_flag=True, default=None, help="Go on with one that was begun with the same options.")
@click.option("--verify", is_flag=True, default=None, help="With --resume: compare the contents of chunks, too.")
@_DURABLE
@_with(*_READ, *_WORK)
def components_command(labels: str, out: str, **given: Any) -> None:
    """Number the connected objects of LABELS, class by class, and write the numbers, or the labels of what is kept, as
    OUT: OME-Zarr, or what its name says."""
    of_rules = ("min_size", "fill_holes", "largest", "values")
    as_json, rules = given.pop("as_json"), {key: given.pop(key) for key in of_rules}
    rules["classes"] = _classes(given.pop("classes"))
    connectivity, dtype = given.pop("connectivity"), given.pop("dtype")
    from unet_engine.postprocess.components import rules_of
    from unet_engine.postprocess.numbering import number
    from unet_engine.postprocess.target import Wish

    def work(settings: Any, hands: Any, tell: Callable[[str], None]) -> dict[str, Any]:
        source = _source(settings)
        _keep_apart(out, labels)
        made = rules_of(len(source.open().shape), connectivity and int(connectivity), **rules)
        wish = Wish(settings.out, settings.resume, settings.overwrite, settings.verify, settings.durable)
        return number(source, made, wish, hands.crew, memory=hands.memory, dtype=dtype, tell=tell)

    interruption.writing(out)
    facts = _done(labels, {**given, "out": out}, work, as_json=as_json)
    interruption.writing(None)
    _say(
        f"{facts['out']}: {facts['objects']:,} objects as {facts['dtype']}, {_by_class(facts)}", facts, as_json=as_json
    )


def _classes(said: str | None) -> tuple[int, ...] | None:
    """The labels that are named. Raises `SettingsError` where these are none."""
    if said is None:
        return None
    parts = [part.strip() for part in said.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**64 for part in parts):
        raise SettingsError(
            f"--classes {said} is not understood; name labels, whole numbers above 0, e.g. --classes 1,2"
        )
    return tuple(sorted({int(part) for part in parts}))


def _by_class(facts: dict[str, Any]) -> str:
    found = facts.get("objects_by_class")
    if found is None:
        return "of many classes"
    few = ", ".join(f"{count:,} of class {kind}" for kind, count in list(found.items())[:8])
    return few + (" …" if len(found) > 8 else "") if found else "none of any class"


@click.command("table", cls=Command)
@click.argument("labels", type=PLACE)
@click.argument("out", type=PLACE)
@INTENSITY
@_with(*_READ, *_WORK)
def table_command(labels: str, out: str, **given: Any) -> None:
    """Tell of each object in LABELS its class, voxels, volume, centroid, box and mean intensity: a table OUT, .csv or
    .parquet."""
    as_json, intensity, overwrite = given.pop("as_json"), given.pop("intensity"), bool(given.pop("overwrite"))
    from unet_engine.postprocess.image import image_of
    from unet_engine.postprocess.table import table

    def work(settings: Any, hands: Any, tell: Callable[[str], None]) -> dict[str, Any]:
        source = _source(settings)
        image = image_of(source, intensity, tell)
        return table(source, out, hands.crew, image=image, memory=hands.memory, overwrite=overwrite)

    facts = _done(labels, given, work, as_json=as_json)
    _say(f"{facts['out']}: {facts['objects']:,} objects", facts, as_json=as_json)


@click.command("polygons", cls=Command)
@click.argument("labels", type=PLACE)
@click.argument("out", type=PLACE)
@_with(*_READ, *_WORK)
def polygons_command(labels: str, out: str, **given: Any) -> None:
    """Outline the objects in the map LABELS: polygons in its coordinates, OUT a .gpkg, .parquet (GeoParquet) or
    .geojson."""
    as_json, overwrite = given.pop("as_json"), bool(given.pop("overwrite"))
    from unet_engine.postprocess.polygons import polygons

    def work(settings: Any, hands: Any, _: Callable[[str], None]) -> dict[str, Any]:
        return polygons(_source(settings), out, hands.crew, overwrite=overwrite)

    facts = _done(labels, given, work, as_json=as_json)
    crs = "" if facts["crs"] else "; the map names no coordinate reference system"
    _say(f"{facts['out']}: {facts['objects']:,} objects{crs}", facts, as_json=as_json)


@click.command("pyramid", cls=Command)
@click.argument("group", type=PLACE)
@click.option(
    "--levels",
    type=COUNT,
    metavar="N",
    help="How many there are, with the full resolution; default: until they are small.",
)
@click.option(
    "--by",
    type=click.Choice(["majority", "mean"]),
    help="What a voxel is of those it covers; default: the majority of labels, the mean of all else.",
)
@_DURABLE
@_with(*_WORK)
def pyramid_command(group: str, **given: Any) -> None:
    """Add coarser levels to the OME-Zarr GROUP, in place. After a kill the same command goes on."""
    as_json, by = given.pop("as_json"), given.pop("by")
    from unet_engine.postprocess.pyramid import Wanted, pyramid

    def work(settings: Any, hands: Any, tell: Callable[[str], None]) -> dict[str, Any]:
        levels = settings.levels
        wanted = Wanted(settings.input, levels, by, overwrite=settings.overwrite, durable=settings.durable)
        return pyramid(wanted, hands.crew, memory=hands.memory, tell=tell)

    facts = _done(group, {**given, "pyramid": True}, work, as_json=as_json)
    shapes = ", ".join(times(shape) for shape in facts["shapes"])
    _say(f"{facts['out']}: {facts['levels']} levels by {facts['by']}, {shapes}", facts, as_json=as_json)


def _done(
    labels: str,
    given: dict[str, Any],
    work: Callable[[Any, Any, Callable[[str], None]], dict[str, Any]],
    *,
    as_json: bool,
) -> dict[str, Any]:
    """What `work` gives, done by whom the options ask for; its progress is shown, but to programs."""
    from unet_engine.commands import screen
    from unet_engine.commands.steps import steps_on
    from unet_engine.execution.hands import Hands
    from unet_engine.execution.passes import crew
    from unet_engine.postprocess.base import Watched
    from unet_engine.settings.settings import Settings

    console = screen.stderr()
    settings = Settings.of(input=labels, **given)
    for note in settings.notes:
        console.note(note)
    shown = nullcontext(lambda _what, _total: _unseen) if as_json else steps_on(console)
    with crew(settings, console.note) as hands, shown as begun:
        return work(settings, Hands(Watched(hands.crew, begun), hands.memory), console.note)


def _unseen(_count: int) -> None:
    """Nobody looks."""


def _source(settings: Any) -> Any:
    from unet_engine.paths import absolute
    from unet_engine.postprocess.source import Source
    from unet_engine.prepare.places import pick_of
    from unet_engine.volumes.formats import located

    path = absolute(located(settings.input, settings.image, settings.level))
    nodata = None if settings.nodata is None else settings.nodata_values
    return Source.of(path, settings.axes, pick_of(settings), nodata)


def _keep_apart(out: str, labels: str) -> None:
    from unet_engine.storage import stores

    if stores.nested(out, labels):
        raise SettingsError(f"{out} overlaps {labels}, which is read; choose a folder of its own")


def _say(text: str, facts: dict[str, Any], *, as_json: bool) -> None:
    from unet_engine.commands import screen

    screen.stderr().say(text)
    if as_json:
        click.echo(json.dumps(facts))


OBJECT_COMMANDS = (components_command, table_command, polygons_command, pyramid_command)
