"""What a report says of a run that has not ended, or not well."""

from __future__ import annotations

from unet_engine.commands import farewell
from unet_engine.commands.going_on import may_go_on, resuming
from unet_engine.commands.run_report.page import text
from unet_engine.commands.telling import INTERRUPTED


def status_of(code: int) -> str:
    """What became of a run that ended with `code`."""
    return {0: "done", INTERRUPTED: "interrupted"}.get(code, "failed")


def under_way() -> list[str]:
    """Of a run that has not ended. It may be killed any moment, and says now how to go on then."""
    return [
        "<p>Under way: this page is written anew when it ends. Where it does not run any more, it was ended from outside "
        f"(a kill, lack of memory, power). To go on: <code>{text(resuming())}</code></p>"
    ]


def ended(message: str, code: int) -> list[str]:
    """Of a run that ended with an exit code that is not 0: why, and how to go on."""
    said = [f"<p>{text(farewell.with_status(status_of(code), message))} (exit code {code})</p>"]
    if may_go_on(code):
        said.append(f"<p>To go on: <code>{text(resuming())}</code></p>")
    return said
