"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from unet_engine.commands.completing import words
from unet_engine.commands.option_kinds import COUNT, NUMBER

IGNORE_SPACING = click.option(
    "--ignore-spacing",
    is_flag=True,
    default=None,
    help="Take voxels of another size than in training, an error otherwise, and the volume as it lies.",
)

OBJECTS: list[Callable[..., Any]] = [
    click.option(
        "--connectivity",
        type=click.Choice(["4", "8", "6", "18", "26"]),
        help="Neighbours that count: 6 (faces; default), 18 (and edges), 26 (and corners); in 2D 4 (default) or 8.",
    ),
    click.option("--min-size", type=COUNT, metavar="N", help="Leave out objects of fewer voxels."),
    click.option("--fill-holes", is_flag=True, default=None, help="First fill background that one class encloses."),
    click.option("--largest", type=COUNT, metavar="K", help="Keep the K largest objects of each class."),
]
"""Which objects there are: with --components, and of the command of that name."""

# what export and import both ask
THRESHOLD = click.option(
    "--threshold",
    type=NUMBER,
    metavar="P",
    help="Probability above which a channel on its own is a label; default 0.5.",
)
MIRROR_AXES = click.option(
    "--mirror-axes",
    metavar="AXES",
    shell_complete=words,
    help="Along which runs mirror windows and average, e.g. zyx; none: along none.",
)


MEANT: list[Callable[..., Any]] = [
    click.option("--image", metavar="NAME", help="Of a plate, collection, TIFF or folder of DICOM: an image in it."),
    click.option(
        "--level",
        type=click.IntRange(0),
        metavar="N",
        help="Of a pyramid or overviews; default: 0, the full resolution.",
    ),
    click.option("--timepoint", type=click.IntRange(0), metavar="N", help="The time point, counted from 0."),
    click.option("--input-channels", metavar="C,C", help="Channels the network takes, by name or number from 0."),
]
"""What of the volume is meant, for commands that take no other settings."""
