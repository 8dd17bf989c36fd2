"""The report of several volumes, or of several time points of one: a page that lists all, and the report of each in a
folder beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from unet_engine.api import Result
from unet_engine.batches.batch import Outcome, Volume
from unet_engine.commands.price import Rate
from unet_engine.commands.run_report import page, states
from unet_engine.commands.run_report.page import Page
from unet_engine.commands.run_report.pictures import pictures
from unet_engine.endings import stem
from unet_engine.errors import OutputError, UnetEngineError, first_line
from unet_engine.prepare.prepare import Prepared
from unet_engine.units import Tell, size, span
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.pick import Pick

_NO_SEAMS = "of several volumes seams are not measured; run this one alone with --resume and --report"
_NO_SEAMS_OF_TIMES = (
    "of several time points seams are not measured; run this one alone, with another --out and --report"
)
_HEADING = ("", "volume", "result", "status", "time", "rate", "peak memory", "a place")


def place(asked: str, part: str | None) -> Path:
    """Where the report that ``--report`` names goes, of a part under a name of its own. Raises what `page.place`
    does."""
    path = page.place(asked)
    return path.with_name(f"{path.stem}.part{part.replace('/', 'of')}{path.suffix}") if part else path


@dataclass
class Pages:
    """Written anew as each volume ends, so that what is killed leaves the report of what it did. From several
    threads."""

    path: Path
    command: str
    rate: Rate | None
    tell: Tell
    of: int = 0
    what: str = "volumes"
    _plans: dict[int, Prepared] = field(default_factory=dict)
    _rows: dict[int, str] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _said: list[str] = field(default_factory=states.under_way)
    """What the page says of the command as a whole."""
    _left: str = "to come"
    """What becomes of those that have not ended."""
    is_there: bool = False
    """Whether the page of this command was written."""

    @classmethod
    def of_several(
        cls, asked: str, volumes: Sequence[Volume], part: str | None, command: str, rate: Rate | None, tell: Tell
    ) -> Pages:
        """The report that ``--report`` names, of a part under a name of its own. Raises what `place` does."""
        return cls(place(asked, part), command, rate, tell, len(volumes))

    @classmethod
    def of_times(cls, asked: str, command: str, rate: Rate | None, tell: Tell) -> Pages:
        """The report of the time points of one volume. Raises what `place` does."""
        return cls(page.place(asked), command, rate, tell, what="time points")

    @property
    def is_written(self) -> bool:
        """Whether it lists something."""
        return bool(self._rows)

    def done(self) -> None:
        """All went well. What fails of this is told."""
        self._conclude([])

    def failed(self, message: str, code: int) -> None:
        """The command ended with the exit code `code`. What fails of this is told."""
        self._conclude(states.ended(message, code))

    def _conclude(self, said: list[str]) -> None:
        try:
            with self._lock:
                self._said, self._left = said, "not begun"
                self._write()
        except UnetEngineError as error:
            self.tell(f"the report does not say how it ended: {error}")

    def planned(self, volume: Volume, prepared: Prepared) -> None:
        """A volume is about to begin. Raises `OutputError` where the list cannot be written: what lies there is of an
        earlier command."""
        with self._lock:
            self._plans[volume.number] = prepared
            if not self.is_there:
                self._write()

    def ended(self, outcome: Outcome) -> None:
        """Write its report, and the list with it. What fails of this is told: the output is safe."""
        with self._lock:
            prepared = self._plans.pop(outcome.volume.number, None)
            self.of = outcome.volume.of if outcome.volume.whole else self.of
        try:
            row = self._row(outcome, *self._own(outcome, prepared))
            with self._lock:
                self._rows[outcome.volume.number] = row
                self._counts[outcome.status] = self._counts.get(outcome.status, 0) + 1
                self._write()
        except UnetEngineError as error:
            self.tell(f"no report of {outcome.volume.settings.input}: {error}")

    def _own(self, outcome: Outcome, prepared: Prepared | None) -> tuple[str, str]:
        """Where the report of this volume lies, as a link, and a picture of its result; empty where nothing was
        done."""
        if outcome.result is None or prepared is None:
            return "", ""
        folder = self.path.with_name(f"{self.path.stem}.pages")
        volume = outcome.volume
        out = f"{stem(volume.whole.rstrip('/'))}-t{volume.settings.timepoint}" if volume.whole else (
            stem(volume.out.rstrip("/"))
        )  # fmt: skip
        name = f"{volume.number:04d}-{Path(out).name}.html"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror}; give another place for --report") from error
        own = Page(folder / name, self.command, asked_for_profile=False, title=_title(volume))
        seams = _NO_SEAMS
        if volume.whole:  # it lies elsewhere once all are there
            prepared, seams = replace(prepared, survey=replace(prepared.survey, named=volume.whole)), _NO_SEAMS_OF_TIMES
        figure = own.write(prepared, outcome.result, outcome.notes, self.rate, seams, self.tell)
        return quote(f"{folder.name}/{name}"), figure

    def _row(self, outcome: Outcome, link: str, figure: str) -> str:
        result, volume = outcome.result, outcome.volume
        if outcome.error is not None:
            found = [volume.out, f"{outcome.status}: {first_line(outcome.error)}", "", "", ""]
        elif result is None or result.already_complete:
            found = [_title(volume) or volume.out, outcome.status, "", "", ""]
        else:
            rate = f"{result.voxels_per_second / 1e6:.3g} Mvoxel/s"
            if self.rate:
                rate += f"; {self.rate.line(result.seconds, result.voxels)}"
            found = [
                _title(volume) or result.out,
                outcome.status,
                span(result.seconds),
                rate,
                size(result.peak_rss_bytes),
            ]
        cells = [page.text(cell) for cell in found]
        if link:
            cells[0] = f'<a href="{link}">{cells[0]}</a>'
        first = f"<td>{volume.number}<td>{page.text(volume.settings.input)}"
        return f"<tr>{first}{''.join(f'<td>{cell}' for cell in cells)}<td>{figure}</tr>"

    def made_later(self, result: Result, prepared: Prepared, times: Sequence[int]) -> None:
        """The report of the output of `result`, which was complete before: a place of each of `times`. prepared: the
        run of one of them. Raises what reading raises."""
        self.of = len(times)
        survey = prepared.survey
        stored = open_stored(survey.place, survey.settings.axes)
        for number, time in enumerate(times):
            scan = stored.picked(replace(survey.pick, timepoint=time))
            there = replace(prepared, survey=replace(survey, scan=scan))
            seen = next(pictures(there, result.out, result.digest, Pick(number)), None)
            cells = [f"{number + 1}", page.text(survey.settings.input), f"time point {time}", "already complete"]
            figure = page.figure(seen) if seen else ""
            self._rows[number] = f"<tr>{''.join(f'<td>{cell}' for cell in (*cells, '', '', '', figure))}</tr>"
        self._counts["already complete"] = len(times)
        self._write()

    def _write(self) -> None:
        parts = [f"{count:,} {status}" for status, count in self._counts.items()]
        if self.of > len(self._rows):
            parts.append(f"{self.of - len(self._rows):,} {self._left}")
        title = ": ".join([f"{self.of:,} {self.what}".removeprefix("0 "), ", ".join(parts) or self._left])
        rows = "\n".join(self._rows[number] for number in sorted(self._rows))
        heading = "".join(f"<th>{name}" for name in _HEADING)
        page.save(
            self.path,
            [
                *page.beginning(title, self.command),
                *self._said,
                f"<table class=list><tr>{heading}</tr>\n{rows}</table>",
            ],
        )
        self.is_there = True


def _title(volume: Volume) -> str | None:
    """What a time point is called; None for a volume of its own."""
    return f"{volume.whole}, time point {volume.settings.timepoint}" if volume.whole else None
