"""The last word of a command that ended in an error: one line, and an exit code."""

from __future__ import annotations

import click

from unet_engine.commands import interruption
from unet_engine.commands.telling import INTERRUPTED
from unet_engine.errors import PlanError, SettingsError, UnetEngineError, first_line

TRACEBACK = "UNET_ENGINE_TRACEBACK"
"""Environment variable that has an unexpected error shown with its traceback."""


def said_of(error: BaseException) -> tuple[str, int]:
    """What is said of `error`, and the exit code."""
    if isinstance(error, UnetEngineError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return interruption.said(), INTERRUPTED
    if isinstance(error, click.ClickException):
        return _usage(error), SettingsError.exit_code
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else UnetEngineError.exit_code
    return _unforeseen(error)


def with_status(status: str, message: str) -> str:
    """What became of a command, and what it said, which may begin so already."""
    return message if message.startswith(status) else f"{status}: {message}" if message else status


def _unforeseen(error: BaseException) -> tuple[str, int]:
    if _for_want_of_memory(error):
        from unet_engine import machine

        return (
            f"out of memory or threads: {first_line(error)}; use a smaller --window, fewer --threads, or run where "
            f"there is more{machine.limits()}"
        ), PlanError.exit_code
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}; check that place and run again", UnetEngineError.exit_code
    return (
        f"unexpected {type(error).__name__}: {error}; this is a bug in unet-engine: run again with {TRACEBACK}=1 "
        "and report the traceback"
    ), UnetEngineError.exit_code


def _usage(error: click.ClickException) -> str:
    """Click's own complaint as one line: what is wrong, and where to look."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "unet-engine"
    return f"{error.format_message().removesuffix('.')}; see {command} --help"


def _for_want_of_memory(error: BaseException | None) -> bool:
    """Whether `error` or what caused it says that memory ran out, or the room for threads: no library has a type for
    it."""
    signs = (
        "cannot allocate memory", "can't start new thread", "failed to map segment", "bad_alloc", "out of memory",
        "resource temporarily unavailable",
    )  # fmt: skip
    while error is not None:
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs):
            return True
        error = error.__cause__ or error.__context__
    return False
