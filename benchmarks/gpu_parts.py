"""The parts of `gpu_check.py` by name, each run in a process of its own. A part yields figures: (what, value)."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from gpu_build import bandwidth, build, sanitizer, tests
from gpu_common import Figures
from gpu_extras import decoding, gpus, tensorrt
from gpu_further import classes, tiling
from gpu_grid import grid
from gpu_int8 import int8
from gpu_norm import norm
from gpu_resample import resample
from gpu_runs import end_to_end, memory, monai

PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "build": build, "tests": tests, "sanitizer": sanitizer, "bandwidth": bandwidth,
    "norm": norm, "end-to-end": end_to_end,
    "monai": monai,
    "memory": memory, "tensorrt": tensorrt, "gpus": gpus, "decoding": decoding, "classes": classes,
    "tiling": tiling, "int8": int8, "grid": grid, "resample": resample,
}  # fmt: skip
