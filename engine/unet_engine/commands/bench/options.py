"""``unet-engine bench``: options, tables and files. The measuring is in `unet_engine.commands.bench`, imported when the
command runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from unet_engine.commands.completing import words
from unet_engine.commands.option_kinds import PLACE, THREADS, Command, Number, joined, sizes
from unet_engine.commands.options import meant_options
from unet_engine.commands.shared_options import IGNORE_SPACING
from unet_engine.errors import OutputError, SettingsError
from unet_engine.redaction import redacted
from unet_engine.units import times

MOST_WINDOWS = 65536
"""In a batch."""


@click.command("bench", cls=Command)
@click.option(
    "--model",
    type=PLACE,
    multiple=True,
    callback=joined,
    metavar="FILE[,FILE]",
    help="Model file, or several; default: the demo models.",
)
@click.option("--in", "input", type=PLACE, metavar="PATH", help="Zarr volume; default: synthetic tissue, as for demo.")
@click.option("--head", metavar="NAME", help="The output that is wanted, of a network with several, as for run.")
@click.option("--axes", metavar="AXES", help="Axes of the stored array, e.g. czyx.")
@meant_options
@click.option(
    "--seconds", type=Number(0, 10**7, min_open=True), default=60.0, help="How long it may take, about; default 60."
)
@click.option("--devices", metavar="A,B,…", shell_complete=words, help="cpu, cuda:0, …; default: all there are.")
@click.option(
    "--backend",
    metavar="A,B,…",
    shell_complete=words,
    help="openvino, onnxruntime, …; default: all that are installed.",
)
@click.option(
    "--precision",
    metavar="A,B,…",
    shell_complete=words,
    help="fp32, bf16, fp16, int8; default: all that the device computes in.",
)
@click.option(
    "--windows", multiple=True, metavar="Z,Y,X", help="Window to try, may be repeated; default: around the model's own."
)
@click.option("--batches", metavar="A,B,…", help="Windows per call; default 1,4.")
@click.option("--overlap", type=Number(0, 1, max_open=True), default=0.5, help="As for run; default 0.5.")
@click.option(
    "--tilings",
    type=Number(0, 1000, min_open=True),
    metavar="F",
    help="Show what tilings cost and how their labels agree as well: at most this part of a run is computed to find out, "
    "e.g. 0.1, beside --seconds. A run with --tiling auto then takes what was found.",
)
@click.option(
    "--tta", metavar="HOW", shell_complete=words, help="As for run; default: the mirrors that the model names."
)
@click.option("--threads", type=THREADS, metavar="N", help="As for run; default: one per core.")
@IGNORE_SPACING
@click.option("--trust", is_flag=True, help="Open a .pt2 or TorchScript, which may run any code; asked once per file.")
@click.option("--json", "json_file", type=PLACE, metavar="FILE", help="Write everything as JSON; - for stdout.")
@click.option("--html", "html_file", type=PLACE, metavar="FILE", help="Write a page with charts; it loads nothing.")
def bench_command(json_file: str | None, html_file: str | None, **given: Any) -> None:
    """Find out what runs fastest here: back end, precision, window and batch, bare and from end to end.

    Prints a table, the best choice and the command that uses it. Precisions that the accuracy gate has not passed are
    measured bare, for comparison, and never proposed.
    """
    from unet_engine.commands import screen
    from unet_engine.commands.bench.command import Request, bench
    from unet_engine.commands.bench.offer import Wanted
    from unet_engine.commands.bench.page import write_page
    from unet_engine.volumes.pick import Meant

    wanted = Wanted(
        devices=_names(given["devices"]),
        backends=_names(given["backend"]),
        precisions=_names(given["precision"]),
        windows=tuple(_window(text) for text in given["windows"]),
        batches=_batches(given["batches"]),
        overlap=given["overlap"],
        tta=given["tta"],
        threads=given["threads"],
    )
    from unet_engine.commands.sources import model_of

    if given["model"]:
        path = model_of(given["model"], trust=bool(given["trust"]), head=given["head"])
        given |= {"model": path, "head": given["head"] if path == given["model"] else None}
    request = Request(
        given["model"], given["input"], given["axes"],
 wanted, given["seconds"],
        ignore_spacing=bool(given["ignore_spacing"]), trust=given["trust"], head=given["head"],
        tilings=given["tilings"],
        meant=Meant(given["image"], given["level"], given["timepoint"], given["input_channels"]),
    )  # fmt: skip
    for option, file in (("--json", json_file), ("--html", html_file)):
        _check_writable(option, file, given["input"])
    facts = redacted(bench(request, lambda line: click.echo(line, err=True)))
    _show(facts, screen.stderr() if json_file == "-" else screen.stdout())
    if json_file == "-":
        click.echo(json.dumps(facts))
    elif json_file:
        _write(Path(json_file), json.dumps(facts, indent=1) + "\n")
    if html_file:
        write_page(Path(html_file), facts)


def _show(facts: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    from unet_engine.commands.bench.report import HEADING, Limits, limits_line, table

    if not console.is_terminal:
        console.rich.width = max(console.rich.width, 160)  # a file has no edge to fold at
    for d in facts["limits"]:
        limits = Limits(d["device"], d["operations_per_second"], d["copied_bytes_per_second"], d["why"])
        console.say(limits_line(limits))
    for sweep in facts["sweeps"]:
        console.print()
        console.say(f" on {times(sweep['shape'])} voxels", sweep["name"])
        shown = Table(*HEADING, box=None, padding=(0, 1))
        for cells in table(sweep):
            shown.add_row(*cells, style="bold" if cells[-1] == "best" else None)
        console.print(shown)
        for note in sweep["notes"]:
            console.say(f"note: {note}")
        if sweep["command"]:
            console.say(f"best: {sweep['command']}")
    if tilings := facts.get("tilings"):
        console.print()
        console.say("tilings: voxels computed for one, labels that agree, least Dice")
        for line in tilings["table"]:
            console.say(line)
        console.say(tilings["line"])


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _window(text: str) -> tuple[int, ...]:
    window = sizes("--windows", text)
    assert window is not None
    return window


def _batches(text: str | None) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in _names(text))
    except ValueError as error:
        raise SettingsError(f"--batches {text!r}: give numbers, e.g. 1,4") from error
    if not all(1 <= n <= MOST_WINDOWS for n in found):
        raise SettingsError(f"--batches {text!r}: give numbers from 1 to {MOST_WINDOWS}, e.g. 1,4")
    return tuple(dict.fromkeys(found))


def _check_writable(option: str, file: str | None, volume: str | None) -> None:
    """A file that cannot be written is said before the minute that fills it."""
    from unet_engine.paths import roots_of
    from unet_engine.prepare.places import keep_out

    if file and file != "-" and volume:
        keep_out(option, file, roots_of(volume))
    if file and file != "-" and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
        raise OutputError(
            f"{option} {file} cannot be written: it is a folder, or its folder is missing; give another file"
        )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another --json") from error
