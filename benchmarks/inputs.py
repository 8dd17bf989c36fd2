"""What the benchmarks of a whole run work on: a U-Net with random weights, and the volumes of the shared data."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from command_line import COMMAND

SHARED = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Case:
    window: tuple[int, ...]
    axes: str
    """Of the stored volume."""
    volume: Path
    shape: tuple[int, ...]
    """Of the noise that stands for it where it is not there."""
    chunks: tuple[int, ...]
    channels: int = 1


CASES = {
    "3D": Case((64,) * 3, "zyx", SHARED / "em" / "volume.tif", (256, 520, 520), (64, 128, 128)),
    "2D": Case((512,) * 2, "yxc", SHARED / "sat" / "mosaic_4_image.tif", (2538, 3297, 3), (512, 512, 3), 3),
}


def network(case: Case, filters: int = 16) -> Any:
    """A U-Net of 4 poolings, batch normalisation, two classes, random weights, the same each time."""
    import torch

    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet

    torch.manual_seed(0)
    config = UNetConfig(
        dims=len(case.window), channels_in=case.channels, classes=2, base=filters, depth=4, norm="batch"
    )
    return UNet(config).eval()


def model_of(case: Case, filters: int, root: Path) -> Path:
    """That network as ONNX file in `root`."""
    from unet_engine.model.normalization import Normalization
    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.specs import spec_for

    module = network(case, filters)
    grey = Normalization(mode="range", low=0, high=255)
    spec = spec_for(module.config, name="bench", window=case.window, normalization=grey)
    export_onnx(module, spec, root / "bench.onnx")
    return root / "bench.onnx"


def volume_of(case: Case, root: Path, given: str | None = None, crop: str | None = None) -> Path:
    """The volume of the case, or a TIFF that is given, as Zarr in `root`; of it the first voxels along each axis, as in
    ``64,128,128``."""
    import zarr

    path = Path(given) if given else case.volume
    if path.exists():
        image = read_tiff(path)
    else:
        print(f"{path} is not there: using noise of {case.shape}", file=sys.stderr)
        image = np.random.default_rng(0).integers(0, 255, case.shape, dtype=np.uint8)
    if crop:
        image = image[tuple(slice(int(n)) for n in crop.split(","))]
    zarr.create_array(str(root / "volume.zarr"), data=image, chunks=case.chunks, dimension_names=list(case.axes))
    return root / "volume.zarr"


def read_tiff(path: Path) -> np.ndarray:
    """A TIFF, whole. Pillow decodes what tifffile needs another package for, tifffile reads stacks."""
    import tifffile
    from PIL import Image

    try:
        return np.asarray(tifffile.imread(path))
    except ValueError:
        return np.asarray(Image.open(path))


def quantized(model: Path, volume: Path, root: Path) -> Path:
    """A copy of the model with an INT8 network, calibrated on the volume and let pass whatever its Dice."""
    target = root / "int8.onnx"
    words = ["quantize", model, "--calibrate", volume, "--precision", "int8", "--backend", "openvino"]
    command = [*COMMAND, *map(str, [*words, "--min-dice", 0, "--out", target])]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return target


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
