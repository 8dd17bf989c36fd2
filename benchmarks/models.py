"""Models of other tools, each in its own predictor and here, on the same real volume: labels, time, peak memory.

    python benchmarks/models.py [--shared ../shared] [--work DIR] [--code DIR] [--rounds 3] [--case NAME ...]
        [--json FILE]

Networks are trained with the tools' own code (`train_peers.py`, a few minutes each; DIR keeps them); packages of other
people are taken as they are, and their own predictor needs the Python that they name: `--code` is the folder
``example_descriptions/models`` of bioimage-io/spec-bioimage-io. Each side runs in a process of its own, in turn, in
float32; networks are loaded before the clock starts. The table goes to docs/models.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from command_line import COMMAND
from peer_cases import CASES, Case, source_of

from unet_engine.machine import peak_resident_bytes

LEAST = 0.999
SIDES = ("theirs", "ours")


# --- one side, in a process of its own ---


def side(case: Case, which: str, volume: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    predict = _ours(case, volume, folder, options) if which == "ours" else _theirs(case, volume, options)
    begun, processor = time.perf_counter(), time.process_time()
    found = predict()
    figures = {"seconds": time.perf_counter() - begun, "processor": time.process_time() - processor}
    np.save(folder / f"{which}.npy", found if case.level is None else found > case.level)
    return {**figures, "peak": peak_resident_bytes()}


def _theirs(case: Case, volume: Path, options: argparse.Namespace) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(options.threads)
    return case.theirs(source_of(case, options), volume, options)


def _ours(case: Case, volume: Path, folder: Path, options: argparse.Namespace) -> Callable[[], Any]:
    import zarr

    from unet_engine.api import run

    model, out = str(model_of(case, options)), str(folder / "out.zarr")

    def predict() -> Any:
        run(
            str(volume), model=model, out=out, device="cpu", precision="fp32", threads=options.threads, overwrite=True,
            **case.settings,
        )  # fmt: skip
        found = zarr.open_group(out, mode="r")["0"][...]
        return found if case.level is None else found[0]

    return predict


def model_of(case: Case, options: argparse.Namespace) -> Path:
    """The imported file; it is imported where it is not yet."""
    file = options.work / f"{case.network}.onnx"
    if not file.exists():
        said = [str(part) for key, value in case.importing.items() for part in (f"--{key}", value)]
        subprocess.run([*COMMAND, "import", str(source_of(case, options)), "--out", str(file), *said], check=True)
    return file


# --- both ---


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Source, import, both sides in turn, and how they agree."""
    from unet_engine.model.file import open_model

    case = CASES[name]
    model = model_of(case, options)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=options.work))
    volume = case.volume(options, folder)
    rows: dict[str, list[dict[str, Any]]] = {which: [] for which in SIDES}
    for _ in range(options.rounds):
        for which in SIDES:
            given = [
                "--side",
                which,
                "--case",
                name,
                "--volume",
                volume,
                "--folder",
                folder,
                "--shared",
                options.shared,
            ]
            given += [
                "--work",
                options.work,
                "--threads",
                options.threads,
                *(["--code", options.code] if options.code else []),
            ]
            done = subprocess.run(
                [sys.executable, __file__, *map(str, given)], check=True, stdout=subprocess.PIPE, text=True
            )
            rows[which].append(json.loads(done.stdout.splitlines()[-1]))
    theirs, ours = (np.load(folder / f"{which}.npy") for which in SIDES)
    shutil.rmtree(folder)
    if theirs.min() == theirs.max():
        sys.exit(f"{case.title}: one label everywhere, which proves nothing")
    credit = open_model(model).credit
    return {
        "name": name, "title": case.title, "peer": case.peer, "shape": list(ours.shape),
        "equal": float((ours == theirs).mean()), "dice": _dice(ours, theirs),
        "certificate": [str(c) for c in credit.certificate] if credit else [], **rows,
    }  # fmt: skip


def _dice(ours: Any, theirs: Any) -> dict[int, float]:
    """Of each label that theirs has."""
    return {
        int(k): float(2 * np.sum((ours == k) & (theirs == k)) / (np.sum(ours == k) + np.sum(theirs == k)))
        for k in np.unique(theirs)
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Medians of time and processor time, largest of peaks; theirs / ours."""
    lines = [
        "| source | against | labels | equal | least Dice | seconds | processor | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, processor = (_beside(row, key, statistics.median, 1) for key in ("seconds", "processor"))
        peak = _beside(row, "peak", max, 2**20, "{:.0f}")
        dice = row["dice"]
        lines.append(
            f"| {row['title']} | {row['peer']} | {len(dice)} | {row['equal']:.6f} | {min(dice.values()):.6f} | {seconds} | "
            f"{processor} | {peak} |"
        )
    return "\n".join(lines)


def _beside(row: dict[str, Any], key: str, of: Callable[..., float], unit: int, how: str = "{:.1f}") -> str:
    return " / ".join(how.format(of([r[key] for r in row[which]]) / unit) for which in SIDES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, help="keeps trained networks and imported files")
    parser.add_argument(
        "--code", type=Path, help="Python of the packages of bioimage.io; without it, they are passed over"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of either side")
    parser.add_argument("--case", choices=CASES, nargs="+", metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="networks of a few steps")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--volume", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = Path(options.work or tempfile.mkdtemp(prefix="models-")).resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    options.shared = options.shared.resolve()
    if options.side:
        print(json.dumps(side(CASES[options.case[0]], options.side, options.volume, options.folder, options)))
        return
    rows = []
    for name in options.case or CASES:
        if name.startswith("bioimageio") and not options.code:
            print(f"{name}: passed over, its predictor needs --code")
            continue
        rows.append(measured(name, options))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    if below := [row["title"] for row in rows if min(row["equal"], *row["dice"].values()) < LEAST]:
        sys.exit(f"below {LEAST}: {', '.join(below)}")


if __name__ == "__main__":
    main()
