"""What `run` does beside one run: several volumes, and what is left of either for machines."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_engine.commands import interruption
from unet_engine.errors import BatchError, SettingsError, UnetEngineError, first_line, reworded

if TYPE_CHECKING:
    from unet_engine.api import Result
    from unet_engine.batches.batch import Outcome, Volume
    from unet_engine.batches.notify import Address
    from unet_engine.batches.records import Lines, Metrics
    from unet_engine.commands.notice import Notice
    from unet_engine.commands.price import Rate
    from unet_engine.commands.run_report.page import Page
    from unet_engine.commands.run_report.several import Pages
    from unet_engine.commands.run_report.unfinished import Unfinished
    from unet_engine.commands.screen import Screen
    from unet_engine.execution.team import Team
    from unet_engine.model.file import ModelFile
    from unet_engine.prepare.prepare import Prepared
    from unet_engine.settings.settings import Settings


_OF_ZARR = ("zarr.json", ".zarray", ".zgroup")


@dataclass
class Ways:
    """What is told to whom."""

    keep_going: bool
    dry_run: bool
    results: str | None
    log: str | None
    log_format: str | None
    metrics: str | None
    verbose: bool
    quiet: bool
    notify: str | None = None
    report: str | None = None
    rate: str | None = None

    @classmethod
    def taken(cls, given: dict[str, Any]) -> Ways:
        """Take them out of what the command was given."""
        return cls(**{name: given.pop(name) for name in cls.__dataclass_fields__})

    def check_apart(self, inputs: Iterable[str], outs: Iterable[str]) -> None:
        """Raises `SettingsError` where a file of these lies in an input or an output, or in any Zarr array or group,
        whose content it would become."""
        from unet_engine.paths import inside, is_local, parts
        from unet_engine.storage import stores

        read, written = [inside(part)[0] for path in inputs for part in parts(path)], list(outs)
        for option in ("results", "log", "metrics", "report"):
            path = getattr(self, option)
            if path is None or not is_local(path):
                continue
            for what, places in (("read", read), ("written", written)):
                for place in places:
                    if stores.within(path, place):
                        raise SettingsError(f"--{option} {path} lies in {place}, which is {what}; choose another place")
            held = next(
                (str(f) for f in Path(path).absolute().parents if any((f / n).exists() for n in _OF_ZARR)), None
            )
            if held:
                raise SettingsError(f"--{option} {path} lies in {held}, which is Zarr; choose another place")

    def console(self) -> Screen:
        """Where people are told. Raises `SettingsError`, and `OutputError` for a log that cannot be written."""
        from unet_engine.commands import screen
        from unet_engine.commands.log import Log

        if self.verbose and self.quiet:
            raise SettingsError("--verbose and --quiet exclude each other; give one")
        console = screen.stderr()
        in_place = self.log is None and self.log_format == "json"
        console.silent = self.quiet or in_place
        if (self.log is not None or in_place) and not (self.quiet and in_place):
            console.kept = Log(self.log, as_json=self.log_format == "json")
        return console

    def address(self) -> Address | None:
        """Where a message goes in the end; a dry run sends none. Raises `SettingsError`."""
        from unet_engine.batches.notify import Address

        found = None if self.notify is None else Address.of(self.notify)
        return None if self.dry_run else found

    def price(self) -> Rate | None:
        """What an hour of the machines costs, where that was said. Raises `SettingsError`."""
        from unet_engine.commands.price import Rate

        return None if self.rate is None else Rate.of(self.rate)

    @contextmanager
    def reported(
        self, inputs: Sequence[str], console: Screen, *, part: str | None = None, notes: Callable[[], list[str]] = list
    ) -> Iterator[Unfinished | None]:
        """Inside, `inputs` are run. The report that was asked for, if any, says how that ended where it did not end
        well. part: of several volumes; notes: what people were told. Raises `SettingsError` or `OutputError`."""
        if self.report is None or self.dry_run:
            yield None
            return
        from unet_engine.commands.run_report.several import place
        from unet_engine.commands.run_report.unfinished import Unfinished

        unfinished = Unfinished(place(self.report, part), command(), inputs, notes)
        with unfinished.told(console.say):
            yield unfinished

    def page(self, settings: Settings) -> Page | None:
        """The report that is to be written; its place is tried here. Raises `SettingsError` or `OutputError`."""
        if self.report is None:
            return None
        from unet_engine.commands.run_report.page import Page

        return Page.of(self.report, settings, command())

    def pages(self, volumes: list[Volume], part: str | None, tell: Callable[[str], None]) -> Pages | None:
        """The same of several volumes."""
        if self.report is None:
            return None
        from unet_engine.commands.run_report.several import Pages

        return Pages.of_several(self.report, volumes, part, command(), self.price(), tell)

    def pages_of_times(self, tell: Callable[[str], None]) -> Pages | None:
        """The same of several time points of one volume."""
        if self.report is None:
            return None
        from unet_engine.commands.run_report.several import Pages

        return Pages.of_times(self.report, command(), self.price(), tell)

    def priced(self, result: Result) -> str:
        """What the run cost, behind its line."""
        rate = self.price()
        return "" if rate is None or result.already_complete else f", {rate.line(result.seconds, result.voxels)}"

    def cost(self, result: Result) -> dict[str, Any]:
        """The same for its JSON."""
        rate = self.price()
        return {} if rate is None else rate.cost(result.seconds, result.voxels)


@dataclass
class Record:
    """What is known of the run of one volume, for the line that is left of it."""

    input: str
    out: str = ""
    model: ModelFile | str | None = None
    notes: list[str] = field(default_factory=list)
    result: Result | None = None
    metrics: Metrics | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Record:
        """What the command was given."""
        return cls(given["input"] or "", given["out"] or "", given["model"])

    def prepared(self, crew: Team, prepared: Prepared) -> None:
        """It is about to begin."""
        self.out, self.model = prepared.survey.named, prepared.job.model
        if self.metrics:
            self.metrics.begun(crew)


@contextmanager
def recorded(ways: Ways, console: Screen, record: Record, notice: Notice) -> Iterator[Record]:
    """Inside, one volume is run. Whatever ends it, a line is left of it, it is counted, and `notice` knows of it."""
    from unet_engine.batches import records

    lines = records.Lines(ways.results) if ways.results else None
    begun, error, status = time.time(), None, "failed"
    with ExitStack() as stack:
        metrics = stack.enter_context(records.Metrics(ways.metrics, 1)) if ways.metrics else None
        record.metrics = metrics
        try:
            yield record
            status = "already complete" if record.result and record.result.already_complete else "done"
        except BaseException as ended:
            error = ended
            status = "interrupted" if isinstance(ended, KeyboardInterrupt) else "failed"
            if console.kept:
                console.kept.write("error", first_line(ended) if status == "failed" else status)
            raise
        finally:
            if metrics:
                metrics.ended(status)
            line = records.line(
                input=record.input, out=record.out, status=status, begun=begun, ended=time.time(), command=command(),
                model=record.model, result=record.result, notes=tuple(record.notes),
                error=None if status == "interrupted" else error,
            )  # fmt: skip
            notice.add(line)
            if lines:
                lines.add(line)


def command() -> str:
    """As it was typed."""
    return shlex.join(["unet-engine", *sys.argv[1:]])


# --- several volumes ---


def run_several(
    inputs: list[str],
    given: dict[str, Any],
    ways: Ways,
    console: Screen,
    notice: Notice,
    adapt: Callable[[Settings], Settings],
    say_json: Callable[[dict[str, Any]], None] | None,
) -> str:
    """Run them all; returns what they came to, in a line. Raises `BatchError` at the end where some failed and the
    others were run, else the error of the one that failed."""
    from unet_engine.batches import records
    from unet_engine.batches.batch import run_all, survey_all, volumes_of

    with ways.reported(inputs, console, part=given.get("part")) as unfinished:
        notice.several = True
        lines = records.Lines(ways.results) if ways.results else None
        volumes = volumes_of(inputs, given, adapt)
        ways.check_apart([v.settings.input for v in volumes], [v.out for v in volumes if v.out])
        if not volumes:
            console.say(nothing := f"part {given.get('part')} has nothing to do: there are fewer volumes than parts")
            return nothing
        if not ways.dry_run:
            interruption.writing("the outputs")
        with ExitStack() as stack:
            metrics = stack.enter_context(records.Metrics(ways.metrics, len(volumes))) if ways.metrics else None
            pages = ways.pages(volumes, given.get("part"), console.say)
            if unfinished:
                unfinished.pages = pages
            teller = _Teller(console, ways, lines, metrics, notice, say_json, pages)
            do = survey_all if ways.dry_run else partial(run_all, keep_going=ways.keep_going)
            outcomes = do(volumes, teller)
        line = _conclude(console, outcomes, volumes, ways)
        if pages and unfinished:
            pages.done()
            console.say(f"report: {pages.path}")
    interruption.writing(None)
    return line


def _conclude(console: Screen, outcomes: list[Outcome], volumes: list[Volume], ways: Ways) -> str:
    counts = {status: sum(o.status == status for o in outcomes) for status in dict.fromkeys(o.status for o in outcomes)}
    left = len(volumes) - len(outcomes)
    told = ", ".join(f"{count:,} {status}" for status, count in counts.items())
    console.say(
        line := f"{len(volumes):,} volume{'s' * (len(volumes) != 1)}: {told}"
        + (f", {left:,} not begun" if left else "")
    )
    failed = [outcome for outcome in outcomes if outcome.error]
    if not failed:
        return line
    if not (ways.keep_going or ways.dry_run):
        error = failed[0].error
        assert error is not None
        if isinstance(error, UnetEngineError):
            others = "; --keep-going runs the others" if len(volumes) > 1 else ""
            raise reworded(error, _said(failed[0]) + others) from error
        raise error
    for outcome in failed:
        console.say(f" {_said(outcome)}", "failed", "red", "error")
    raise BatchError(
        f"{len(failed):,} of {len(volumes):,} volumes failed, the first is {_said(failed[0])}; correct what is wrong and "
        "run the same command with --resume"
    )


def _said(outcome: Outcome) -> str:
    """The volume, and what went wrong with it, which may name it already."""
    said, volume = _words(outcome.error), outcome.volume.settings.input
    return said if said.startswith((f"{volume} ", f"{volume}:")) else f"{volume}: {said}"


def _words(error: BaseException | None) -> str:
    return str(error) if isinstance(error, UnetEngineError) else f"unexpected {type(error).__name__}: {error}"


class _Teller:
    """Tells people and files, see `unet_engine.batches.batch.Observer`."""

    def __init__(
        self,
        console: Screen,
        ways: Ways,
        lines: Lines | None,
        metrics: Metrics | None,
        notice: Notice,
        say_json: Callable[[dict[str, Any]], None] | None,
        pages: Pages | None,
    ) -> None:
        self._console, self._ways, self._lines, self._metrics, self._say_json = console, ways, lines, metrics, say_json
        self._notice = notice
        self._pages = None if ways.dry_run else pages
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def note(self, volume: Volume, text: str) -> None:
        """Said once, whatever the number of volumes that it is true of."""
        with self._lock:
            if self._ways.verbose or text not in self._told:
                self._told.add(text)
                self._console.note(f"{_numbered(volume)} {text}")

    def planned(self, volume: Volume, prepared: Prepared, crew: Team) -> None:
        from unet_engine.commands import report

        if self._metrics:
            self._metrics.begun(crew)
        if self._pages:
            self._pages.planned(volume, prepared)
        with self._lock:
            if self._ways.verbose:
                self._console.say(f"{_numbered(volume)} {volume.settings.input}")
                self._console.pairs(report.plan_lines(prepared))

    def ended(self, outcome: Outcome) -> None:
        from unet_engine.batches.records import line_of

        volume = outcome.volume
        with self._lock:
            self._console.say(
                f"{_numbered(volume)} {_result(outcome, self._ways.priced)}", level="error" if outcome.error else "info"
            )
            if self._metrics:
                self._metrics.ended(outcome.status)
            facts = line_of(outcome, command())
            self._notice.add(facts)
            if self._lines and not self._ways.dry_run:
                self._lines.add(facts)
            if self._say_json:
                self._say_json(facts)
        if self._pages:
            self._pages.ended(outcome)


@dataclass
class Steps:
    """Tells people of runs that are one output, see `unet_engine.batches.batch.Observer`."""

    console: Screen
    tell: Callable[[str], None]
    pages: Pages | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def note(self, volume: Volume, text: str) -> None:
        with self._lock:
            if text not in self._told:
                self._told.add(text)
                self.tell(text)

    def planned(self, volume: Volume, prepared: Prepared, crew: Team) -> None:
        """What is planned of each is alike, and not told."""
        interruption.writing(prepared.survey.named)
        if self.pages:
            self.pages.planned(volume, prepared)

    def ended(self, outcome: Outcome) -> None:
        with self._lock:
            self.console.say(
                f"{_numbered(outcome.volume)} time point {outcome.volume.settings.timepoint}: {outcome.status}"
            )
        if self.pages:
            self.pages.ended(outcome)

    def reported(self, settings: Settings, result: Result) -> None:
        """Say where the report is; of what was complete before, and so was not run, it is made now."""
        if self.pages is None:
            return
        if not self.pages.is_written:
            from unet_engine.batches.times import first_of, times_of
            from unet_engine.prepare.prepare import prepare
            from unet_engine.prepare.survey import survey

            prepared = prepare(survey(first_of(settings)))
            if prepared.network:
                prepared.network.close()
            self.pages.made_later(result, prepared, times_of(settings))
        self.pages.done()
        self.console.say(f"report: {self.pages.path}")


def _numbered(volume: Volume) -> str:
    return f"[{volume.number}/{volume.of}]"


def _result(outcome: Outcome, priced: Callable[[Result], str]) -> str:
    from unet_engine.commands import report

    if outcome.error:
        return f"{outcome.volume.settings.input} failed: {_words(outcome.error)}"
    if outcome.status == "planned":
        return f"{outcome.volume.settings.input} would be written to {outcome.volume.out}"
    if outcome.result is None:
        return f"{outcome.volume.settings.input}: {outcome.status}; what is committed in {outcome.volume.out} stays"
    return report.result_line(outcome.result) + priced(outcome.result)
