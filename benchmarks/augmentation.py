"""What mirrors and members cost: time per inferred window, with poses or networks and without.

    python benchmarks/augmentation.py [--model FILE] [--size 128] [--repeats 5] [--json FILE]

One volume of noise is run upright, in all mirrors, in right angles, and by two networks (the model twice), in turn and
again and again. A ratio is the time of a run over that of the upright one and over how often each window is inferred: 1
where a mirrored window costs what an upright one does. Time is that of all processors on this process, planning and
loading left out, which other work on the machine hardly changes. The fake network, which copies its input, shows the
cutting and adding alone; a real one shows what a user pays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from unet_engine.api import run_volume
from unet_engine.execution.choose import team
from unet_engine.settings.settings import Settings

FAKE = """[spec]
name = "fake"
axes = "zyx"
channels_in = 1
channels_out = 2
window = [64, 64, 64]
window_min = [16, 16, 16]
window_step = [16, 16, 16]
margin = [0, 0, 0]
"""
WAYS: dict[str, dict[str, Any]] = {
    "upright": {"tta": "none"},
    "mirror": {"tta": "mirror"},
    "turns": {"tta": "turns"},
    "two networks": {"tta": "none", "several": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the fake network")
    parser.add_argument("--size", type=int, default=128, help="of the volume, along each axis")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = measured(Path(folder), args.model, args.size, args.repeats)
    for name, row in rows.items():
        print(f"{name:13} {row['calls']:2} a window, {row['seconds']:8.3f} s, ratio {row['ratio']:.3f} "
              f"({row['least']:.3f} to {row['most']:.3f})")  # fmt: skip
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


def measured(folder: Path, model: str | None, size: int, repeats: int) -> dict[str, dict[str, float]]:
    """By way: seconds of the median run, and the ratio with its spread over the rounds."""
    if model is None:
        model = str(folder / "net.fake.toml")
        Path(model).write_text(FAKE)
    noise = np.random.default_rng(0).integers(0, 255, (size,) * 3).astype(np.uint8)
    volume = str(folder / "v.zarr")
    zarr.create_array(volume, data=noise, chunks=(64,) * 3, dimension_names=list("zyx"))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    calls: dict[str, int] = {}
    for _ in range(repeats):
        for name, options in WAYS.items():
            files = ",".join([model] * options.get("several", 1))
            settings = Settings.of(
                input=volume, model=files, out=str(folder / "o.zarr"), overwrite=True, device="cpu", tta=options["tta"]
            )
            with team(settings) as crew:
                prepared = crew.prepare()
                begun = time.process_time()
                calls[name] = run_volume(crew, prepared).windows_inferred
                seconds[name].append(time.process_time() - begun)
    rows = {}
    for name, times in seconds.items():
        often = calls[name] // calls["upright"]
        ratios = [t / one / often for t, one in zip(times, seconds["upright"], strict=True)]
        rows[name] = {
            "calls": often, "seconds": statistics.median(times), "ratio": statistics.median(ratios),
            "least": min(ratios), "most": max(ratios),
        }  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
