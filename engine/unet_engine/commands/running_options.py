"""The options that say who does a run, and how it tells what it does."""

from __future__ import annotations

import click

from unet_engine.commands.completing import files, words
from unet_engine.commands.option_kinds import NUMBER

CLUSTER = [
    click.option("--workers", type=int, metavar="N", help="Run N worker processes on this machine (Dask)."),
    click.option(
        "--scheduler", metavar="ADDRESS", help="Run on this Dask cluster: tcp://host:port or a scheduler file."
    ),
    click.option(
        "--cluster",
        metavar="FILE",
        shell_complete=files,
        help="Start workers as batch jobs as this YAML file says, e.g. on SLURM.",
    ),
    click.option(
        "--protocol",
        metavar="P",
        shell_complete=words,
        help="How --workers and --gpus send halos: tcp (default) or ucx (pip install 'unet-engine[ucx]').",
    ),
    click.option(
        "--hang-seconds",
        type=NUMBER,
        metavar="S",
        help="A block that takes longer counts as hung; default: from the plan with Dask, else never.",
    ),
    click.option(
        "--tls-ca",
        metavar="FILE",
        shell_complete=files,
        help="PEM file of the authority, for a cluster that speaks TLS.",
    ),
    click.option("--tls-cert", metavar="FILE", shell_complete=files, help="PEM file of our certificate."),
    click.option("--tls-key", metavar="FILE", shell_complete=files, help="PEM file of our key."),
    click.option(
        "--dashboard", metavar="HOST:PORT", help="Where the dashboard listens; default: loopback, any free port."
    ),
    click.option(
        "--dashboard-token",
        metavar="SECRET",
        envvar="UNET_ENGINE_DASHBOARD_TOKEN",
        help="Ask visitors of the dashboard for this.",
    ),
]


RUNNING = [
    click.option("--keep-going", is_flag=True, help="Of several volumes run the others where one fails; exit code 11."),
    click.option("--dry-run", is_flag=True, help="Say what would be run, and what would be refused; write nothing."),
    click.option(
        "--results",
        metavar="FILE",
        shell_complete=files,
        help="Add a line of JSON for each volume, also of one that fails.",
    ),
    click.option("--log", metavar="FILE", shell_complete=files, help="Add all that is told, with the time."),
    click.option(
        "--log-format", type=click.Choice(["text", "json"]), help="Of --log; json without it: of stderr. Default: text."
    ),
    click.option(
        "--metrics",
        metavar="FILE",
        shell_complete=files,
        help="Counts as Prometheus reads them, written every few seconds.",
    ),
    click.option(
        "--report",
        metavar="FILE.html",
        shell_complete=files,
        help="Write what ran, where time went, what is proved and pictures of places into one file; docs/operations.md.",
    ),
    click.option(
        "--notify",
        metavar="URL",
        help="Post what became of it to this address in the end, as JSON, also where it failed; docs/operations.md.",
    ),
    click.option(
        "--rate",
        metavar="PRICE",
        help="Of an hour of the machines, e.g. 3.20EUR: tells what the run cost, and a teravoxel.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Of several volumes show the plan and all notes of each."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
]
