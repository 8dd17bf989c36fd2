"""What a shell and `man` are told of the command line, made from its own tables."""

from __future__ import annotations

import inspect

import click

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_UNET_ENGINE_COMPLETE"
"""Asks the command for completions, as click names it after the program."""


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print what completes commands, options and files in a shell.

    \b
    unet-engine completion bash > ~/.local/share/bash-completion/completions/unet-engine
    unet-engine completion fish > ~/.config/fish/completions/unet-engine.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    if shell == "bash":  # click asks bash for its version to complain of old ones; that is no use in a file
        kind = type("_Bash", (kind,), {"_check_version": staticmethod(lambda: None)})
    click.echo(kind(_app(), {}, "unet-engine", _VARIABLE).source())


@click.command("manual")
def manual_command() -> None:
    """Print the man page: unet-engine manual > ~/.local/share/man/man1/unet-engine.1"""
    click.echo(manual(_app()), nl=False)


def _app() -> click.Group:
    context = click.get_current_context().find_root()
    assert isinstance(context.command, click.Group)
    return context.command


def commands(app: click.Group) -> list[tuple[str, click.Command]]:
    """All commands by name, those inside of groups too."""
    found: list[tuple[str, click.Command]] = []
    for name, command in sorted(app.commands.items()):
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {inner}", one) for inner, one in sorted(command.commands.items())]
    return [(name, command) for name, command in found if not command.hidden]


def manual(app: click.Group) -> str:
    """The man page, in troff."""
    usage = app.get_usage(click.Context(app, info_name="unet-engine")).removeprefix("Usage: ")
    parts = [
        '.TH UNET-ENGINE 1 "" "unet-engine" ""',
        ".SH NAME\nunet\\-engine \\- run a U\\-Net over a volume of any size",
        f".SH SYNOPSIS\n.nf\n{_roff(usage)}\n.fi",
        f".SH DESCRIPTION\n{_paragraphs(app.help or '')}",
    ]
    for name, command in commands(app):
        inner = click.Context(command, info_name=f"unet-engine {name}")
        parts.append(
            f".SH {name.upper()}\n{_paragraphs(command.help or '')}\n.nf\n{_roff(command.get_usage(inner))}\n.fi"
        )
        for record in filter(None, (parameter.get_help_record(inner) for parameter in command.params)):
            parts.append(f".TP\n\\fB{_roff(record[0])}\\fR\n{_roff(record[1])}")
    return "\n".join(parts) + "\n"


def _paragraphs(text: str) -> str:
    """What click would fold, and what it would leave as it is."""
    found = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            found.append(f".nf\n{_roff(part.removeprefix(chr(8)).strip(chr(10)))}\n.fi")
        else:
            found.append(f".PP\n{_roff(part)}")
    return "\n".join(found)


def _roff(text: str) -> str:
    lines = (line.replace("\\", "\\e").replace("-", "\\-") for line in text.splitlines())
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in lines)
