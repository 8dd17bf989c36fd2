"""``unet-engine import``: models of other tools."""

from __future__ import annotations

import json
from typing import Any

import click

from unet_engine.commands.completing import words
from unet_engine.commands.models import ACTIVATIONS, OUTPUT_CHANNELS, lengths
from unet_engine.commands.option_kinds import PLACE, Command, sizes
from unet_engine.commands.shared_options import MIRROR_AXES, THRESHOLD


def _tell(line: str) -> None:
    click.echo(line, err=True)


@click.command("import", cls=Command)
@click.argument("source", type=PLACE, required=False)
@click.option("--out", type=PLACE, metavar="FILE", help="ONNX file to write.")
@click.option("--list", "listed", is_flag=True, help="Name the sources, what each keeps and what it cannot.")
@click.option("--trust", is_flag=True, help="Run the code that comes with the source; asked once per file.")
@click.option("--folds", metavar="N,…", shell_complete=words, help="Of a source with several networks: which, or all.")
@click.option("--smp", metavar="NAME,ENCODER,…", help="The network of a checkpoint, e.g. Unet,resnet34,classes=5.")
@click.option("--weights", metavar="KEY", help="Which of several weights.")
@click.option("--head", metavar="NAME", help="Output that is meant, of several.")
@click.option("--window", metavar="Z,Y,X", help="Window the file proposes; default: the source's.")
@click.option("--name", help="Of the model; default: as the source calls it.")
@click.option("--classes", metavar="A,B,…", help="Names of labels 0, 1, …")
@click.option("--activation", type=click.Choice(ACTIVATIONS), help="What outputs are; default: what the source says.")
@click.option(
    "--output-channels",
    type=click.Choice(OUTPUT_CHANNELS),
    help="What output channels are; default: as the source says.",
)
@click.option(
    "--order", type=click.Choice(["zyx", "xyz"]), help="Order of the network's axes, where the source does not say."
)
@click.option("--normalize", metavar="HOW", shell_complete=words, help="Instead of what the source says, as for run.")
@click.option("--spacing", metavar="Z,Y,X", help="Size of a voxel in training, where the source does not say.")
@click.option("--spacing-unit", metavar="UNIT", help="Default micrometer.")
@THRESHOLD
@MIRROR_AXES
@click.option(
    "--uncertified", is_flag=True, help="Write the file although it does not give what the source says it does."
)
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def import_command(source: str | None, out: str | None, **given: Any) -> None:
    """Turn the trained model SOURCE of another tool, a folder or a file as that tool left it, into one ONNX file with
    its spec, and compare it with its source."""
    as_json = given.pop("as_json")
    if given.pop("listed"):
        _list(as_json=as_json)
        return
    if source is None or out is None:
        raise click.UsageError("give a SOURCE and --out FILE, or --list")
    from unet_export.importers.base import Wanted
    from unet_export.importers.make import make
    from unet_export.importers.sources import importer_of

    given["window"] = sizes("--window", given["window"])
    given["spacing"] = lengths("--spacing", given["spacing"])
    given["classes"] = tuple(given["classes"].split(",")) if given["classes"] else None
    facts = make(importer_of(source), Wanted(checkpoint=source, out=out, **given), _tell)
    _tell(f"{out}: window {facts['window']}, sizes {facts['window_min']} + k*{facts['window_step']}")
    if as_json:
        click.echo(json.dumps(facts))


def _list(*, as_json: bool) -> None:
    from unet_engine.commands import screen
    from unet_export.importers.sources import IMPORTERS

    if as_json:
        click.echo(json.dumps({"sources": [{"name": i.name, "keeps": i.keeps, "cannot": i.cannot} for i in IMPORTERS]}))
        return
    for importer in IMPORTERS:
        screen.stdout().pairs([("source", importer.name), ("keeps", importer.keeps), ("cannot", importer.cannot)])
