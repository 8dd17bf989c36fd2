"""The command that goes on with what this one began, as it can be typed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from unet_engine.errors import PlanError, ResumeError, SettingsError

_NEVER = (0, SettingsError.exit_code, PlanError.exit_code, ResumeError.exit_code)
"""Exit codes of what the same command with --resume would meet again, or has no need of it."""


def may_go_on(code: int) -> bool:
    """Whether a run that ended with `code` is gone on with by the same command, once its cause is gone."""
    return code not in _NEVER


def folder() -> str:
    """Where this command was typed; it may be gone meanwhile."""
    try:
        return str(Path.cwd())
    except OSError:
        return os.environ.get("PWD", ".")


def address_in(words: Sequence[str]) -> str | None:
    """What ``--notify`` says in `words`, which need not be a command that is understood, or the environment does."""
    said = os.environ.get("UNET_ENGINE_NOTIFY") or None
    for word, behind in zip(words, [*words[1:], None], strict=True):
        if word == "--notify" or word.startswith("--notify="):
            said = behind if word == "--notify" else word.partition("=")[2]
    return said


def resuming(words: Sequence[str] | None = None) -> str:
    """The same command with --resume, from the same folder. The address of ``--notify``, which is shown to nobody, is
    left out. words: as they were typed behind the program; this process' own if None."""
    given = list(sys.argv[1:] if words is None else words)
    kept, at = list[str](), given.index("run") + 1 if "run" in given else 0
    behind = iter(given[at:])
    for word in behind:
        if word == "--notify":
            next(behind, None)
        elif not word.startswith("--notify=") and word not in ("--resume", "--overwrite"):
            kept.append(word)
    return f"cd {shlex.quote(folder())} && {shlex.join(['unet-engine', *given[:at], '--resume', *kept])}"
