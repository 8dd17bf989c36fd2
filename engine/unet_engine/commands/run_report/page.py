"""What `run --report` writes: one HTML file with all in it. No scripts, nothing loaded, no secrets."""

from __future__ import annotations

import html
import os
import platform
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from unet_engine.api import Result
from unet_engine.backends.base import Network
from unet_engine.commands import report
from unet_engine.commands.price import Rate
from unet_engine.commands.run_report.pictures import Picture, pictures
from unet_engine.errors import OutputError, SettingsError, UnetEngineError, first_line
from unet_engine.output.colours import colour_of
from unet_engine.paths import is_local
from unet_engine.prepare.prepare import Prepared
from unet_engine.prepare.seams import NEAR, Seams, seams
from unet_engine.profiling import tracing
from unet_engine.redaction import redacted
from unet_engine.settings.settings import Settings
from unet_engine.units import Tell, size, span
from unet_engine.version import version_of

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2330}
table{border-collapse:collapse;margin:1rem 0;font-size:14px;display:block;overflow-x:auto}th,td{padding:.2rem .7rem;vertical-align:top;
border-bottom:1px solid #d5dae2;text-align:left;overflow-wrap:anywhere}th{font-weight:600;white-space:nowrap}
code{background:#f3f5f8;padding:.1rem .3rem}svg{max-width:100%;height:auto}
td{min-width:4.5rem}.list td:first-child{min-width:0}
.list td:nth-child(n+2):nth-child(-n+4){min-width:11rem}.list td:nth-child(6){min-width:9rem}
figure{display:inline-block;margin:.5rem 1rem .5rem 0}
td figure{margin:0;white-space:nowrap}td img{max-height:7rem}
figcaption{color:#5a6474;font-size:13px}img{image-rendering:pixelated;max-width:100%;margin-right:4px}
.key i{display:inline-block;width:12px;height:12px;margin:0 .3rem 0 1rem}"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def place(asked: str) -> Path:
    """Where the report that ``--report`` names goes; the place is tried. Raises `SettingsError` or `OutputError`."""
    if not asked.strip() or not is_local(asked):
        raise SettingsError(f"--report {asked}: a report is written to a local disk; give NAME.html")
    path = Path(asked)
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise SettingsError(f"--report {asked}: it is one HTML file; give NAME.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"--report {asked} cannot be written: {error.strerror}; give another place") from error
    return path


@dataclass(frozen=True)
class Page:
    """The report of one run."""

    path: Path
    command: str
    asked_for_profile: bool
    title: str | None = None
    """What the result is called, where that is not where it lies."""

    @classmethod
    def of(cls, asked: str, settings: Settings, command: str) -> Page:
        """The page that ``--report`` names. Raises what `place` does."""
        return cls(place(asked), command, settings.profile is not None)

    @contextmanager
    def profiled(self, settings: Settings) -> Iterator[Settings]:
        """The settings with which a run tells where its time goes; files of a profile that nobody asked for go."""
        if self.asked_for_profile:
            yield settings
            return
        with tempfile.TemporaryDirectory(prefix="unet-engine-") as folder:
            yield settings.model_copy(update={"profile": folder})

    def write(
        self,
        prepared: Prepared,
        result: Result,
        notes: Sequence[str],
        rate: Rate | None,
        network: Network | str | None,
        tell: Tell,
    ) -> str:
        """Measure the seams, which closes `network`, draw, and write the file; returns the first picture. What of this
        fails is told in the page. network: a text says why there is none. Raises `OutputError` where the file cannot be
        written."""
        if not isinstance(network, str):
            tell("measuring seams and drawing pictures for the report")
        try:
            measured = _tried(lambda: _seams(prepared, network))
        finally:
            if network and not isinstance(network, str):
                network.close()
        parts = [*_head(self.command, result, rate, self.title or result.out), *_plan(prepared), *_time(result)]
        parts += [*_proofs(prepared, measured), *notes_of([*notes, *result.notes])]
        places = [*_pictures(prepared, result)]
        save(self.path, [*parts, *places])
        return next((part for part in places if part.startswith("<figure>")), "")


def save(path: Path, parts: Sequence[str]) -> None:
    """Write the page that `parts` are, which appears whole. Raises `OutputError`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text("\n".join([*parts, "</html>", ""]), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; the output itself is safe: use --resume with another --report"
        ) from error


def _seams(prepared: Prepared, network: Network | str | None) -> Seams | str:
    if isinstance(network, str):
        return network
    if network is None:
        return "the network is not open in this process; run again with --resume, without a cluster"
    return seams(prepared, network)


def _tried(measure: Callable[[], Seams | str]) -> Seams | str:
    try:
        return measure()
    except UnetEngineError as error:
        return str(error)
    except Exception as error:  # the run is done, and its report says what is wrong with this part of it
        return f"{type(error).__name__}: {first_line(error)}"


def text(value: object) -> str:
    """As HTML shows it, without secrets."""
    return html.escape(str(redacted(str(value))))


def table(rows: Sequence[tuple[str, object]]) -> str:
    return "<table>" + "".join(f"<tr><th>{text(name)}<td>{text(value)}</tr>" for name, value in rows) + "</table>"


def beginning(title: str, command: str) -> Iterator[str]:
    """What every report begins with."""
    yield (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width">'
        f"<title>{text(title)}</title><style>{_STYLE}</style><h1>{text(title)}</h1>"
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    yield f"<p>unet-engine {text(version_of('unet-engine'))} on {text(platform.node())}, {now}.</p>"
    yield f"<p><code>{text(command)}</code></p>"


def _head(command: str, result: Result, rate: Rate | None, title: str) -> Iterator[str]:
    state = "complete" if result.complete else f"part {result.part} done, others are not"
    yield from beginning(f"{title}: {state}", command)
    if result.already_complete:
        yield "<p>The output was complete before; nothing was run for this report but what it measures itself.</p>"
        return
    rows: list[tuple[str, object]] = [
        ("time", f"{span(result.seconds)} without planning, {result.voxels_per_second / 1e6:.3g} Mvoxel/s"),
        ("windows", f"{result.windows_inferred:,} inferred, {result.windows_skipped:,} skipped"),
        ("memory", f"{size(result.peak_rss_bytes)} at most, {size(result.predicted_rss_bytes)} predicted"),
        ("moved", f"{size(result.bytes_read)} read, {size(result.bytes_written)} written"),
        ("processors", ", ".join(result.processors) or "unknown"),
        ("energy", _energy(result)),
    ]
    if result.workers:
        rows.append(
            ("workers", f"{result.workers}, {result.workers_lost} lost, {result.runs_repeated} bundles repeated")
        )
    if rate:
        rows.append(("price", rate.line(result.seconds, result.voxels)))
    if result.objects is not None:
        rows.append(("objects", f"{result.objects:,}"))
    yield table(rows)


def _energy(result: Result) -> str:
    if not result.joules:
        return "not known: no counter of this machine (RAPL, NVML) can be read"
    total = sum(result.joules.values())
    parts = ", ".join(f"{name} {joules:,.0f} J" for name, joules in result.joules.items())
    per = f", {total / 3.6e6 / result.voxels * 1e12:.3g} kWh a teravoxel" if result.voxels else ""
    return f"{total:,.0f} J{per} ({parts}; all that ran on this machine meanwhile)"


def _plan(prepared: Prepared) -> Iterator[str]:
    yield "<h2>What ran</h2>"
    rows = report.plan_lines(prepared)
    model = prepared.job.model
    rows.insert(2, ("model", f"{model.spec.name}, {model.path.name}, SHA-256 {model.sha256}"))
    if model.credit:
        rows[3:3] = [(name.replace("_", " "), said) for name, said in model.credit.lines().items() if said]
    yield table(rows)


def _time(result: Result) -> Iterator[str]:
    if not result.stages:
        return
    yield "<h2>Where the time went</h2>"
    yield tracing.bars(result.stages)
    heading, rows = tracing.table(result.stages)
    lines = "".join("<tr>" + "".join(f"<td>{text(cell)}" for cell in row) + "</tr>" for row in rows)
    yield f"<table><tr>{''.join(f'<th>{text(cell)}' for cell in heading)}</tr>{lines}</table>"


def _proofs(prepared: Prepared, measured: Seams | str) -> Iterator[str]:
    yield "<h2>What is proved</h2>"
    job, rows = prepared.job, list[tuple[str, object]]()
    figures = [f"{v.precision} on {v.backend} ({v.library}): {v.reason}" for n in job.model.networks for v in n.verdicts
               if v.precision == job.setup.precision and v.passed]  # fmt: skip
    if job.setup.precision == "fp32":
        rows.append(("precision", "fp32, which is what lower precision is compared with"))
    else:
        rows.append(
            ("precision", "; ".join(figures) or f"{job.setup.precision} was asked for, and no verdict is stored")
        )
    if prepared.overlap:
        rows.append(("overlap", prepared.overlap.line))
    if prepared.tiling:
        rows.append(("tiling", prepared.tiling.line))
    if isinstance(measured, str):
        rows.append(("seams", f"not measured: {measured}"))
        yield table(rows)
        return
    rows += _about(measured)
    yield table(rows)
    yield (
        "<p>Seams: the same regions inferred with windows that begin elsewhere. Where both give the same label, nothing of "
        "the result hangs on where windows happen to lie.</p>"
    )


def _about(found: Seams) -> list[tuple[str, object]]:
    dice = ", ".join(f"{name} {value:.4f}" for name, value in found.dice.items() if value is not None)
    near, far = ("none there" if part is None else f"{part:.3%}" for part in (found.near, found.far))
    return [
        ("translation consistency", f"{found.agreement:.5f} of the labels, windows moved by {found.offset} voxels"),
        ("Dice of either grid", dice or "no labels"),
        ("labels that differ", f"{near} within {NEAR} voxels of a window's end, {far} elsewhere"),
        ("measured on", f"{found.voxels:,} voxels of {len(found.regions)} region(s), {found.windows:,} windows inferred: "
                        + "; ".join(found.regions)),
    ]  # fmt: skip


def notes_of(notes: Sequence[str]) -> Iterator[str]:
    told = list(dict.fromkeys(notes))
    if told:
        yield "<h2>Notes</h2><ul>" + "".join(f"<li>{text(note)}" for note in told) + "</ul>"


def _pictures(prepared: Prepared, result: Result) -> Iterator[str]:
    yield "<h2>Places</h2>"
    if not result.complete:
        yield "<p>Pictures are drawn once all parts are there: run again with --resume and --report.</p>"
        return
    yield "<p>The first three are drawn blindly, the others from places with more than one value. Left the volume, right the result.</p>"
    yield _key(prepared)
    try:
        for picture in pictures(prepared, result.out, result.digest):
            yield figure(picture)
    except Exception as error:  # the result is there, whatever keeps its picture from being drawn
        yield f"<p>No more pictures: {text(first_line(error))}</p>"


def figure(picture: Picture) -> str:
    return (
        f"<figure>{_image(picture.voxels, 'the volume')}{_image(picture.result, 'the result')}"
        f"<figcaption>{text(picture.title)}</figcaption></figure>"
    )


def _key(prepared: Prepared) -> str:
    spec = prepared.job.model.spec
    if prepared.survey.objects or not spec.class_names or spec.channels in ("image", "offsets"):
        return ""
    parts = []
    for label, name in enumerate(spec.class_names[:40]):
        colour = "#{:02x}{:02x}{:02x}".format(*colour_of(label, spec.colours or ()))
        parts.append(f'<i style="background:{colour}"></i>{text(name)}')
    return f"<p class=key>{''.join(parts)}</p>"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/png;base64,{b64encode(png).decode()}">'
