"""Throughput against agreement with whole-volume inference: ours in each proved precision, with the model's own tiling
and with `--tiling auto`; MONAI, nnU-Net and TorchIO (`peers/requirements.txt`), those that are installed, with that
habit, and MONAI with our windows, too. One table, and a picture of it.

    python benchmarks/tiling.py [--out FILE.svg] [--json FILE]
    python benchmarks/tiling.py --model em.onnx --image volume.tif --base 8 --depth 3 [--box 128,256,256] [--rounds 3]
        [--budget 0.12] [--tolerance 0.997] [--precisions fp32 auto] [--window 64] [--norm instance]
        [--truth labels.tif]

Without a model it is the network that ships with the engine, on synthetic tissue. Else the model is what
`python -m unet_export.train` wrote, of that base and depth, with norms folded, and the image is a volume of which a box
at the origin is taken, in memory for the peers and as Zarr for us. ``auto`` looks on the whole image first (not timed; its
cost is told), as it does once for a model and a kind of data; where it keeps the model's own tiling it has no row.
In every round each contestant runs once, in turn.
Seconds are those of inference and stitching to labels: ours with reading and writing Zarr and without start and
planning, the peers' with softmax left out. Processor time is that of all threads, ours with start and planning: it depends
less on what else the machine does. Agreement and Dice (of the rarest label) are with the box in a single window in
fp32. With ``--truth``, labels of the image, `auto` is judged by these, and the mean Dice of all classes but the
background against them is a column of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from inputs import machine
from tiling_contestants import agreement, monai, network_of, normalised, ours, peers, stored

from unet_engine.model.file import open_model
from unet_engine.profiling import charts
from unet_engine.profiling.charts import Axes, Line
from unet_engine.settings.text import parse_tiling
from unet_engine.volumes.formats import open_volume

NONE = 0.1
"""Where the picture, whose axes are logarithmic, has a run without a label that differs."""

_Times = Mapping[str, list[float]]


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder)
        _shipped(args, root)
        box = tuple(map(int, args.box.split(",")))
        whole = open_volume(args.image)
        image = np.asarray(whole.read(_box(box)))
        part = stored(root / "part.zarr", image)
        truth = np.asarray(open_volume(args.truth).read(_box(box)))[0] if args.truth else None
        judged = {} if truth is None else {"truth": stored(root / "truth.zarr", truth[None])}
        common = {"model": args.model, "overwrite": True, "out": str(root / "out.zarr"), "ignore_spacing": True}
        spec = open_model(args.model).spec
        habit = (args.window,) * len(box) if args.window else spec.window
        step = [s or 1 for s in spec.window_step]
        covering = [-(-n // s) * s for n, s in zip(box, step, strict=True)]
        single = f"{','.join(map(str, covering))}:{','.join('0' for _ in box)}:crop"
        reference = ours(part, {**common, "precision": "fp32", "tiling": single})[1]
        runs: dict[str, Callable[[], tuple[float, Any]]] = {}
        looked, tilings = {}, []
        own = {"window": habit} if args.window else {}
        for precision in args.precisions:
            options = common | {"precision": precision}
            name, looked[precision], chosen = _chosen(args, part, options | judged)
            runs[f"ours, {name}, {_cube(habit)}, 0.5"] = partial(ours, part, options | own)
            if chosen:
                tilings.append(chosen)
                # what labels have decided is not known to the next run, which would look again
                tiling = {"tiling": chosen} if judged else {"tiling": "auto", **_bar(args)}
                runs[f"ours, {name}, auto: {chosen}"] = partial(ours, part, options | tiling)
        if not args.no_peers:
            module = network_of(args.model, args.base, args.depth, args.norm)
            x = normalised(args.model, part, image)
            there = peers(module, x, habit)
            runs |= {f"{name}, {_cube(habit)}, 0.5": run for name, run in there.items()}
            for window, shared, _ in map(parse_tiling, tilings[:1] if "MONAI" in there else []):
                overlap = tuple(s / w for s, w in zip(shared, window, strict=True))
                runs[f"MONAI, {_cube(window)}, as much shared"] = partial(monai, module, x, window, overlap)
        seconds, worked, figures = _raced(runs, partial(agreement, reference, truth=truth), args.rounds)
    base = next((name for name in runs if name.startswith("MONAI")), next(iter(runs)))
    rows = [_row(name, base, seconds, worked, figures) for name in runs]
    for line in _table(rows, base, box, looked):
        print(line)
    if args.json:
        facts = {"box": box, "looked": looked, "rows": rows, "machine": machine() | {"load": os.getloadavg()[0]}}
        Path(args.json).write_text(json.dumps(facts, indent=1) + "\n")
    if args.out:
        Path(args.out).write_text(_picture(rows, base, box))
        print(f"picture: {args.out}")


def _raced(
    runs: Mapping[str, Callable[[], tuple[float, Any]]], agree: Callable[[Any], dict[str, float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, dict[str, float]]]:
    """Seconds and processor time of every round, and agreement, of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    worked: dict[str, list[float]] = {name: [] for name in runs}
    figures = {}
    for number in range(rounds):
        for name, run in runs.items():
            begun = time.process_time()
            took, labels = run()
            worked[name].append(time.process_time() - begun)
            seconds[name].append(took)
            figures[name] = agree(labels)
            print(
                f"round {number + 1}: {name}: {took:.2f} s, {worked[name][-1]:.2f} s worked, {figures[name]}",
                flush=True,
            )
    return seconds, worked, figures


def _table(rows: list[dict[str, Any]], base: str, box: tuple[int, ...], looked: Mapping[str, str]) -> list[str]:
    judged = "truth" in rows[0]
    costs = ", ".join(f"{precision} {cost}" for precision, cost in looked.items())
    lines = [
        "",
        f"{_cube(box)} voxels; {_measured_on()}; looking: {costs}",
        f"| | agreement | Dice |{' Dice against labels |' * judged} throughput, of {base} | by processor time |",
        f"|---|---|---|{'---|' * judged}---|---|",
    ]
    for row in rows:
        ratios = (f"{middle:.2f} ({least:.2f} to {most:.2f})" for least, middle, most in (row["ratio"], row["worked"]))
        quality = " | ".join(f"{row[key]:.5f}" for key in ("agreement", "dice", *(["truth"] * judged)))
        lines.append(f"| {row['name']} | {quality} | {' | '.join(ratios)} |")
    return lines


def _picture(rows: list[dict[str, Any]], base: str, box: tuple[int, ...]) -> str:
    """Labels that differ from whole-volume inference against throughput, from the habit to fewer windows of each."""
    drawn: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        who, tiling = _parts(row["name"])
        drawn.setdefault(who, []).append(row | {"tiling": tiling})
    found = []
    for who, own in drawn.items():
        points = [(row["ratio"][1], max(NONE, 1e5 * (1 - row["agreement"]))) for row in own]
        names = [row["tiling"] + ", none" * (row["agreement"] == 1) for row in own]
        found.append(Line(who, points, across=[(row["ratio"][0], row["ratio"][2]) for row in own], labels=names))
    title = f"{_cube(box)} voxels; {_measured_on()}. Better: further right, and further down"
    across, up = f"throughput, of {base} (least to most)", "labels that differ, of 100,000"
    return charts.lines(found, Axes(across, up, log_x=True, log_y=True, title=title))


def _parts(name: str) -> tuple[str, str]:
    """Of a row: who, and how it tiled, in short."""
    who, _, tiling = name.removeprefix("ours, ").partition(", ")
    who = f"ours, {who}" if name.startswith("ours") else who
    if tiling.startswith("auto: "):
        return who, f"auto, {_cube(parse_tiling(tiling.removeprefix('auto: '))[0])}"
    return who, tiling.removesuffix(", as much shared")


def _measured_on() -> str:
    facts = machine()
    return f"{facts['cpu']}, {facts['cores']} cores, load {os.getloadavg()[0]:.1f}"


def _cube(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def _bar(args: argparse.Namespace) -> dict[str, Any]:
    """How much ``auto`` may look, and what it must reach."""
    found = {"tiling_budget": args.budget, "tolerance": args.tolerance}
    return {key: value for key, value in found.items() if value}


def _shipped(args: argparse.Namespace, root: Path) -> None:
    """Take the network that ships with the engine and make tissue for it, where no model is named."""
    if args.model:
        return
    from unet_engine.model.shipped import shipped_model
    from unet_export.train.tissue import make_tissue

    args.model, args.image, args.base, args.depth = str(shipped_model("cells_3d.onnx")), str(root / "image.zarr"), 8, 2
    shape = tuple(map(int, args.box.split(",")))
    stored(root / "image.zarr", make_tissue(shape, seed=1)[0][None])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--image")
    parser.add_argument("--base", type=int)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--norm", default="none", help="of the network: none where its norms are folded, instance")
    parser.add_argument("--box", default="96,192,192")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--tolerance", type=float, help="least agreement and Dice; default: what 0.5 reaches")
    parser.add_argument("--truth", help="labels of the image")
    parser.add_argument("--window", type=int, help="of the habit; default: the model's own")
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--out", help="the picture, as SVG")
    args = parser.parse_args()
    if args.model and not (args.image and args.base and args.depth):
        parser.error("--model needs --image, --base and --depth")
    return args


def _box(shape: tuple[int, ...]) -> Any:
    from unet_engine.plan.box import Box

    return Box.of_shape(shape)


def _chosen(args: argparse.Namespace, part: str, options: dict[str, Any]) -> tuple[str, str, str]:
    """Have ``auto`` look, at the whole image where it does not know data of its kind, and choose for the part. The
    precision that runs, what looking took, and the tiling as ``--tiling`` names it; empty: the model's own."""
    from unet_engine.prepare.prepare import prepare
    from unet_engine.prepare.survey import survey
    from unet_engine.settings.settings import Settings

    choice = None
    took = []
    for path in (part,) if "truth" in options else (args.image, part):
        settings = Settings.of(input=path, **options, tiling="auto", **_bar(args))
        prepared = prepare(survey(settings))
        assert prepared.network is not None
        prepared.network.close()
        choice = prepared.tiling
        assert choice is not None
        print(prepared.survey.precision, choice.line, *choice.table, sep="\n", flush=True)
        took.append(f"{(choice.learnt.share if choice.learnt and choice.searched else 0) + choice.proving:.1%}")
    assert choice is not None
    if choice.kept:
        return prepared.survey.precision, " and ".join(took), ""
    window, shared = (",".join(map(str, sizes)) for sizes in (choice.window, choice.shared or ()))
    return prepared.survey.precision, " and ".join(took), f"{window}:{shared}:{choice.blend}"


def _row(name: str, base: str, seconds: _Times, worked: _Times, figures: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": seconds[name],
        "ratio": _ratio(seconds[base], seconds[name]),
        "worked": _ratio(worked[base], worked[name]),
        **figures[name],
    }


def _ratio(base: list[float], took: list[float]) -> list[float]:
    """Least, median and largest of all rounds."""
    ratios = sorted(b / t for b, t in zip(base, took, strict=True))
    return [ratios[0], statistics.median(ratios), ratios[-1]]


if __name__ == "__main__":
    main()
