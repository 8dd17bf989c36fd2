"""Commands that make model files and judge them. Their work is done in `unet_export`, imported when a command runs."""

from __future__ import annotations

import json
from typing import Any

import click

from unet_engine.errors import SettingsError
from unet_engine.settings import parse_window


def _sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return parse_window(text)
    except ValueError as error:
        raise SettingsError(f"{option} {text!r}: {error}") from error


def _lengths(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingsError(f"{option} {text!r}: give one number per axis, e.g. 0.05,0.005,0.005") from error


def _say(line: str) -> None:
    click.echo(line, err=True)


def _needs(module: str, extra: str, what: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise SettingsError(f"{what} needs {module}, which is not installed; run: pip install 'unet-engine[{extra}]'")


@click.command("export")
@click.argument("checkpoint")
@click.option("--out", required=True, metavar="FILE", help="ONNX file to write.")
@click.option("--factory", metavar="PACKAGE.MODULE:FUNCTION", help="What builds the network that a state dict fills.")
@click.option("--arguments", default="{}", metavar="JSON", help="Keywords for the factory, as a JSON object.")
@click.option("--window", metavar="Z,Y,X", help="Window the file proposes; default 64,64,64 or 256,256.")
@click.option("--channels", type=int, metavar="N", help="Input channels; default: those of the first convolution.")
@click.option(
    "--sizes",
    type=click.Choice(["auto", "dynamic", "static"]),
    default="auto",
    help="Free window sizes, or the one given; auto: free where possible.",
)
@click.option("--name", help="Of the model; default: that of the file.")
@click.option("--classes", metavar="A,B,…", help="Names of labels 0, 1, …")
@click.option("--activation", type=click.Choice(["softmax", "sigmoid", "none"]), help="Default: by number of outputs.")
@click.option("--normalize", metavar="HOW", help="What training did: none, zscore, percentile:1,99, range:0,255, …")
@click.option("--spacing", metavar="Z,Y,X", help="Size of a voxel in training.")
@click.option("--spacing-unit", metavar="UNIT", help="Default micrometer.")
@click.option("--background", type=float, metavar="V", help="Raw value of nothing; default 0.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def export_command(as_json: bool, **given: Any) -> None:  # noqa: FBT001  # click passes flags by name
    """Turn CHECKPOINT into a model file: a state dict (with --factory), a .pt2, a TorchScript or an ONNX.

    The file is compared with PyTorch through ONNX Runtime and appears only if both agree. The factory is your code and runs.
    """
    for module in ("torch", "onnxscript", "onnxruntime"):
        _needs(module, "export", "export")
    from unet_export.export_command import Export, export

    given["window"] = _sizes("--window", given["window"])
    given["spacing"] = _lengths("--spacing", given["spacing"])
    given["classes"] = tuple(given["classes"].split(",")) if given["classes"] else None
    facts = export(Export(**given), _say)
    _say(
        f"{facts['out']}: window {facts['window']}, sizes {facts['window_min']} + k*{facts['window_step']}, "
        f"{facts['largest_difference']:.1e} from PyTorch"
    )
    if as_json:
        click.echo(json.dumps(facts))


COMMANDS = (export_command,)
