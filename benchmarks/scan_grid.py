"""What the scan's own grid costs, network apart: a scan at twice the network's resolution along each axis, many
classes.

    python benchmarks/scan_grid.py [--classes 104] [--shape 192 256 256] [--window 64] [--json FILE]

A small network with that many classes is run over the same windows in turn: on the network's grid, and on the scan's.
Both runs tell where their time went (stages of each thread). Memory is the process's peak beside the plan's. Before,
the step that makes labels of sums is timed alone, in processor time of its thread, which neighbours do not add to.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import unet_engine
from unet_engine.pipeline.reduction import REDUCTIONS
from unet_engine.plan.resampling import AxisResampling
from unet_engine.stitching.interpolation import taps


def network(folder: Path, classes: int, window: int, width: int) -> str:
    """A small U-Net of random weights, as ONNX."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv3d(1, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, width, 3, padding=1), nn.ReLU()
            )
            self.down = nn.Sequential(
                nn.Conv3d(width, 2 * width, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv3d(2 * width, 2 * width, 3, padding=1),
                nn.ReLU(),
            )
            self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
            self.last = nn.Sequential(
                nn.Conv3d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv3d(width, classes, 1)
            )

        def forward(self, x: Any) -> Any:
            full = self.first(x)
            return self.last(torch.cat([full, self.up(self.down(full))], 1))

    path = folder / "net.onnx"
    torch.onnx.export(
        Net().eval(), (torch.zeros(1, 1, window, window, window),), str(path), dynamo=True, external_data=False, verbose=False,
        input_names=["input"], output_names=["logits"],
    )  # fmt: skip
    spec = {
        "name": "net", "axes": "zyx", "channels_in": 1, "channels_out": classes, "window": [window] * 3, "window_min": [window] * 3,
        "window_step": [0] * 3, "margin": [0] * 3, "activation": "softmax", "normalization": {"mode": "zscore"}, "channels": "classes",
        "spacing": [2.0] * 3, "spacing_unit": "millimeter", "resampling": {},
    }  # fmt: skip
    import onnx

    model = onnx.load(str(path))
    entry = model.metadata_props.add()
    entry.key, entry.value = "unet_engine.spec", json.dumps(spec)
    onnx.save(model, str(path))
    return str(path)


def scan(folder: Path, shape: tuple[int, ...]) -> str:
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal([-(-n // 8) for n in shape]).astype(np.float32)
    smooth = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(slice(n) for n in shape)]
    voxels = (200 * smooth + 20 * rng.standard_normal(shape, np.float32)).astype(np.int16)
    axes = [{"name": a, "type": "space", "unit": "millimeter"} for a in "zyx"]
    moves = [{"type": "scale", "scale": [1.0] * 3}]
    scales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": moves}]}]
    group = zarr.create_group(str(folder / "scan.zarr"), attributes={"ome": {"version": "0.5", "multiscales": scales}})
    group.create_array("0", shape=shape, dtype="int16", chunks=(64, 64, 64), dimension_names=list("zyx"))[...] = voxels
    return str(folder / "scan.zarr")


def reduction(classes: int) -> None:
    """Processor time of one thread for making labels of a core of 48 cubed on a grid twice as fine, per voxel of the
    scan: of noise, where any class may win, and where the first class lies above all others."""
    axis = AxisResampling(48, 96, 1)
    grid = [taps(axis, 0, 96, 0)] * 3
    noise = np.random.default_rng(0).standard_normal((classes, 48, 48, 48)).astype(np.float32)
    background = noise.copy()
    background[0] += 16
    labels = REDUCTIONS["labels"]("softmax", "uint8")
    for name, sums in (("noise", noise), ("background", background)):
        times = []
        for _ in range(5):
            begun = time.thread_time()
            labels.on_grid(sums, grid)
            times.append(1e9 * (time.thread_time() - begun) / 96**3)
        print(f"labels of {name}: {statistics.median(times):.0f} ns per voxel ({min(times):.0f} to {max(times):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=104)
    parser.add_argument("--shape", type=int, nargs=3, default=(192, 256, 256))
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grids", nargs="+", default=["model", "scan"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    reduction(options.classes)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = network(folder, options.classes, options.window, options.width)
        volume = scan(folder, tuple(options.shape))
        for _ in range(options.rounds):
            for grid in options.grids:
                out = folder / f"on-{grid}.zarr"
                result = unet_engine.run(
                    volume,
                    model=model,
                    out=str(out),
                    grid=grid,
                    overwrite=True,
                    precision="fp32",
                    profile=str(folder / "p.json"),
                )
                shutil.rmtree(out)
                stages = {
                    f"{thread}: {stage}": s for thread, of in (result.stages or {}).items() for stage, s in of.items()
                }
                rows.append({"grid": grid, "seconds": result.seconds, "stages": stages,
                             "peak": result.peak_rss_bytes, "planned": result.predicted_rss_bytes})  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    of = {grid: [row["seconds"] for row in rows if row["grid"] == grid] for grid in options.grids}
    for grid, seconds in of.items():
        peak = max(row["peak"] for row in rows if row["grid"] == grid)
        planned = max(row["planned"] for row in rows if row["grid"] == grid)
        print(f"{grid}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), "
              f"peak {peak / 2**20:.0f} MiB, planned {planned / 2**20:.0f} MiB")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
