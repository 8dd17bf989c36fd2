"""What people see: the plan as a table, progress while it runs, the result. All of it goes to stderr but for `--json`
and tables asked for."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from math import prod
from types import TracebackType
from typing import Any

from unet_engine.api import Result
from unet_engine.commands.screen import Screen
from unet_engine.execution.team import Team
from unet_engine.plan.fetching import reads_along
from unet_engine.plan.plan import Plan
from unet_engine.prepare import coarse_choice, streams_choice, tiling_choice
from unet_engine.prepare.decoding import Reading
from unet_engine.prepare.keeping import fetch_factor, fetched_at_most, unpack_factor
from unet_engine.prepare.overlap_choice import facts
from unet_engine.prepare.prepare import Prepared
from unet_engine.profiling import tracing
from unet_engine.stitching import operations
from unet_engine.units import size, span, times
from unet_engine.volumes.turned import as_stored

LINE_EVERY = 10.0
"""Seconds between plain progress lines, where stderr is no terminal."""


def bytes_read(prepared: Prepared, chunks: tuple[int, ...]) -> int:
    """Bytes of the input that all blocks of the plan read together, in whole cells of `chunks` (1 along each axis: just
    the boxes)."""
    plan, total = prepared.job.plan, 0
    for box in plan.share:  # its columns are the products of spans along the axes, and so are their voxels
        total += prod(
            sum(_read_along(plan, a, lo, hi, chunks[a]) for lo, hi in spans)
            for a, spans in enumerate(plan.column_spans(box))
        )
    return total * prepared.survey.scan.voxel_bytes


def _fetched(prepared: Prepared) -> dict[str, Any]:
    """Of a volume behind a network: how often each chunk is fetched, what is kept for that, and how many processes do so
    each for itself (then also how often at most, whichever of them gets a block). Of one that is unpacked in pieces: how
    often each of these is, and the same."""
    plan, scan, kept = prepared.job.plan, prepared.survey.scan, prepared.job.kept
    often = unpack_factor(scan, plan, kept)
    if often is not None:
        return {"bytes_kept": kept, "unpack_factor": round(often, 3)}
    workers = prepared.cluster.workers if prepared.cluster else 0
    factor = fetch_factor(scan, plan, kept, workers, prepared.samples, prepared.job.abreast)
    if factor is None:
        return {}
    blocks = zip(plan.block_range.lo, plan.block_range.hi, strict=True)
    most = fetched_at_most(scan, plan, kept, workers, prepared.samples) if workers > 1 else None
    return {
        **({} if most is None else {"fetched_at_most": round(most, 3)}),
        "bytes_kept": kept,
        "fetch_factor": round(factor, 3),
        "fetch_packed": round(scan.packed, 3),
        "fetch_processes": workers or 1,
        "tubes": [len(plan.tube_spans(a, lo, hi)) for a, (lo, hi) in enumerate(blocks)],
    }


def _fetch_row(f: dict[str, Any], pieces: tuple[int, ...] | None) -> list[tuple[str, str]]:
    if "unpack_factor" in f and pieces:
        said = f"each piece of {times(pieces)} voxels {f['unpack_factor']} times, {size(f['bytes_kept'])} are kept"
        return [("unpacked", said)]
    if "fetch_factor" not in f:
        return []
    packed = f", packed to {f['fetch_packed']:.0%}" if f["fetch_packed"] < 1 else ""
    order = f", in tubes of blocks, {times(f['tubes'])}" if prod(f["tubes"]) > 1 else ""
    most, each = f.get("fetched_at_most"), ""
    if most and most > f["fetch_factor"]:
        each = f" where each worker does its share, {most} at most"
    elif f["fetch_processes"] > 1:
        each = " at most, as each worker fetches what it reads"
    elif len(f["device"]) > 1:
        each = " or so, as devices share what is kept"
    return [("fetch", f"each chunk {f['fetch_factor']} times{each}, {size(f['bytes_kept'])} are kept{packed}{order}")]


def _read_along(plan: Plan, a: int, lo: int, hi: int, chunk: int) -> int:
    """Voxels along axis `a` that blocks `lo` to `hi` of one column read, in whole cells of `chunk`."""
    size = plan.image[a].source if plan.image else plan.axes[a].size
    total = 0
    for start, stop in reads_along(plan, a, lo, hi):
        total += min(size, -(-stop // chunk) * chunk) - start // chunk * chunk
    return total


def plan_facts(prepared: Prepared) -> dict[str, Any]:
    """The plan as plain values, for tables and JSON."""
    plan, job, memory = prepared.job.plan, prepared.job, prepared.job.plan.memory
    volume, crop = prepared.survey.scan, prepared.survey.crop
    read = bytes_read(prepared, (1,) * len(plan.axes))
    decoded = bytes_read(prepared, volume.chunks)
    once = max(1, plan.voxel_count) * volume.voxel_bytes
    devices = prepared.cluster.workers if prepared.cluster else len(prepared.survey.devices)
    flops = plan.flops_per_window
    written = plan.voxel_count * job.layout.voxel_bytes
    return {
        "input": job.volume,
        "shape": list(as_stored(prepared.survey.scan).shape),
        "axes": prepared.survey.scan.axes,
        "dtype": str(prepared.survey.scan.dtype),
        "roi": str(prepared.survey.asked.shift(crop.lo) if prepared.survey.asked and crop else plan.roi),
        "out": prepared.survey.named,
        "output": job.kind,
        "output_dtype": job.layout.dtype,
        "digest": plan.digest,
        "backend": job.backend,
        "device": list(prepared.survey.devices),
        "precision": job.setup.precision,
        "stitching": operations.IMPLEMENTATION,
        "normalization": str(job.model.spec.normalization),
        **job.scaling.facts(),
        "mask": job.mask,
        "outside": None if job.outside is None else [f"{value:g}" for value in job.outside],
        "window": list(job.setup.window),
        "stride": [a.stride for a in plan.axes],
        "windows": list(plan.window_range.shape),
        "windows_planned": plan.call_count,
        "poses": [str(pose) for pose in job.poses],
        "members": [{"name": n.label, "sha256": n.sha256, "share": s}
                    for n, s in zip(job.model.networks, job.model.shares, strict=True)] if job.model.members else None,
        "block_windows": list(plan.block),
        "blocks": list(plan.block_range.shape),
        "blocks_planned": plan.block_count,
        "chunk": list(plan.chunk),
        "columns": plan.column_count,
        "seam_factor": round(plan.seam_factor, 4),
        "flops": None if flops is None else flops * plan.call_count,
        "bytes_read": read,
        "read_factor": round(read / once, 3),
        "bytes_decoded": decoded,
        "decode_factor": round(decoded / once, 3),
        **_fetched(prepared),
        "bytes_written": written,
        "memory": {"base": memory.base, "raw": memory.raw, "sums": memory.sums, "halos": memory.halos,
                   "commit": memory.commit, "total": memory.total, "budget": prepared.budget},
        "device_memory": None if prepared.device_memory is None else asdict(prepared.device_memory),
        "reading": _rates(prepared.reading),
        "batch": job.setup.batch,
        "seconds_per_window": prepared.seconds_per_window,
        "seconds": round(prepared.seconds_per_window * plan.call_count / devices, 3),
        "overlap_choice": facts(prepared.overlap),
        "tiling_choice": tiling_choice.facts(prepared.tiling),
        "coarse_choice": coarse_choice.told(prepared.coarse),
        "streams_choice": streams_choice.facts(prepared.streams),
        "notes": list(prepared.notes),
    }  # fmt: skip


def _rates(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    rates = {"needed_gb_per_second": reading.needed / 1e9, "found_gb_per_second": reading.found / 1e9}
    return {
        **{key: round(value, 4) for key, value in rates.items()},
        "threads": reading.threads,
        "cores": reading.cores,
    }


def device_lines(prepared: Prepared) -> list[tuple[str, str]]:
    """What a GPU needs: its memory, and voxels fast enough."""
    memory, rates = prepared.device_memory, prepared.reading
    if memory is None or rates is None:
        return []
    parts = (
        f"network {size(memory.network)}, raw {size(memory.raw)}, sums {size(memory.sums)}, halos {size(memory.halos)}, "
        f"halos that stay {size(memory.kept)}"
        + (f", the grid of the network {size(memory.image)}" if memory.image else "")
        + (f", the grid of the output {size(memory.grid)}" if memory.grid else "")
    )
    slow = "" if rates.keeps_up else ": the device will wait for voxels"
    return [
        (
            "device",
            f"{size(memory.total)} of its memory: {parts}, writing {size(memory.out)}; {prepared.job.setup.batch} "
            "windows a batch",
        ),
        (
            "decoding",
            f"{rates.needed / 1e9:.3g} GB/s needed, {rates.found / 1e9:.3g} GB/s found on {rates.cores} core(s), "
            f"{rates.threads} thread(s) for each of {prepared.job.readers} block(s) read at a time{slow}",
        ),
    ]


def _stride(plan: Plan) -> str:
    shortest, longest = (times([getattr(axis, name) for axis in plan.axes]) for name in ("stride", "longest"))
    return f"stride {shortest}" + ("" if shortest == longest else f" to {longest}")


def plan_lines(prepared: Prepared) -> list[tuple[str, str]]:
    f, plan, m = plan_facts(prepared), prepared.job.plan, prepared.job.plan.memory
    flops = (
        "unknown" if f["flops"] is None else f"{f['flops'] / 1e12:.3g} TFLOP, {plan.flops_per_window or 0:,} per window"
    )
    return [
        ("input", f"{f['input']}  {f['axes']} {times(prepared.survey.scan.stored_shape)} {f['dtype']}"),
        ("region", f"{plan.names} {f['roi']}"),
        ("network", f"{prepared.job.model.path.name} on {f['backend']} ({', '.join(f['device'])}), {f['precision']}"),
        ("normalisation", _normalisation(f)),
        *([("outside", f"{', '.join(f['outside'][:8])} is written there")] if f["outside"] else []),
        ("window", f"{times(prepared.job.setup.window)}, {_stride(plan)}, {plan.axes[0].blend}, "
                   f"stitched in {f['stitching']}"),
        *_blended(prepared),
        *([("overlap", prepared.overlap.line)] if prepared.overlap else []),
        *([("tiling", prepared.tiling.line)] if prepared.tiling else []),
        *_frontier(prepared),
        *([("coarse", prepared.coarse.line)] if prepared.coarse else []),
        *_often(prepared),
        *([("streams", prepared.streams.line)] if prepared.streams else []),
        ("windows", f"{times(plan.window_range.shape)} = {plan.window_range.size:,}; with seams "
                    f"{plan.window_count:,} (×{f['seam_factor']})"),
        (
            "blocks",
            f"{times(plan.block_range.shape)} of {times(plan.block)} windows, {plan.column_count} column(s), "
            f"chunks {times(plan.chunk)}",
        ),
        *_who(prepared),
        ("work", flops),
        (
            "read",
            f"{size(f['bytes_read'])}, each voxel {f['read_factor']} times "
            f"({f['decode_factor']} times decoded, in whole chunks of {times(prepared.survey.scan.chunks)})",
        ),
        *_fetch_row(f, prepared.survey.scan.pieces),
        ("write", f"{size(f['bytes_written'])} of {f['output_dtype']} {f['output']} to {f['out']}"),
        ("memory", f"{size(m.total)} of {size(prepared.budget)}: network {size(m.base)}, raw {size(m.raw)}, "
                   f"sums {size(m.sums)}, halos {size(m.halos)}, writing {size(m.commit)}"),
        *device_lines(prepared),
        ("time", f"about {span(f['seconds'])} ({prepared.seconds_per_window * 1000:.1f} ms a window, just measured)"),
        ("digest", plan.digest),
    ]  # fmt: skip


def _blended(prepared: Prepared) -> list[tuple[str, str]]:
    """What is blended, where that is not what the network gives."""
    last = prepared.job.model.ahead
    said = f"the {last.features} features that the last layer makes {last.outputs} outputs of" if last else ""
    return [("blended", said)] if said else []


def _frontier(prepared: Prepared) -> list[tuple[str, str]]:
    """What other tilings cost and how they agree, where that was found out."""
    if not prepared.tiling or not prepared.tiling.frontier:
        return []
    heading = "voxels computed for one, labels that agree, least Dice:"
    return [("tilings", heading), *(("", line) for line in prepared.tiling.table)]


def _often(prepared: Prepared) -> list[tuple[str, str]]:
    """How often each window is inferred, where that is more than once."""
    plan, poses, model = prepared.job.plan, prepared.job.poses, prepared.job.model
    lines = []
    if model.members:
        parts = [f"{n.label} ({100 * s:.3g} %)" for n, s in zip(model.networks, model.shares, strict=True)]
        lines.append(("members", f"{len(parts)} networks: {', '.join(parts)}"))
    if plan.calls > 1:
        held = ", ".join(map(str, poses[:8])) + (", …" if len(poses) > 8 else "")
        shown = f": {held}" if len(poses) > 1 else ""
        lines.append(
            ("augmented", f"{plan.call_count:,} inferred, each window {plan.calls} times and the mean taken{shown}")
        )
    return lines


def _who(prepared: Prepared) -> list[tuple[str, str]]:
    lines = []
    if prepared.survey.settings.part:
        boxes = ", ".join(str(prepared.job.plan.region(box)) for box in prepared.job.plan.share) or "nothing"
        lines.append(("part", f"{prepared.survey.settings.part}: voxels {boxes}"))
    if prepared.cluster is None:
        return lines
    cluster = prepared.cluster
    blocks = f"{cluster.bundle_length} blocks" if cluster.bundle_length > 1 else "a block"
    shown = f"{cluster.workers} ({cluster.present} are there), handed {blocks} at a time; memory is that of each"
    return [*lines, ("workers", shown)]


def _normalisation(facts: dict[str, Any]) -> str:
    text = f"{facts['normalization']}: shift {_few(facts['shift'])}, scale {_few(facts['scale'])}"
    if clip := facts.get("clip"):
        text += f", clipped to {', '.join(f'{low:.4g} to {high:.4g}' for low, high in clip[:8])}"
    return text


def _few(values: list[float]) -> str:
    return ", ".join(f"{v:g}" for v in values[:4]) + (", …" if len(values) > 4 else "")


def result_line(result: Result) -> str:
    if result.already_complete:
        return f"{result.out}: already complete, nothing was done"
    left_out = f", {result.windows_skipped:,} skipped" if result.windows_skipped else ""
    return (
        f"{result.out}: {result.windows_inferred:,} windows{left_out} in {span(result.seconds)}, "
        f"{result.voxels_per_second / 1e6:.3g} Mvoxel/s, peak memory {size(result.peak_rss_bytes)} "
        f"({size(result.predicted_rss_bytes)} predicted)" + _by_workers(result)
    )


def print_stages(result: Result, console: Screen) -> None:
    """Where the time went, if that was asked for."""
    if not result.stages:
        return
    streams = {kind: row for kind, row in result.stages.items() if kind in tracing.STREAMS}
    threads = {kind: row for kind, row in result.stages.items() if kind not in streams}
    names = list(streams)
    parts = [threads, *({name: streams[name] for name in names[i : i + 3]} for i in range(0, len(names), 3))]
    from rich.table import Table

    for kinds in parts:  # side by side they are too wide for a terminal
        heading, rows = tracing.table(kinds)
        shown = Table(*heading, box=None)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    if result.profile:
        console.say(f"trace for ui.perfetto.dev, bars: {', '.join(result.profile)}")


def _by_workers(result: Result) -> str:
    if not result.workers:
        return ""
    lost = f", {result.workers_lost} lost, {result.runs_repeated} repeated" if result.workers_lost else ""
    return f" a worker; {result.workers} workers{lost}, {size(result.halo_bytes)} of halos sent"


class Watcher:
    """Progress of a run, read from its counters: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, prepared: Prepared, crew: Team, console: Screen) -> None:
        self._total = prepared.job.plan.call_count
        self._blocks = prepared.job.plan.block_count
        self._crew, self._console = crew, console
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._bar if console.is_terminal else self._lines, daemon=True)

    def __enter__(self) -> Watcher:
        self._begun = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _figures(self) -> tuple[int, str]:
        c, detail = self._crew.counters(), self._crew.detail()
        rate = c.voxels_written / max(1e-9, time.perf_counter() - self._begun) / 1e6
        moved = f"{size(c.bytes_read)} in, {size(c.bytes_written)} out"
        shown = f"{c.blocks:,}/{self._blocks:,} blocks, {rate:.3g} Mvoxel/s, {moved}"
        return c.inferred + c.skipped, f"{shown}, {detail}" if detail else shown

    def _bar(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} windows, {task.fields[figures]},", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
        )
        with Progress(*columns, console=self._console.rich) as bar:
            task = bar.add_task("windows", total=self._total, figures="")
            stopped = False
            while not stopped:
                stopped = self._stop.wait(0.2)
                done, figures = self._figures()
                bar.update(task, completed=done, figures=figures)

    def _lines(self) -> None:
        while not self._stop.wait(LINE_EVERY):
            done, figures = self._figures()
            elapsed = time.perf_counter() - self._begun
            left = span(elapsed / done * (self._total - done)) if done else "unknown"
            self._console.say(f"{done:,}/{self._total:,} windows, {figures}, {left} left")
