"""``unet-engine schema``: what other programs check against."""

from __future__ import annotations

import json

import click

from unet_engine.commands.option_kinds import Command

NAMES = ("settings", "spec", "result", "record", "message", "error")


@click.command("schema", cls=Command)
@click.argument("name", type=click.Choice(NAMES))
@click.option("--json", "as_json", is_flag=True, help="In one line.")
def schema_command(name: str, *, as_json: bool) -> None:
    """Print a JSON schema: of the settings in unet-engine.toml, a model's spec, the result of run --json, a record of
    run --results, the message of run --notify, or the error of a command with --json."""
    from unet_engine.commands.schemas import SCHEMAS

    click.echo(json.dumps(SCHEMAS[name](), indent=None if as_json else 2))
