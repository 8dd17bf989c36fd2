"""``unet-engine demo``: a synthetic volume, the network that ships with the engine, the result in a picture, the next
command to try, and the one for a volume of one's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from unet_engine.api import run_volume
from unet_engine.commands import report, screen
from unet_engine.errors import OutputError
from unet_engine.execution.choose import team
from unet_engine.model.shipped import shipped_model
from unet_engine.prepare.agreement import Confusion
from unet_engine.settings.files import CONFIG
from unet_engine.settings.settings import Settings
from unet_engine.units import times

SHAPE = (96, 192, 192)
SEED = 7
CLASSES = ("outside", "cell", "membrane")
_COLOURS = np.array([[20, 20, 30], [90, 160, 220], [250, 200, 60]], np.uint8)

Image = npt.NDArray[np.uint8]


def demo(folder: str) -> dict[str, Any]:
    """Fill `folder` with ``scan.zarr``, ``unet-engine.toml``, labels and ``demo.png``; returns Dice per class and
    throughput.

    Raises `OutputError` where the folder holds other things already.
    """
    root, console = Path(folder), screen.stderr()
    _claim(root)
    console.say(f"making a volume of synthetic tissue, {times(SHAPE)} voxels, in {root / 'scan.zarr'}")
    image, truth = _volume(root)
    settings = Settings.of(
        input=str(root / "scan.zarr"), model=str(root / "cells_3d.onnx"), out=str(root / "labels.zarr"), overwrite=True
    )
    with team(settings) as crew:
        prepared = crew.prepare()
        console.pairs(report.plan_lines(prepared))
        result = run_volume(crew, prepared, lambda p, c: report.Watcher(p, c, console))
    labels = np.asarray(zarr.open_array(root / "labels.zarr" / "0", mode="r")[...])
    confusion = Confusion(len(CLASSES))
    confusion.add(truth, labels)
    dice = {name: round(1.0 if d is None else d, 4) for name, d in zip(CLASSES, confusion.dice, strict=True)}
    _picture(root / "demo.png", image, labels, truth)
    console.say(report.result_line(result))
    console.say("Dice against the truth, 1 at best: " + ", ".join(f"{k} {v:.3f}" for k, v in dice.items()))
    console.say(f"look at {root / 'demo.png'}: input, labels, truth")
    scan, probabilities = (shlex.quote(str(root / name)) for name in ("scan.zarr", "probabilities.zarr"))
    console.say(f"next: unet-engine run --in {scan} --output probabilities --out {probabilities}")
    console.say(
        "yours: unet-engine run --in VOLUME --model MODEL, a Zarr, TIFF, NIfTI, DICOM, … and an ONNX file, or a folder of "
        "nnU-Net, MONAI, …"
    )
    return {
        "dice": dice,
        "out": result.out,
        "picture": str(root / "demo.png"),
        "windows_inferred": result.windows_inferred,
        "seconds": result.seconds,
        "voxels_per_second": result.voxels_per_second,
    }


def _claim(root: Path) -> None:
    """An empty folder, or one an earlier demo filled."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        foreign = [p.name for p in root.iterdir()] and not (root / "scan.zarr").is_dir()
    except OSError as error:
        raise OutputError(f"{root} cannot be used: {error.strerror}; choose another folder") from error
    if foreign:
        raise OutputError(f"{root} is not empty and holds no demo; choose another folder")


def _volume(root: Path) -> tuple[Image, Image]:
    """Write the volume, the model and the config; returns image and truth, both (z, y, x) uint8."""
    from unet_export.train.tissue import make_tissue

    image, truth = make_tissue(SHAPE, SEED)
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    dataset = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}
    ome = {"version": "0.5", "multiscales": [{"name": "scan", "axes": axes, "datasets": [dataset]}]}
    try:
        group = zarr.open_group(root / "scan.zarr", mode="w", attributes={"ome": ome})
        group.create_array("0", data=image, chunks=(48, 64, 64), dimension_names=list("zyx"))
        group.create_array("truth", data=truth, chunks=(48, 64, 64), dimension_names=list("zyx"))
        (root / "cells_3d.onnx").write_bytes(shipped_model("cells_3d.onnx").read_bytes())
        (root / CONFIG).write_text(
            '# Defaults for "unet-engine run" in this folder or on volumes in it.\nmodel = "cells_3d.onnx"\n'
        )
    except OSError as error:
        raise OutputError(f"{root} cannot be written: {error.strerror}; choose another folder") from error
    return image, truth


def _picture(path: Path, image: Image, labels: Image, truth: Image) -> None:
    """The middle plane of input, labels and truth side by side, twice enlarged."""
    from PIL import Image as Pillow

    z = image.shape[0] // 2
    panels = [np.repeat(image[z][..., None], 3, axis=-1), _COLOURS[labels[z]], _COLOURS[truth[z]]]
    gap = np.full((image.shape[1], 4, 3), 255, np.uint8)
    row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    Pillow.fromarray(row).resize((row.shape[1] * 2, row.shape[0] * 2), Pillow.Resampling.NEAREST).save(path)
