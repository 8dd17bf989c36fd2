"""The result of a sweep as values for JSON, and as a table for people."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unet_engine.commands.bench.sweep import Outcome, Row, options_of, score
from unet_engine.commands.bench.work import traffic
from unet_engine.units import size, times


@dataclass(frozen=True)
class Limits:
    """What the machine reached in this very run."""

    device: str
    flops: dict[str, float]
    """Operations per second of matrix products, by precision."""
    bytes: float | None
    """Bytes read and written per second by copying."""
    why: str = ""


def larger(one: Limits, other: Limits) -> Limits:
    """The higher rates of two measurements of one device."""
    flops = {p: max(one.flops.get(p, 0.0), other.flops.get(p, 0.0)) for p in {**one.flops, **other.flops}}
    copied = max((b for b in (one.bytes, other.bytes) if b is not None), default=None)
    return Limits(one.device, flops, copied, one.why or other.why)


def facts(
    outcomes: Sequence[Outcome], limits: Sequence[Limits], machine: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "machine": machine,
        "limits": [
            {"device": l.device, "operations_per_second": l.flops, "copied_bytes_per_second": l.bytes, "why": l.why}
            for l in limits
        ],
        "seconds": round(seconds, 2),
        "sweeps": [_sweep(outcome, limits) for outcome in outcomes],
    }


def _sweep(outcome: Outcome, limits: Sequence[Limits]) -> dict[str, Any]:
    best = outcome.best
    return {
        "name": outcome.name,
        "model": str(outcome.model.path),
        "volume": outcome.volume,
        "shape": list(outcome.field.scan or outcome.field.shape),
        "overlap": outcome.field.overlap,
        "poses": [str(pose) for pose in outcome.field.poses],
        "region": outcome.region,
        "seconds": round(outcome.seconds, 2),
        "rows": [_row(outcome, row, limits) for row in outcome.rows],
        "best": _row(outcome, best, limits) if best else None,
        "command": command(outcome, best) if best else None,
        "notes": outcome.notes,
    }


def _row(outcome: Outcome, row: Row, limits: Sequence[Limits]) -> dict[str, Any]:
    c = row.configuration
    flops = outcome.field.flops(c.window)
    moved = traffic(outcome.model, c.window) if row.samples else None
    peak = next((l.flops.get(c.group.precision) for l in limits if l.device == c.group.device), None)
    found: dict[str, Any] = {
        "device": c.group.device,
        "backend": c.group.backend,
        "precision": c.group.precision,
        "window": list(c.window),
        "batch": c.batch,
        "proved": row.proved,
        "note": row.note,
        "windows_per_second": _spread(row.samples),
        "bare_voxels_per_second": outcome.worth(row),
        "operations_per_window": flops,
        "operations_per_second": flops * row.bare if flops and row.bare else None,
        "bytes_per_window": moved.bytes(c.group.precision) if moved else None,
        "fraction_of_peak": flops * row.bare / peak if flops and row.bare and peak else None,
        "bare_peak_rss_bytes": row.peak_rss_bytes,
        "end_to_end": None,
    }
    if row.end_to_end:
        runs = row.end_to_end.runs
        found["end_to_end"] = {
            "voxels_per_second": score(outcome, row),
            "efficiency": _spread(row.end_to_end.efficiencies),
            "region_voxels_per_second": _spread([run.facts["voxels_per_second"] for run in runs]),
            "windows": runs[0].facts["windows_inferred"],
            "process_seconds": _spread([run.seconds for run in runs]),
            "peak_rss_bytes": max(run.facts["peak_rss_bytes"] for run in runs),
            "predicted_rss_bytes": runs[0].facts["predicted_rss_bytes"],
            "stages": runs[0].facts["stages"],
            "memory": [[round(second, 3), held] for second, held in runs[0].memory],
        }
    return found


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "samples": list(values)}


def command(outcome: Outcome, row: Row) -> str:
    """The command that runs the user's volume as `row` was."""
    return shlex.join(["unet-engine", "run", "--in", outcome.volume, *outcome.options, *options_of(row.configuration)])


# --- for people ---

HEADING = (
    "back end", "precision", "window", "batch", "windows/s bare", "Mvoxel/s bare", "Mvoxel/s end to end", "efficiency",
    "of peak", "memory", "",
)  # fmt: skip


def table(sweep: dict[str, Any], *, most: int = 16) -> list[tuple[str, ...]]:
    """Rows of text under `HEADING`, the fastest first; what could not be measured comes last. At most `most`, and all
    that was run."""
    rows = sweep["rows"]
    shown = [r for i, r in enumerate(rows) if i < most or r["end_to_end"] or r["windows_per_second"] is None]
    return [_cells(row, sweep) for row in shown]


def _cells(row: dict[str, Any], sweep: dict[str, Any]) -> tuple[str, ...]:
    run, bare = row["end_to_end"], row["windows_per_second"]
    device = "" if row["device"] == "cpu" else f" {row['device']}"
    held = run["peak_rss_bytes"] if run else row["bare_peak_rss_bytes"]
    best = sweep["best"] is not None and all(
        row[k] == sweep["best"][k] for k in ("device", "backend", "precision", "window", "batch")
    )
    return (
        row["backend"] + device,
        row["precision"],
        times(row["window"]),
        str(row["batch"]),
        _number(bare),
        "–" if row["bare_voxels_per_second"] is None else f"{row['bare_voxels_per_second'] / 1e6:.3g}",
        "–" if run is None else f"{run['voxels_per_second'] / 1e6:.3g}",
        "–" if run is None else _number(run["efficiency"]),
        "–" if row["fraction_of_peak"] is None else f"{row['fraction_of_peak']:.0%}",
        "–" if held is None else size(held) + ("" if run else " bare"),
        "best" if best else row["note"].partition(";")[0].partition(":")[0],
    )


def _number(spread: dict[str, Any] | None) -> str:
    """Median (least to most)."""
    if spread is None:
        return "–"
    if len(spread["samples"]) == 1:
        return f"{spread['median']:.3g}"
    return f"{spread['median']:.3g} ({spread['least']:.3g} to {spread['most']:.3g})"


def limits_line(limits: Limits) -> str:
    """What the machine reached, in one line."""
    if limits.why:
        return f"{limits.device}: {limits.why}"
    products = ", ".join(
        f"{rate / 1e9:.0f} {'GOP/s' if p == 'int8' else 'GFLOP/s'} in {p}" for p, rate in limits.flops.items()
    )
    copied = "" if limits.bytes is None else f"; copies {limits.bytes / 1e9:.1f} GB/s"
    return f"{limits.device}: matrix products {products or 'not measured'}{copied}"
