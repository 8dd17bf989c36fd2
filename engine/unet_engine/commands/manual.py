"""What a shell and `man` are told of the command line, made from its own tables."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import click

_VARIABLE = "_UNET_ENGINE_COMPLETE"
"""Asks the command for completions, as click names it after the program."""
_BASH = """\
_unet_engine_completion() {
    local IFS=$'\\n' i kind value said
    local -a asked=()
    for ((i = 0; i <= COMP_CWORD; i++)); do  # bash parts --option=value at the sign
        if [[ ${COMP_WORDS[i]} != "=" || ${COMP_WORDS[i-1]} != --* ]]; then
            asked+=("${COMP_WORDS[i]}")
        elif ((i == COMP_CWORD)); then
            asked+=("")
        fi
    done
    for said in $(COMP_WORDS="${asked[*]}" COMP_CWORD=$((${#asked[@]} - 1)) %(variable)s=bash_complete "$1"); do
        IFS=',' read -r kind value <<< "$said"
        if [[ $kind == dir ]]; then
            compopt -o dirnames
        elif [[ $kind == file ]]; then
            compopt -o default
        else
            COMPREPLY+=("$value")
        fi
    done
}

complete -o nosort -F _unet_engine_completion unet-engine
"""
_ZSH = """\
#compdef unet-engine

_unet_engine_completion() {
    local -a words_alone words_described response
    local kind word description
    (( ! $+commands[unet-engine] )) && return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) %(variable)s=zsh_complete unet-engine)}")
    [[ $words[CURRENT] == --*=* ]] && compset -P 1 '*='
    for kind word description in ${response}; do
        if [[ $kind == dir ]]; then
            _path_files -/
        elif [[ $kind == file ]]; then
            _path_files -f
        elif [[ $description == _ ]]; then
            words_alone+=("$word")
        else
            words_described+=("$word:$description")
        fi
    done
    [ -n "$words_described" ] && _describe -V unsorted words_described
    [ -n "$words_alone" ] && compadd -V unsorted -a words_alone
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _unet_engine_completion "$@"
else
    compdef _unet_engine_completion unet-engine
fi
"""
_FISH = """\
function _unet_engine_completion
    set -l response (env %(variable)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) unet-engine)
    set -l option (string match --regex -- '^--[^=]*=' (commandline -t))
    for said in $response
        set -l part (string split --max 1 "," $said)
        switch $part[1]
            case dir
                __fish_complete_directories $part[2]
            case file
                for path in (__fish_complete_path $part[2])
                    echo "$option$path"
                end
            case plain
                echo "$option$part[2]"
        end
    end
end

complete --no-files --command unet-engine --arguments "(_unet_engine_completion)"
"""
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""Click's own scripts lose ``--option=`` before a value, and fish's what stands behind a comma in one."""


_VARIABLES = {
    "UNET_ENGINE_<NAME>": "The option --name of run and plan, e.g. UNET_ENGINE_MEMORY=8GiB; options given are stronger.",
    "UNET_ENGINE_JSON": "1: as --json of every command.",
    "UNET_ENGINE_CACHE": "The folder of the cache; default: unet-engine in $XDG_CACHE_HOME, else ~/.cache.",
    "UNET_ENGINE_STORE_SECONDS": "How long a request to a bucket or the web is asked for again; default 60.",
    "UNET_ENGINE_STORE_STALLED": "How long no byte may come before a request is given up; default 30.",
    "UNET_ENGINE_STORE_CACHE": "Bytes of chunks that are kept in memory, e.g. 256MiB; default: what fits.",
    "UNET_ENGINE_TRACEBACK": "1: show the whole traceback of an error that is ours.",
}
_FILES = {
    "unet-engine.toml": "Settings, in the current folder, beside the input, or in ~/.config/unet-engine/.",
    "~/.config/unet-engine/trusted": "The SHA-256 of models that may run code.",
    "~/.cache/unet-engine/": "Built engines, unpacked volumes, what was proved and measured; may be deleted.",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_SCRIPTS)))
def completion_command(shell: str) -> None:
    """Print what completes commands, options, values and files in a shell. Where pip put it, it works already; else:

    \b
    unet-engine completion bash > ~/.local/share/bash-completion/completions/unet-engine
    unet-engine completion zsh > "${fpath[1]}/_unet-engine"
    unet-engine completion fish > ~/.config/fish/completions/unet-engine.fish
    """
    click.echo(completion(shell), nl=False)


@click.command("manual")
def manual_command() -> None:
    """Print the man page: unet-engine manual > ~/.local/share/man/man1/unet-engine.1"""
    click.echo(manual(_app()), nl=False)


def _app() -> click.Group:
    context = click.get_current_context().find_root()
    assert isinstance(context.command, click.Group)
    return context.command


def completion(shell: str) -> str:
    """The script for a shell of `_SCRIPTS`."""
    return _SCRIPTS[shell] % {"variable": _VARIABLE}


def commands(app: click.Group) -> list[tuple[str, click.Command]]:
    """All commands by name, those inside of groups too."""
    found: list[tuple[str, click.Command]] = []
    for name, command in sorted(app.commands.items()):
        found.append((name, command))
        if isinstance(command, click.Group):
            found += [(f"{name} {inner}", one) for inner, one in sorted(command.commands.items())]
    return [(name, command) for name, command in found if not command.hidden]


def manual(app: click.Group) -> str:
    """The man page, in troff of ASCII alone, which every version of it reads."""
    context = click.Context(app, info_name="unet-engine")
    parts = [
        '.TH UNET-ENGINE 1 "" "unet-engine" ""',
        ".SH NAME\nunet\\-engine \\- run a U\\-Net over a volume of any size",
        f".SH SYNOPSIS\n{_usage(app, context)}",
        f".SH DESCRIPTION\n{_paragraphs(app.help or '')}",
        ".SH OPTIONS",
        *_options(app, context),
    ]
    for name, command in commands(app):
        inner = click.Context(command, info_name=f"unet-engine {name}")
        parts.append(f".SH {name.upper()}\n{_usage(command, inner)}\n{_paragraphs(command.help or '')}")
        parts += _options(command, inner)
    for heading, table in (("ENVIRONMENT", _VARIABLES), ("FILES", _FILES)):
        parts += [f".SH {heading}", *(_item(name, text) for name, text in table.items())]
    return "\n".join(parts) + "\n"


def _usage(command: click.Command, context: click.Context) -> str:
    return f".nf\n{_roff(command.get_usage(context).removeprefix('Usage: '))}\n.fi"


def _options(command: click.Command, context: click.Context) -> list[str]:
    """One entry for each option; arguments have no more to say than the usage does."""
    records = (parameter.get_help_record(context) for parameter in command.get_params(context))
    return [_item(*record) for record in records if record]


def _item(name: str, text: str) -> str:
    return f".TP\n\\fB{_roff(name)}\\fR\n{_roff(text)}"


def _paragraphs(text: str) -> str:
    """What click would fold, and what it would leave as it is."""
    found = []
    for part in inspect.cleandoc(text).split("\n\n"):
        if part.startswith("\b"):
            found.append(_as_it_is(part.removeprefix("\b").strip("\n").splitlines()))
        else:
            found.append(f".PP\n{_roff(part)}")
    return "\n".join(found)


def _as_it_is(lines: list[str]) -> str:
    """Lines that are not folded; of two columns, the second is, as it would not fit beside the first."""
    columns = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines]
    if all(len(row) == 2 for row in columns):
        return "\n".join(_item(*row) for row in columns)
    return ".nf\n" + _roff("\n".join(lines)) + "\n.fi"


def _roff(text: str) -> str:
    lines = (line.replace("\\", "\\e").replace("-", "\\-") for line in text.splitlines())
    said = "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in lines)
    return "".join(letter if letter.isascii() else f"\\[u{ord(letter):04X}]" for letter in said)


def write_shared(app: click.Group, folder: Path) -> None:
    """What an installation has below ``share``, where `man` and shells look for it beside a ``bin`` on the path."""
    for place, text in (
        ("man/man1/unet-engine.1", manual(app)),
        ("bash-completion/completions/unet-engine", completion("bash")),
        ("zsh/site-functions/_unet-engine", completion("zsh")),
        ("fish/vendor_completions.d/unet-engine.fish", completion("fish")),
    ):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
