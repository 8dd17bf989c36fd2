"""How cost grows with the work: voxels, classes, overlap and workers, each beside the law that it should follow.

    python benchmarks/growth.py [--out growth.json] [--picture growth.png] [--only voxels classes overlap workers]
        [--quick]
    python benchmarks/growth.py --plot growth.json growth.png          draw again

voxels    1 to 512 times 128³ (the same stored chunks again, as hard links), fake back end; law: seconds a window as
          for the largest, memory as planned, until --memory bounds it
classes   2 to 512, fake back end; law: seconds are a straight line, memory is what the plan predicts
overlap   0 to 0.75, a small real network; law: windows by the grid's rule, towards (1 / (1 − r))³; seconds a
          window as for the most windows
workers   1 to 64, simulated by `scaling.py`; law: windows a second follow workers

Every run is a process of its own. What is measured is the seconds of the run without its start, and the peak memory of
the process. Each point is run `REPEATS` times, in turn; the median is plotted, least and most as bars.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from command_line import json_of
from memory import MODEL, _base_volume, _grown

REPEATS = 3
WINDOW = 64
SMALL = (128, 128, 128)
TIMES = {1: (1, 1, 1), 8: (2, 2, 2), 64: (4, 4, 4), 512: (8, 8, 8)}
CLASSES = (2, 8, 32, 128, 512)
OVERLAPS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
MEMORY = "320MiB"
"""For the voxels: the volumes from 64 times on would take more, were they allowed to."""
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="growth.json")
    parser.add_argument("--picture", default="growth.png")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--seconds", type=float, default=30, help="of each number of workers")
    parser.add_argument("--quick", action="store_true", help="the smallest points alone, once")
    parser.add_argument("--plot", nargs=2, metavar=("JSON", "PNG"))
    args = parser.parse_args()
    if args.plot:
        plot(json.loads(Path(args.plot[0]).read_text()), args.plot[1])
        return
    args.repeats = 1 if args.quick else args.repeats
    found = json.loads(Path(args.out).read_text()) if Path(args.out).exists() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            found[name] = PARTS[name](args, Path(folder))
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    plot(found, args.picture)
    for name, rows in found.items():
        print(f"\n{name}\n" + _table(rows))


# --- what is measured ---


def voxels(args: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    (root / "net.fake.toml").write_text(MODEL)
    base = _base_volume(root, SMALL)
    times = dict(list(TIMES.items())[:2]) if args.quick else TIMES
    volumes = {t: base if t == 1 else _grown(root, base, grow) for t, grow in times.items()}

    def measure(t: int) -> dict[str, Any]:
        return {"voxels": prod(SMALL) * t, **_run(root, volumes[t], root / "net.fake.toml", "--memory", MEMORY)}

    rows = _in_turn(args, list(times), measure)
    largest = rows[-1]
    for row in rows:
        row["expected"] = {
            "seconds": row["windows"] * largest["seconds"] / largest["windows"],
            "peak": row["predicted"],
            "windows": _windows(row["voxels"] ** (1 / 3), 0.5),
        }
    return rows


def classes(args: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    volume = _base_volume(root, SMALL)
    counts = CLASSES[:2] if args.quick else CLASSES
    for n in counts:
        text = MODEL.replace("channels_out = 2", f"channels_out = {n}")
        (root / f"net{n}.fake.toml").write_text(text)

    def measure(n: int) -> dict[str, Any]:
        return {"classes": n, **_run(root, volume, root / f"net{n}.fake.toml")}

    rows = _in_turn(args, list(counts), measure)
    # a straight line through the two ends: what does not grow, and what each class takes
    low, high = rows[0], rows[-1]
    slope = (high["seconds"] - low["seconds"]) / (high["classes"] - low["classes"])
    for row in rows:
        row["expected"] = {
            "seconds": low["seconds"] + slope * (row["classes"] - low["classes"]),
            "peak": row["predicted"],
        }
    return rows


def overlap(args: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    model = _network(root)
    side = 64 if args.quick else 160
    volume = _base_volume(root, (side,) * 3)
    values = OVERLAPS[:5:4] if args.quick else OVERLAPS

    def measure(r: float) -> dict[str, Any]:
        return {"overlap": r, **_run(root, volume, model, "--overlap", str(r))}

    rows = _in_turn(args, list(values), measure)
    first, largest = rows[0], rows[-1]
    for row in rows:
        windows = _windows(side, row["overlap"], 32)
        row["expected"] = {
            "windows": windows,
            "windows_at_infinity": first["windows"] / (1 - row["overlap"]) ** 3,
            "seconds": windows * largest["seconds"] / largest["windows"],
        }
    return rows


def workers(args: argparse.Namespace, root: Path) -> list[dict[str, Any]]:
    """Simulated workers; see `scaling.py`, which waits as long as one H200 takes for a window."""
    counts = WORKERS[:2] if args.quick else WORKERS
    command = [sys.executable, str(Path(__file__).with_name("scaling.py")), "--workers", ",".join(map(str, counts))]
    command += [
        "--seconds",
        str(8 if args.quick else args.seconds),
        "--repeats",
        str(args.repeats),
        "--out",
        str(root / "s.json"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    points = json.loads((root / "s.json").read_text())
    rows = []
    for n in counts:
        rates = [p["windows_per_second"] for p in points if p["workers"] == n]
        ideal = n / 0.0023
        rows.append(
            {
                "workers": n,
                "windows_per_second": statistics.median(rates),
                "all": rates,
                "expected": {"windows_per_second": ideal},
            }
        )
    return rows


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "voxels": voxels, "classes": classes, "overlap": overlap, "workers": workers,
}  # fmt: skip


def _in_turn(
    args: argparse.Namespace, points: list[Any], measure: Callable[[Any], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each point `args.repeats` times, all points before any is repeated: medians, and every value."""
    taken = [[measure(point) for point in points] for _ in range(args.repeats)]
    rows = []
    for repeats in zip(*taken, strict=True):
        row = dict(repeats[0])
        for key in ("seconds", "peak"):
            row[key] = statistics.median(r[key] for r in repeats)
            row[f"all_{key}"] = [r[key] for r in repeats]
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def _run(root: Path, volume: Path, model: Path, *options: str) -> dict[str, Any]:
    said = json_of("run", "--in", volume, "--model", model, "--out", root / "out.zarr", "--overwrite", *options)
    return {
        "windows": said["windows_inferred"], "seconds": said["seconds"], "peak": said["peak_rss_bytes"],
        "predicted": said["predicted_rss_bytes"],
    }  # fmt: skip


def _windows(side: float, r: float, window: int = WINDOW) -> int:
    """Windows of a cube by the rule of the grid: stride w(1 − r), the last one moved back to the edge."""
    stride = max(1, int(window * (1 - r)))
    return (ceil(max(0, round(side) - window) / stride) + 1) ** 3


# --- inputs ---


def _network(root: Path) -> Path:
    """A U-Net of 8 filters and 2 poolings with random weights, windows of 32³."""
    import torch

    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.specs import spec_for

    torch.manual_seed(0)
    config = UNetConfig(dims=3, classes=2, base=8, depth=2, norm="batch")
    export_onnx(UNet(config).eval(), spec_for(config, name="net", window=(32,) * 3), root / "net.onnx")
    return root / "net.onnx"


# --- what is told ---


def _table(rows: list[dict[str, Any]]) -> str:
    lead = next(iter(rows[0]))
    keys = [k for k in ("windows", "seconds", "peak", "predicted", "windows_per_second") if k in rows[0]]
    expected = list(rows[0]["expected"])
    head = [lead, *keys, *(f"expected {k}" for k in expected)]
    lines = ["| " + " | ".join(head).replace("_", " ") + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [_shown(lead, row[lead]), *(_shown(k, row[k]) for k in keys)]
        cells += [_shown(k, row["expected"][k]) for k in expected]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(name: str, value: float) -> str:
    if name in ("peak", "predicted"):
        return f"{value / MIB:,.0f} MiB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def plot(found: dict[str, list[dict[str, Any]]], picture: str) -> None:
    """Measured as points with bars from least to most, the law as a dashed line."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = [
        ("voxels", "voxels", "seconds", "time: per window that of the largest", 1),
        ("voxels", "voxels", "peak", "memory: the plan's prediction, MiB", MIB),
        ("classes", "classes", "seconds", "time: a straight line", 1),
        ("classes", "classes", "peak", "memory: the plan's prediction, MiB", MIB),
        ("overlap", "overlap", "windows", "windows: the grid's rule", 1),
        ("overlap", "overlap", "seconds", "time: per window that of 0.75", 1),
        ("workers", "workers", "windows_per_second", "windows/s: workers × one", 1),
    ]
    shown = [panel for panel in panels if panel[0] in found]
    figure, grid = pyplot.subplots(
        ceil(len(shown) / 4), min(4, len(shown)), figsize=(4 * min(4, len(shown)), 3.6 * ceil(len(shown) / 4))
    )
    flat = np.atleast_1d(np.asarray(grid, object)).ravel()
    for axes, (part, x, y, title, unit) in zip(flat, shown, strict=False):
        rows = found[part]
        _panel(axes, rows, x, y, unit)
        axes.set(title=title, xlabel=x, ylabel="MiB" if unit == MIB else y.replace("_", " "))
    for axes in flat[len(shown) :]:
        axes.axis("off")
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def _panel(axes: Any, rows: list[dict[str, Any]], x: str, y: str, unit: int) -> None:
    places = [row[x] for row in rows]
    values = [row[y] / unit for row in rows]
    every = [[v / unit for v in row.get(f"all_{y}", row.get("all", [row[y]]))] for row in rows]
    bars = [
        [v - min(all_) for v, all_ in zip(values, every, strict=True)],
        [max(all_) - v for v, all_ in zip(values, every, strict=True)],
    ]
    axes.errorbar(places, values, yerr=bars, fmt="o", capsize=3, label="measured")
    axes.plot(places, [row["expected"][y] / unit for row in rows], "--", color="grey", label="expected")
    if x != "overlap":
        axes.set_xscale("log", base=2)
    if y != "peak" or max(values) > 10 * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
    axes.legend()


if __name__ == "__main__":
    main()
