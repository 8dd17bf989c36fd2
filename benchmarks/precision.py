"""INT8 and BF16 against fp32, end to end, after the gate; against MONAI in fp32 in the same run; and against the truth.

    python benchmarks/precision.py --model membrane.onnx [--volume volume.tif] [--truth image.tif labels.tif]
        [--held-out 50] [--repeats 3] [--monai] [--min-dice D] [--json FILE] [--quick]

1. Gate: ``unet-engine quantize`` on the volume, all precisions; its table is the first.
2. Throughput: ``unet-engine run`` as a process of its own in fp32 and in each precision that passed, in turn, so that
   a drift of the machine meets all of them. Ratios are taken within a turn. What did not pass is refused by ``run``
   and left out here.
3. MONAI (``--monai``): sliding window, fp32, batch 4, on 160³ of the volume with a network of the same layout (16
   filters, 4 poolings), in turn with the engine.
4. Truth: the last ``--held-out`` planes of a labelled volume, predicted from all of it; Dice per class for each
   precision in one table.

Without ``--volume`` and ``--truth`` the shared EM data is taken. ``--quick``: the shipped network on synthetic tissue,
a minute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import end_to_end
import inputs
import numpy as np
from command_line import COMMAND

SHARED = inputs.SHARED / "em"
PRECISIONS = ("fp32", "bf16", "int8")


def main() -> None:
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _prepare(args, root)
        gate = _gate(args)
        turns = [_turn(args, root, gate) for _ in range(args.repeats)]
        peer = _monai(args, root, gate) if args.monai else []
        truth = _truth(args, root, gate)
    _print(gate, turns, peer, truth)
    if args.json:
        found = {"gate": gate, "turns": turns, "monai": peer, "truth": truth, "machine": inputs.machine()}
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="ONNX file; it is copied, not changed")
    parser.add_argument("--volume", type=Path, default=SHARED / "volume.tif")
    parser.add_argument(
        "--truth", type=Path, nargs=2, default=[SHARED / "train_image.tif", SHARED / "train_membrane.tif"]
    )
    parser.add_argument("--held-out", type=int, default=50, help="last planes of the truth that the network never saw")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--monai", action="store_true")
    parser.add_argument("--min-dice", action="append", default=[], help="as for unet-engine quantize")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if not args.model and not args.quick:
        parser.error("--model is needed; docs/em.md says how to train one")
    args.window = "16,16,16" if args.quick else "64,64,64"
    args.seconds = 2.0
    return args


def _prepare(args: argparse.Namespace, root: Path) -> None:
    """Zarr volumes and a copy of the model in `root`; `args` then names these."""
    import zarr

    if args.quick:
        from unet_engine.model.shipped import shipped_model
        from unet_export.train.tissue import make_tissue

        args.repeats, args.held_out = 1, 16
        args.min_dice = args.min_dice or ["0.98"]
        args.model = args.model or str(shipped_model("cells_3d.onnx"))
        (image, labels), volume = make_tissue((48, 64, 64), 3), make_tissue((48, 96, 96), 4)[0]
    else:
        import tifffile

        image, labels = (tifffile.imread(path) for path in args.truth)
        volume = tifffile.imread(args.volume)
    for name, array in (("volume", volume), ("image", image)):
        zarr.create_array(str(root / f"{name}.zarr"), data=array, chunks=(64, 128, 128), dimension_names=list("zyx"))
    args.labels, args.zarr, args.image = labels, root / "volume.zarr", root / "image.zarr"
    args.copy = Path(shutil.copy(args.model, root / "net.onnx"))


def _command(*words: object) -> dict[str, Any] | list[dict[str, Any]]:
    """Run the command line as a process of its own; what its last line of JSON says, and how long the process took."""
    import subprocess
    import time

    begun = time.perf_counter()
    done = subprocess.run(
        [*COMMAND, *map(str, words), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.stdout.strip():
        raise SystemExit(f"{words[0]} failed: {done.stderr}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return {**said, "process_seconds": time.perf_counter() - begun} if isinstance(said, dict) else said


def _gate(args: argparse.Namespace) -> list[dict[str, Any]]:
    few = ["--windows", 6, "--held-out", 6] if args.quick else []
    least = [word for text in args.min_dice for word in ("--min-dice", text)]
    rows = _command("quantize", args.copy, "--calibrate", args.zarr, "--window", args.window, *few, *least)
    assert isinstance(rows, list)
    return rows


def _runnable(gate: list[dict[str, Any]]) -> list[str]:
    """fp32 and what passed: the engine refuses the rest."""
    passed = {row["precision"] for row in gate if row["passed"]}
    return [p for p in PRECISIONS if p == "fp32" or p in passed]


def _run(args: argparse.Namespace, volume: Path, out: Path, precision: str) -> dict[str, Any]:
    words = ["--in", volume, "--model", args.copy, "--window", args.window, "--precision", precision]
    said = _command("run", *words, "--out", out, "--overwrite")
    assert isinstance(said, dict)
    return said


def _turn(args: argparse.Namespace, root: Path, gate: list[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for precision in _runnable(gate):
        result = _run(args, args.zarr, root / "out.zarr", precision)
        found[precision] = {key: result[key] for key in ("process_seconds", "seconds", "voxels", "peak_rss_bytes")}
        print(f"{precision}: {result['process_seconds']:.1f} s", file=sys.stderr, flush=True)
    return found


def _monai(args: argparse.Namespace, root: Path, gate: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of MONAI and of the engine on the same 160³, start of the process left out on both sides."""
    import zarr

    volume, out = root / "crop.zarr", root / "out.zarr"
    crop = np.asarray(zarr.open_array(args.zarr, mode="r")[:160, :160, :160])
    zarr.create_array(str(volume), data=crop, chunks=(64, 64, 64), overwrite=True)
    rows = []
    for _ in range(args.repeats):
        own = {p: _run(args, volume, out, p)["seconds"] for p in _runnable(gate)}
        end_to_end_args = argparse.Namespace(case="3D", model=args.copy, seconds=args.seconds, quick=args.quick)
        peer = _peer(end_to_end_args, volume, out)
        rows.append({"monai": peer["seconds"], **own})
        print(f"MONAI {peer['seconds']:.1f} s, engine {own}", file=sys.stderr, flush=True)
    return rows


def _peer(args: argparse.Namespace, volume: Path, out: Path) -> dict[str, Any]:
    """MONAI in a process of its own: `end_to_end.py` has it as one of its parts."""
    import subprocess

    command = [sys.executable, str(Path(end_to_end.__file__)), "--part", "monai", "--model", str(args.model)]
    command += ["--zarr", str(volume), "--out", str(out), "--layout", "eager", *(["--quick"] if args.quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    decoded: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return decoded


def _truth(args: argparse.Namespace, root: Path, gate: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Dice per class on the held-out planes, for each precision."""
    import zarr

    from unet_export.train.loss import dice_per_class

    truth = args.labels[-args.held_out :]
    scores = {}
    for precision in _runnable(gate):
        _run(args, args.image, root / "out.zarr", precision)
        labels = np.asarray(zarr.open_array(root / "out.zarr" / "0", mode="r")[-args.held_out :])
        scores[precision] = list(dice_per_class(labels, truth, int(args.labels.max()) + 1))
    return scores


# --- tables ---


def _print(
    gate: list[dict[str, Any]], turns: list[dict[str, Any]], peer: list[dict[str, Any]], truth: dict[str, list[float]]
) -> None:
    print(
        "| precision | gate | least Dice against fp32 | labels that agree | bare, times fp32 | why "
        "|\n|---|---|---|---|---|---|"
    )
    for row in gate:
        state = "passed" if row["passed"] else "failed"
        print(
            f"| {row['precision']} | {state} | {row['least_dice']} | {row['agreement']} | {row['speedup']} | "
            f"{row['reason']} |"
        )
    print("\n| precision | end to end, times fp32: median (least to most) | Mvoxel/s |\n|---|---|---|")
    for precision in turns[0]:
        ratios = sorted(turn["fp32"]["process_seconds"] / turn[precision]["process_seconds"] for turn in turns)
        speed = statistics.median(turn[precision]["voxels"] / turn[precision]["process_seconds"] for turn in turns)
        print(f"| {precision} | {_spread(ratios)} | {speed / 1e6:.3f} |")
    if peer:
        print("\n| precision | times MONAI fp32 on 160³: median (least to most) |\n|---|---|")
        for precision in turns[0]:
            print(f"| {precision} | {_spread(sorted(row['monai'] / row[precision] for row in peer))} |")
    print("\n| precision | Dice against the truth, per class |\n|---|---|")
    for precision, scores in truth.items():
        print(f"| {precision} | {', '.join(f'{score:.4f}' for score in scores)} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


if __name__ == "__main__":
    main()
