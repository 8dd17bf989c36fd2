"""What `run --report` writes of a run that is under way, that failed or was interrupted: a page which says so, and how
to go on. Without it the page of last night's run would be taken for tonight's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from unet_engine.commands import farewell, report
from unet_engine.commands.run_report import page, states
from unet_engine.commands.run_report.several import Pages
from unet_engine.errors import OutputError, ResumeError, SettingsError, UnetEngineError, first_line
from unet_engine.output.header import Header, read_header
from unet_engine.paths import is_local
from unet_engine.prepare.prepare import Prepared
from unet_engine.threads import hanging
from unet_engine.units import span

_REFUSED = (SettingsError.exit_code, OutputError.exit_code, ResumeError.exit_code)
"""Where a run is refused so before it began, what is there stays as it is: the report of it, too, and places that no
report belongs to."""

_NAMED = 4
"""Volumes that a heading names."""


@dataclass
class Unfinished:
    """The report of a run until there is a better one."""

    path: Path
    command: str
    inputs: Sequence[str]
    """As they were named."""
    notes: Callable[[], list[str]] = list
    """What people were told."""
    pages: Pages | None = None
    """Of several volumes: the list that says it in place of this page, once that is written."""
    prepared: Prepared | None = None
    begun: float = field(default_factory=time.time)

    def under_way(self, prepared: Prepared) -> None:
        """The output is held, and blocks are about to be done. Raises `OutputError`."""
        self.prepared = prepared
        self._write("under way", states.under_way())

    def ended(self, message: str, code: int, *, at_once: bool = False) -> bool:
        """It ended with `code`; whether the page says so. at_once: nothing may be asked of another machine. Raises
        `OutputError`."""
        if self.pages and self.pages.is_there:
            self.pages.failed(message, code)
            return True
        if self.prepared is None and code in _REFUSED:
            return False
        status = states.status_of(code)
        rows: list[tuple[str, object]] = [("volume", self._volumes()), ("time", span(time.time() - self.begun))]
        if self.prepared:
            asked = not at_once or is_local(self.prepared.job.out)
            rows += [("result", self.prepared.survey.named), ("committed", _committed(self.prepared) if asked else "")]
        self._write(status, [*states.ended(message, code), page.table([row for row in rows if row[1]])])
        return True

    @contextmanager
    def told(self, say: Callable[[str], None]) -> Iterator[None]:
        """Inside, the run is done; where it does not end well, its report says so, and people hear where that is."""

        def cut_short(message: str, code: int) -> None:
            self.ended(message, code, at_once=True)

        hanging.last_words.append(cut_short)
        try:
            yield
        except BaseException as error:
            with suppress(UnetEngineError):  # what ended the run is said, rather than this
                if self.ended(*farewell.said_of(error)):
                    say(f"report: {self.path}")
            raise
        finally:
            hanging.last_words.remove(cut_short)

    def _volumes(self) -> str:
        more = f" and {len(self.inputs) - _NAMED:,} more" if len(self.inputs) > _NAMED else ""
        return ", ".join(self.inputs[:_NAMED]) + more

    def _write(self, status: str, said: list[str]) -> None:
        named = self.prepared.survey.named if self.prepared else self._volumes()
        parts = [*page.beginning(f"{named}: {status}", self.command), *said]
        if self.prepared:
            parts += ["<h2>What ran</h2>", page.table(report.plan_lines(self.prepared))]
        page.save(self.path, [*parts, *page.notes_of(self.notes())])


def _committed(prepared: Prepared) -> str:
    """How much of the output is there, as the disk has it."""
    try:
        if read_header(prepared.job.out) is None:
            return "nothing yet"
        header = Header.of(prepared.job.out)
        left = 0 if header.complete else header.missing()[0]
        return f"{header.block_count - left:,} of {header.block_count:,} blocks"
    except Exception as error:  # whatever ended the run may keep this from being told, too
        return f"not known: {first_line(error)}"
