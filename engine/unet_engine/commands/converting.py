"""``unet-engine convert``: a volume of one format as a file of another."""

from __future__ import annotations

import json

import click

from unet_engine.commands.option_kinds import PLACE, Command


@click.command("convert", cls=Command)
@click.argument("source", metavar="IN", type=PLACE)
@click.argument("out", type=PLACE)
@click.option("--axes", metavar="AXES", help="Axes of the stored array, e.g. czyx; default: from its metadata.")
@click.option(
    "--image",
    metavar="NAME",
    help="Of a plate, collection, TIFF or folder of DICOM: an image in it, by name or number.",
)
@click.option("--level", type=int, metavar="N", help="Of a pyramid or overviews; default: 0, the full resolution.")
@click.option("--timepoint", type=int, metavar="N", help="One time point, counted from 0; default: all.")
@click.option("--input-channels", metavar="C,C", help="Some channels, by name or number from 0; default: all.")
@click.option(
    "--images", type=PLACE, metavar="PATH", help="For DICOM: the series that labels belong to; default: the run's."
)
@click.option("--overwrite", is_flag=True, help="Replace what is at OUT, once the new file is whole.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def convert_command(
    source: str,
    out: str,
    *,
    axes: str | None,
    image: str | None,
    level: int | None,
    timepoint: int | None,
    input_channels: str | None,
    images: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the volume IN, labels or an image, to OUT, in the format that its name says.

    Voxels, their type and where they lie in the world are kept. Both are read and written by block."""
    from unet_engine.commands import screen
    from unet_engine.postprocess.convert import convert
    from unet_engine.units import times
    from unet_engine.volumes.pick import Pick

    console = screen.stderr()
    channels = tuple(part.strip() for part in input_channels.split(",")) if input_channels else None
    facts = convert(
        source,
        out,
        axes=axes,
        image=image,
        level=level,
        pick=Pick(timepoint, channels),
        images=images,
        overwrite=overwrite,
        tell=console.note,
    )
    console.say(f"{out}: {facts['format']}, {facts['axes']} {times(facts['shape'])} {facts['dtype']}")
    if as_json:
        click.echo(json.dumps(facts))
