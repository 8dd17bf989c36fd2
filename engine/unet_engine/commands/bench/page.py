"""The result of a sweep as one HTML page: tables, and charts as SVG. No scripts, nothing loaded."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unet_engine.commands.bench.report import HEADING, table
from unet_engine.errors import OutputError
from unet_engine.profiling import charts
from unet_engine.profiling.charts import Axes, Line
from unet_engine.profiling.stages import NAMES
from unet_engine.units import size, times

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2330}
table{border-collapse:collapse;margin:1rem 0;font-size:14px}th,td{padding:.25rem .7rem;
border-bottom:1px solid #d5dae2;text-align:left}
tr.best{background:#e8f4ea}code,pre{background:#f3f5f8;padding:.1rem .3rem}pre{padding:.6rem;overflow-x:auto}
svg{max-width:100%;height:auto}figure{margin:1rem 0}figcaption{color:#5a6474}"""


def write_page(path: Path, facts: dict[str, Any]) -> None:
    """Raises `OutputError` where it cannot be written."""
    try:
        path.write_text(page(facts), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another --html") from error


def page(facts: dict[str, Any]) -> str:
    """`unet_engine.commands.bench.report.facts` as HTML."""
    machine = facts["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>unet-engine bench</title><style>{_STYLE}</style>",
        f"<h1>unet-engine bench</h1><p>{machine['cores']} cores ({_text(machine['processor'])}), "
        f"{size(machine['memory'])} free, {machine['gpus']} GPUs, {_text(machine['system'])}; {_text(versions)}. Took "
        f"{facts['seconds']:.0f} s. Medians, least to most in brackets; configurations were measured in turn.</p>",
        _limits(facts["limits"]),
    ]
    for sweep in facts["sweeps"]:
        parts += [f"<h2>{_text(sweep['name'])}</h2>", *_sweep(sweep, facts["limits"])]
    if facts.get("tilings"):
        parts += ["<h2>Tilings</h2>", *_tilings(facts["tilings"])]
    return "\n".join([*parts, "</html>", ""])


def _limits(limits: list[dict[str, Any]]) -> str:
    rows = []
    for device in limits:
        rates = "".join(f"<td>{rate / 1e9:.1f} in {p}" for p, rate in device["operations_per_second"].items())
        copied = device["copied_bytes_per_second"]
        rows.append(f"<tr><td>{device['device']}<td>{'–' if copied is None else f'{copied / 1e9:.1f}'}{rates}</tr>")
    return f"<table><tr><th>device<th>copying, GB/s<th>matrix products, GOP/s</tr>{''.join(rows)}</table>"


def _sweep(sweep: dict[str, Any], limits: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"<p><code>{_text(sweep['model'])}</code> on {times(sweep['shape'])} voxels, overlap {sweep['overlap']:g}.</p>"
    )
    head = "".join(f"<th>{name}" for name in HEADING)
    rows = []
    for cells in table(sweep, most=60):
        rows.append(
            f"<tr{' class=best' if cells[-1] == 'best' else ''}>{''.join(f'<td>{_text(c)}' for c in cells)}</tr>"
        )
    yield f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    if sweep["command"]:
        yield f"<p>Best choice:</p><pre>{_text(sweep['command'])}</pre>"
    yield "".join(f"<p>{_text(note)}.</p>" for note in sweep["notes"])
    yield _figure(
        by_window(sweep),
        "Bare network: voxels of the whole volume per second, against the window. Bars: least to most.",
    )
    yield _figure(roofline(sweep, limits), _ROOFLINE)
    if stages := stage_bars(sweep):
        yield _figure(
            stages, "Where the thread that feeds the device spent the first run from end to end of each; width is time."
        )
        yield _figure(
            memory(sweep),
            "Memory of the process over that run, with start and loading; dashed: what the plan predicted.",
        )


def _tilings(choice: dict[str, Any]) -> Iterator[str]:
    yield f"<p>{_text(choice['line'])}.</p>"
    rows = [
        f"<tr{' class=best' if _taken(point, choice) else ''}><td>{point['work']:.2f}<td>{point['agreement']:.5f}"
        f"<td>{point['least_dice']:.5f}<td>{times(point['window'])}<td>{times(point['shared'])}"
        f"<td>{'passes' if point['passed'] else 'fails'}</tr>"
        for point in choice["frontier"]
    ]
    head = "".join(
        f"<th>{name}" for name in ("voxels computed for one", "agreement", "least Dice", "window", "shared", "")
    )
    yield f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    if choice["frontier"]:
        yield _figure(by_tiling(choice), "Labels that differ, of a hundred thousand, against what a tiling computes.")


def _taken(point: dict[str, Any], choice: dict[str, Any]) -> bool:
    return (point["window"], point["shared"]) == (choice["window"], choice["shared"])


def by_tiling(choice: dict[str, Any]) -> str:
    """Labels that differ against voxels computed: what passes, what fails, and the model's own tiling."""
    found: dict[str, list[tuple[float, float]]] = {"passes": [], "fails": []}
    for point in choice["frontier"]:
        found["passes" if point["passed"] else "fails"].append(_cost(point["work"], point["agreement"]))
    if choice["learnt"]:
        own = _cost(choice["work_of_default"], choice["learnt"]["bar_agreement"])
        found["the model's own, overlap 0.5"] = [own]
    drawn = [Line(name, points, joined=False) for name, points in found.items() if points]
    return charts.lines(drawn, Axes("voxels computed for one", "labels that differ, of 100,000", log_y=True))


def _cost(work: float, agreement: float) -> tuple[float, float]:
    return work, max(0.1, 1e5 * (1 - agreement))


_ROOFLINE = (
    "Roofline. Lines: what copying and matrix products reached in this run. Points: the bare network, by the "
    "operations per byte that its "
    "layers read and write if no cache keeps anything; caches let points lie above the slope."
)


def _label(row: dict[str, Any]) -> str:
    device = "" if row["device"] == "cpu" else f" {row['device']}"
    return f"{row['backend']}{device} {row['precision']}" + (f" ×{row['batch']}" if row["batch"] > 1 else "")


def _measured(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in sweep["rows"] if row["windows_per_second"]]


def by_window(sweep: dict[str, Any]) -> str:
    """Throughput against the edge of the window (the geometric mean of its sizes)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _measured(sweep):
        found.setdefault(_label(row), []).append(row)
    drawn = []
    for name, rows in found.items():
        rows.sort(key=lambda row: _edge(row["window"]))
        scale = [row["bare_voxels_per_second"] / row["windows_per_second"]["median"] / 1e6 for row in rows]
        drawn.append(
            Line(
                name,
                [(_edge(row["window"]), row["bare_voxels_per_second"] / 1e6) for row in rows],
                [
                    (row["windows_per_second"]["least"] * s, row["windows_per_second"]["most"] * s)
                    for row, s in zip(rows, scale, strict=True)
                ],
            )
        )
    return charts.lines(drawn, Axes("edge of the window, voxels", "Mvoxel/s"))


def _edge(window: list[int]) -> float:
    product = 1.0
    for n in window:
        product *= n
    return float(product ** (1 / len(window)))


def roofline(sweep: dict[str, Any], limits: list[dict[str, Any]]) -> str:
    """Operations per second against operations per byte, below what the machine reaches."""
    rows = [r for r in _measured(sweep) if r["operations_per_second"] and r["bytes_per_window"]]
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        place = (row["operations_per_window"] / row["bytes_per_window"], row["operations_per_second"] / 1e9)
        points.setdefault(_label(row), []).append(place)
    drawn = [Line(name, places, joined=False) for name, places in points.items()]
    across = [x for places in points.values() for x, _ in places] or [1.0]
    for device in limits:
        copied = device["copied_bytes_per_second"]
        for precision, rate in device["operations_per_second"].items():
            if copied is None:
                continue
            bend, roof = rate / copied, rate / 1e9
            low, high = min(*across, bend) / 2, max(*across, bend) * 2
            drawn.append(
                Line(
                    f"{device['device']} {precision}",
                    [(low, low * copied / 1e9), (bend, roof), (high, roof)],
                    dashed=True,
                )
            )
    return charts.lines(drawn, Axes("operations per byte", "GOP/s", log_x=True, log_y=True))


def stage_bars(sweep: dict[str, Any]) -> str:
    """A stacked bar of the feeding thread per configuration that was run; empty where none was."""
    rows = {}
    for row in sweep["rows"]:
        if row["end_to_end"] and (stages := row["end_to_end"]["stages"]):
            device = {name: v for name, v in stages["device"].items() if name != "threads"}
            rows[f"{_label(row)} {times(row['window'])}"] = device
    return charts.stacked(rows, NAMES, "s") if rows else ""


def memory(sweep: dict[str, Any]) -> str:
    """Resident MiB of each configuration that was run, over the seconds of its first run."""
    drawn = []
    for row in sweep["rows"]:
        if run := row["end_to_end"]:
            name = f"{_label(row)} {times(row['window'])}"
            drawn.append(Line(name, [(t, held / 2**20) for t, held in run["memory"]]))
            ends = [run["memory"][0][0], run["memory"][-1][0]] if run["memory"] else []
            drawn.append(
                Line(f"{name}, predicted", [(t, run["predicted_rss_bytes"] / 2**20) for t in ends], dashed=True)
            )
    return charts.lines(drawn, Axes("seconds", "MiB"))


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _text(text: Any) -> str:
    return html.escape(str(text))
