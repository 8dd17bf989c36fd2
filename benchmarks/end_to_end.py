"""End to end against the bare network and against MONAI, in one run on one machine.

    python benchmarks/end_to_end.py [--case 3D | 2D] [--model net.onnx] [--volume volume.tif]
        [--precisions fp32 bf16 int8]
                                    [--repeats 2] [--crop Z,Y,X] [--monai] [--json FILE] [--quick]

For each precision and repetition, in turn: the bare network (OpenVINO's asynchronous queue, best of its thread
layouts), the whole of ``unet-engine run`` as a process of its own, the bare network again. Efficiency is windows × bare
seconds per window ÷ wall seconds of the process, start and loading included; the bare time is the mean of before and
after, since shared machines drift. MONAI runs the same network (fp32, gaussian, batch 4, 2 threads) in PyTorch on a
crop of 160³, in turn with the engine: with the module as it is, and frozen to TorchScript, which folds the
normalisation away.

``--case 2D`` is a satellite mosaic of three channels in windows of 512². Without ``--model`` (MONAI needs it so): a
U-Net of 16 filters and 4 levels with random weights. Without ``--volume``: the EM volume or the mosaic of the shared
data, or noise of the same size where there is none. int8 is calibrated on the volume first, and judged with whatever
Dice: what a real network loses is `precision.py`'s to measure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from command_line import json_of
from inputs import CASES, machine, model_of, network, quantized, volume_of

LAYOUTS = ("streams", "single")


def main() -> None:
    args = _arguments()
    if args.part:
        print(json.dumps(_PARTS[args.part](args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        case = CASES[args.case]
        args.model = Path(args.model) if args.model else model_of(case, _filters(args), root)
        args.zarr = volume_of(case, root, args.volume, args.crop)
        if "int8" in args.precisions:
            args.model = quantized(args.model, args.zarr, root)
        rows = [
            _efficiency(args, root, precision, repeat)
            for repeat in range(args.repeats)
            for precision in args.precisions
        ]
        peer = _against_monai(args, root) if args.monai else None
    _print(rows, peer)
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows, "monai": peer, "machine": machine()}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(CASES), default="3D")
    parser.add_argument("--model")
    parser.add_argument("--volume")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--crop", help="use only the first Z,Y,X voxels")
    parser.add_argument("--monai", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--quick", action="store_true", help="a small crop, one repetition, a small network")
    parser.add_argument("--part", choices=list(_PARTS), help=argparse.SUPPRESS)
    for hidden in ("--precision", "--layout", "--zarr", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each bare measurement runs")
    args = parser.parse_args()
    if args.monai and args.model and not args.part:
        parser.error("--monai compares the network made here; leave out --model")
    if args.monai and args.case != "3D":
        parser.error("--monai runs in 3D; benchmarks/peers has 2D")
    if args.quick:
        args.crop, args.repeats, args.seconds = args.crop or "64,128,128" if args.case == "3D" else "800,800", 1, 2.0
    return args


def _filters(args: argparse.Namespace) -> int:
    return 4 if args.quick else 16


def _part(name: str, args: argparse.Namespace, **options: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own and read what it prints last."""
    command = [sys.executable, __file__, "--part", name, "--model", str(args.model), "--seconds", str(args.seconds)]
    command += ["--case", args.case]
    command += ["--quick"] if args.quick else []
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    decoded: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return decoded


# --- what is measured -------------------------------------------------------------------------------------------------


def bare(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per window of the network alone: requests are restarted as they finish, nothing is cut or stitched."""
    import openvino as ov

    cores = len(os.sched_getaffinity(0))
    streams = cores if args.layout == "streams" else 1
    model, computed = _openvino_model(args)
    shape = [1, CASES[args.case].channels, *CASES[args.case].window]
    model.reshape(shape)
    hint = {"fp32": "f32", "bf16": "bf16"}[computed]
    config = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(cores), "INFERENCE_PRECISION_HINT": hint}
    compiled = ov.Core().compile_model(model, "CPU", config)
    queue = ov.AsyncInferQueue(compiled, streams + 2)
    window = np.random.default_rng(0).random(shape, dtype=np.float32)
    for _ in range(2 * (streams + 2)):
        queue.start_async({0: window})
    queue.wait_all()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < args.seconds:
        for _ in range(4):
            queue.start_async({0: window}, share_inputs=True)
        done += 4
    queue.wait_all()
    return {"seconds_per_window": (time.perf_counter() - begun) / done, "windows": done}


def _openvino_model(args: argparse.Namespace) -> tuple[Any, str]:
    """What the engine would infer with, and the precision of what is not int8 in it."""
    import openvino as ov

    if args.precision != "int8":
        return ov.Core().read_model(args.model), args.precision
    from unet_engine.backends.openvino import unpacked
    from unet_engine.model.file import attached_network, open_model
    from unet_engine.prepare.precision import choose

    model = open_model(args.model)
    choice = choose(model, "openvino", "cpu", "int8", CASES[args.case].window)
    assert choice.network is not None
    return unpacked(attached_network(model, choice.network)), choice.rest


def monai(args: argparse.Namespace) -> dict[str, Any]:
    """MONAI's sliding window over the volume, in memory, with PyTorch's own convolutions."""
    import torch
    import zarr
    from monai.inferers import sliding_window_inference

    torch.set_num_threads(2)
    module = network(CASES[args.case], _filters(args))
    if args.layout == "torchscript":
        module = torch.jit.freeze(torch.jit.trace(module, torch.zeros(4, 1, *CASES[args.case].window)))
    image = torch.from_numpy(np.asarray(zarr.open_array(args.zarr, mode="r")[...]).astype(np.float32) / 255)[None, None]
    with torch.inference_mode():
        module(torch.zeros(4, 1, *CASES[args.case].window))
        begun = time.perf_counter()
        logits = sliding_window_inference(image, CASES[args.case].window, 4, module, overlap=0.5, mode="gaussian")
        labels = logits.argmax(1)
        seconds = time.perf_counter() - begun
    own = np.asarray(zarr.open_array(f"{args.out}/0", mode="r")[...])
    return {"seconds": seconds, "agreement": float((labels[0].numpy() == own).mean())}


_PARTS = {"bare": bare, "monai": monai}


def _engine(args: argparse.Namespace, volume: Path, out: Path, precision: str) -> dict[str, Any]:
    window = ",".join(map(str, CASES[args.case].window))
    places = ("--in", volume, "--model", args.model, "--out", out, "--overwrite")
    begun = time.perf_counter()
    result = json_of("run", *places, "--precision", precision, "--window", window)
    return {**result, "process_seconds": time.perf_counter() - begun}


def _efficiency(args: argparse.Namespace, root: Path, precision: str, repeat: int) -> dict[str, Any]:
    before = {
        layout: _part("bare", args, precision=precision, layout=layout)["seconds_per_window"] for layout in LAYOUTS
    }
    best = min(before, key=lambda layout: before[layout])
    run = _engine(args, args.zarr, root / "out.zarr", precision)
    after = _part("bare", args, precision=precision, layout=best)["seconds_per_window"]
    window = (before[best] + after) / 2
    row = {
        "precision": precision, "repeat": repeat, "layout": best, "bare_before": before, "bare_after": after,
        "windows": run["windows_inferred"], "process_seconds": run["process_seconds"], "run_seconds": run["seconds"],
        "efficiency": run["windows_inferred"] * window / run["process_seconds"],
        "efficiency_without_start": run["windows_inferred"] * window / run["seconds"],
        "voxels_per_second": run["voxels"] / run["process_seconds"],
        "peak_rss_bytes": run["peak_rss_bytes"], "predicted_rss_bytes": run["predicted_rss_bytes"],
    }  # fmt: skip
    print(_line(row), file=sys.stderr, flush=True)
    return row


def _against_monai(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The engine and MONAI on the same crop, in turn; MONAI with the module as it was trained, and frozen to
    TorchScript."""
    import zarr

    crop = np.asarray(zarr.open_array(args.zarr, mode="r")[:160, :160, :160])
    volume, out = root / "crop.zarr", root / "out.zarr"
    zarr.create_array(str(volume), data=crop, chunks=(64, 64, 64), overwrite=True)
    rows = []
    for _ in range(args.repeats):
        own = {p: _engine(args, volume, out, p)["seconds"] for p in reversed(args.precisions)}
        peers = {kind: _part("monai", args, zarr=volume, out=out, layout=kind) for kind in ("eager", "torchscript")}
        rows.append({"engine": own, "monai": peers})
        print(f"{crop.shape}: {rows[-1]}", file=sys.stderr, flush=True)
    ratios = {
        f"{p} over {kind}": [r["monai"][kind]["seconds"] / r["engine"][p] for r in rows]
        for p in args.precisions
        for kind in ("eager", "torchscript")
    }
    return {"shape": list(crop.shape), "rows": rows, "times_monai": ratios}


# --- what is told ---


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['precision']:5} #{row['repeat']}  bare {1000 * row['bare_before'][row['layout']]:.1f} / "
        f"{1000 * row['bare_after']:.1f} ms ({row['layout']})  {row['windows']} windows in "
        f"{row['process_seconds']:.1f} s  efficiency {row['efficiency']:.3f} ({row['efficiency_without_start']:.3f} "
        f"without start)  peak {row['peak_rss_bytes'] / 2**20:.0f} MiB ({row['predicted_rss_bytes'] / 2**20:.0f} "
        "predicted)"
    )


def _print(rows: list[dict[str, Any]], peer: dict[str, Any] | None) -> None:
    print("| precision | efficiency, median (least to most) | Mvoxel/s |\n|---|---|---|")
    for precision in dict.fromkeys(row["precision"] for row in rows):
        mine = [row for row in rows if row["precision"] == precision]
        values = sorted(row["efficiency"] for row in mine)
        speed = statistics.median(row["voxels_per_second"] for row in mine) / 1e6
        print(f"| {precision} | {statistics.median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f}) | {speed:.3f} |")
    if peer:
        print(f"\n| against MONAI fp32 on {peer['shape']} | median (least to most) |\n|---|---|")
        for name, values in peer["times_monai"].items():
            print(f"| {name} | {statistics.median(values):.2f}× ({min(values):.2f} to {max(values):.2f}) |")


if __name__ == "__main__":
    main()
