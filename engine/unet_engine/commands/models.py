"""Commands that make model files and judge them. Their work is done in `unet_export`, imported when a command runs."""

from __future__ import annotations

import json
from typing import Any

import click

from unet_engine.commands.completing import words
from unet_engine.commands.option_kinds import COUNT, NUMBER, PLACE, THREADS, Command, Number, sizes
from unet_engine.commands.options import meant_options
from unet_engine.commands.shared_options import IGNORE_SPACING, MIRROR_AXES, THRESHOLD
from unet_engine.errors import BackendError, ModelError, SettingsError
from unet_engine.units import finite

OUTPUT_CHANNELS = ["classes", "multilabel", "image", "offsets"]
ACTIVATIONS = ["softmax", "sigmoid", "none", "probabilities", "probabilities_each"]


def lengths(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        lengths = tuple(finite(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"{option} {text!r}: {_LENGTHS}") from error
    if min(lengths) <= 0 or len(lengths) not in (2, 3):
        raise SettingsError(f"{option} {text!r}: {_LENGTHS}")
    return lengths


_LENGTHS = "give one positive number per axis, e.g. 0.05,0.005,0.005"


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _needs(module: str, extra: str, what: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise SettingsError(f"{what} needs {module}, which is not installed; run: pip install 'unet-engine[{extra}]'")


@click.command("export", cls=Command)
@click.argument("checkpoint", type=PLACE)
@click.option("--out", required=True, type=PLACE, metavar="FILE", help="ONNX file to write.")
@click.option("--factory", metavar="PACKAGE.MODULE:FUNCTION", help="What builds the network that a state dict fills.")
@click.option("--arguments", default="{}", metavar="JSON", help="Keywords for the factory, as a JSON object.")
@click.option("--weights", metavar="KEY", help="Key or prefix of the weights, where a file holds several that fit.")
@click.option("--head", metavar="NAME", help="Output that is meant, of several; default: as resolution and names tell.")
@click.option("--window", metavar="Z,Y,X", help="Window the file proposes; default 64,64,64 or 256,256.")
@click.option("--channels", type=COUNT, metavar="N", help="Input channels; default: those of the first convolution.")
@click.option(
    "--sizes",
    type=click.Choice(["auto", "dynamic", "static"]),
    default="auto",
    help="Free window sizes, or the one given; auto: free where possible.",
)
@click.option("--name", help="Of the model; default: that of the file.")
@click.option("--classes", metavar="A,B,…", help="Names of labels 0, 1, …")
@click.option(
    "--activation",
    type=click.Choice(ACTIVATIONS),
    help="What outputs are; default: what the graph ends in, else by their number.",
)
@click.option(
    "--output-channels",
    type=click.Choice(OUTPUT_CHANNELS),
    help="What output channels are: classes that exclude one another, multilabel (they may overlap), image or offsets.",
)
@click.option(
    "--normalize",
    metavar="HOW",
    shell_complete=words,
    help="What training did: zscore, range:0,255, fixed:mean=M,std=S, …; as for run.",
)
@click.option("--spacing", metavar="Z,Y,X", help="Size of a voxel in training.")
@click.option("--spacing-unit", metavar="UNIT", help="Default micrometer.")
@THRESHOLD
@MIRROR_AXES
@click.option("--background", type=NUMBER, metavar="V", help="Raw value of nothing; default 0.")
@click.option(
    "--empty",
    metavar="A,B,…",
    help="Output per channel where there is nothing, so that such windows are skipped; auto: found by running one.",
)
@click.option("--trust", is_flag=True, help="Open a .pt2 or TorchScript, which may run any code; asked once per file.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def export_command(*, as_json: bool, **given: Any) -> None:
    """Turn CHECKPOINT into a model file: a state dict (with --factory), a .pt2, a TorchScript or an ONNX.

    The file is compared with what it is made of, on several window sizes, and appears only if both agree. The factory
    is your code and runs."""
    for module in ("torch", "onnxscript", "onnxruntime"):
        _needs(module, "export", "export")
    from unet_export.conversion.export import Export, export

    given["window"] = sizes("--window", given["window"])
    given["spacing"] = lengths("--spacing", given["spacing"])
    given["classes"] = tuple(given["classes"].split(",")) if given["classes"] else None
    facts = export(Export(**given), _tell)
    _tell(
        f"{facts['out']}: window {facts['window']}, sizes {facts['window_min']} + k*{facts['window_step']}, "
        f"{facts['largest_difference']:.1e} from {facts['compared_with']}"
    )
    if as_json:
        click.echo(json.dumps(facts))


@click.command("quantize", cls=Command)
@click.argument("model", type=PLACE)
@click.option(
    "--calibrate", required=True, type=PLACE, metavar="PATH", help="Zarr volume of the kind the model will run on."
)
@click.option(
    "--precision", type=click.Choice(["auto", "int8", "fp16", "bf16"]), default="auto", help="auto: all there are."
)
@click.option(
    "--backend",
    metavar="NAME",
    shell_complete=words,
    help="openvino, tensorrt, or pytorch on a GPU; default: tensorrt where it can run.",
)
@click.option("--out", type=PLACE, metavar="FILE", help="Model file to write; default: the model itself.")
@click.option(
    "--reference", type=PLACE, metavar="FILE", help="The .pt2 or TorchScript it came from, to compare with in PyTorch."
)
@click.option("--windows", type=click.IntRange(max=10**6), default=24, help="To calibrate on; default 24.")
@click.option("--held-out", type=click.IntRange(max=10**6), default=16, help="Others, to judge on; default 16.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Draws the windows; default 0.")
@click.option("--window", metavar="Z,Y,X", help="Window that is judged; default: the model's.")
@click.option("--axes", metavar="AXES", help="Axes of the stored array, e.g. czyx.")
@meant_options
@click.option("--normalize", metavar="HOW", shell_complete=words, help="Instead of what the model names, as for run.")
@click.option("--activation", type=click.Choice(ACTIVATIONS), help="Instead of what the model names, as for run.")
@click.option("--head", metavar="NAME", help="The output that is judged, of a network with several, as for run.")
@click.option(
    "--min-dice", multiple=True, metavar="[CLASS=]D", help="Least Dice against fp32; default 0.999, int8 0.995."
)
@click.option("--min-agreement", type=Number(0, 1), metavar="F", help="Least fraction of equal labels; default: none.")
@click.option("--max-error", type=Number(0), metavar="E", help="Largest error of a logit, relative; default: none.")
@click.option("--threads", type=THREADS, metavar="N", help="Windows inferred at once; default: one per core.")
@click.option("--report", type=PLACE, metavar="FILE", help="HTML file; default: beside the model, MODEL.gate.html.")
@IGNORE_SPACING
@click.option("--trust", is_flag=True, help="Open a --reference that may run any code; asked once per file.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def quantize_command(*, as_json: bool, **given: Any) -> None:
    """Make MODEL faster and prove on your own volume that it still computes the same.

    Candidates are compared with fp32 on windows of the volume that were not calibrated on. What passes is attached to
    the model file with its figures, and run --precision auto takes the fastest of them."""
    from unet_engine.commands import screen
    from unet_engine.commands.sources import model_of
    from unet_engine.volumes.pick import Meant
    from unet_export.quantize.judging import Request
    from unet_export.quantize.quantize import quantize, table

    given["model"] = model_of(given["model"], trust=bool(given["trust"]), head=given["head"])
    dice, dice_of = _thresholds(given.pop("min_dice"))
    given["window"] = sizes("--window", given["window"])
    given["meant"] = Meant(**{name: given.pop(name) for name in ("image", "level", "timepoint", "input_channels")})
    given["ignore_spacing"] = bool(given["ignore_spacing"])
    request = Request(dice=dice, dice_of=dice_of, agreement=given.pop("min_agreement"), **given)
    rows = table(quantize(request, _tell))
    _show(rows, screen.stderr())
    if as_json:
        click.echo(json.dumps(rows))
    failed = [row for row in rows if not row["passed"] and not row["emulated"]]
    if failed and request.precision != "auto":
        raise ModelError(
            f"{request.model} in {failed[0]['precision']} did not pass: {failed[0]['reason']}; the report shows where, "
            "and --min-dice changes what is asked"
        )


def _thresholds(given: tuple[str, ...]) -> tuple[float | None, dict[str, float]]:
    """``0.99`` for all classes, ``membrane=0.98`` for one."""
    general, special = None, {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = finite(number)
        except ValueError as error:
            raise SettingsError(f"--min-dice {text!r} is no number; write 0.99 or membrane=0.98") from error
        if not 0 <= value <= 1:
            raise SettingsError(f"--min-dice {text!r}: Dice lies between 0 and 1; write e.g. 0.99")
        if name:
            special[name] = value
        else:
            general = value
    return general, special


@click.command("doctor", cls=Command)
@click.option(
    "--fix", is_flag=True, help="Try nothing: print the exact commands for what is missing here, and run none of them."
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def doctor_command(*, fix: bool, as_json: bool) -> None:
    """Show what this machine has and which back ends and precisions work here, by running a small network on each."""
    from dataclasses import asdict

    from unet_engine.commands import doctor, screen

    found = doctor.facts()
    if fix:
        _show_remedies(found, as_json=as_json)
        return
    console = screen.stderr() if as_json else screen.stdout()
    if not as_json:
        console.pairs([(name.replace("_", " "), text) for name, text in found.items()])
    checks = doctor.examine(lambda check: _tell(f"{check.backend} {check.precision} on {check.device}: {check.said}"))
    if as_json:
        click.echo(json.dumps({"facts": found, "trials": [asdict(c) for c in checks]}))
    else:
        _show_checks([asdict(c) for c in checks], console)
    if not any(check.works for check in checks):
        raise BackendError("no back end works here; reinstall with: pip install --force-reinstall unet-engine")


def _show_remedies(facts: dict[str, str], *, as_json: bool) -> None:
    """Reasons for people on stderr, commands on stdout."""
    from dataclasses import asdict

    from unet_engine.commands.remedies import remedies

    found = remedies(facts)
    if as_json:
        click.echo(json.dumps({"remedies": [asdict(one) for one in found]}))
        return
    for one in found:
        click.echo(f"# {one.why}", err=True)
        click.echo(one.command)
    if not found:
        _tell("nothing is missing here")


def _show_checks(checks: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    table = Table("back end", "device", "precision", "works", "from fp32", "what to know")
    for check in checks:
        works = "yes" if check["works"] else "no"
        difference = "–" if check["difference"] is None else f"{check['difference']:.1e}"
        said = "" if check["works"] else check["said"]
        table.add_row(check["backend"], check["device"], check["precision"], works, difference, said)
    console.print(table)


def _show(rows: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    table = Table("precision", "back end", "verdict", "times fp32", "least Dice", "max error", "why")
    for row in rows:
        state = "emulated" if row["emulated"] else "passed" if row["passed"] else "failed"
        speed = "–" if row["speedup"] is None else f"{row['speedup']:.2f}"
        dice = "–" if row["least_dice"] is None else f"{row['least_dice']:.5f}"
        name = f"{row['precision']} ({row['member']})" if row.get("member") else row["precision"]
        table.add_row(name, row["backend"], state, speed, dice, f"{row['max_error']:.1e}", row["reason"])
    console.print(table)


COMMANDS = (export_command, quantize_command, doctor_command)
