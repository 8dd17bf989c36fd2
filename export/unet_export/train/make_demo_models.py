"""Train the two demo networks again: ``python -m unet_export.train.make_demo_models [--only cells_3d]``.

Both learn from synthetic tissue alone and land in `unet_engine/models`, which belongs to the package.
On one thread always, since the number of threads decides the order of sums: a machine gives the same weights again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from unet_engine.model.shipped import shipped_model
from unet_export.conversion.onnx_export import export_onnx
from unet_export.train.__main__ import TISSUE_CLASSES
from unet_export.train.data import LabelledVolume
from unet_export.train.geometry import UNetConfig
from unet_export.train.loss import show_dice
from unet_export.train.specs import spec_for
from unet_export.train.tissue import make_tissue
from unet_export.train.training import TrainSettings, train

SHAPE = (144, 256, 256)
SEED = 1
HOLDOUT = 40
THREADS = 1
RECIPES = {
    "cells_3d": (
        UNetConfig(dims=3, classes=3, base=8, depth=2),
        TrainSettings(window=(48, 48, 48), steps=700, batch=2, lr=5e-3, bf16=True, holdout=HOLDOUT),
        (64, 64, 64),
    ),
    "cells_2d": (
        UNetConfig(dims=2, classes=3, base=8, depth=3),
        TrainSettings(window=(128, 128), steps=800, batch=8, lr=5e-3, holdout=HOLDOUT),
        (256, 256),
    ),
}
"""Per model: the network, its training, and the window that the file proposes."""


def make(name: str, folder: Path) -> None:
    config, settings, window = RECIPES[name]
    image, labels = make_tissue(SHAPE, SEED)
    trained = train(config, LabelledVolume(image[None], labels), settings)
    spec = spec_for(
        config,
        name=name,
        window=window,
        classes=TISSUE_CLASSES,
        normalization=settings.normalization,
        background=0.0,
        empty_from=trained.model,
    )
    path = folder / f"{name}.onnx"
    error = export_onnx(trained.model, spec, path)
    print(f"{name}: loss {trained.loss:.4f}; held-out Dice: {show_dice(TISSUE_CLASSES, trained.dice)}")
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {error:.1e} from PyTorch")


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m unet_export.train.make_demo_models", description=__doc__)
    p.add_argument("--only", choices=sorted(RECIPES))
    p.add_argument("--folder", type=Path, default=shipped_model("cells_3d.onnx").parent)
    options = p.parse_args()
    torch.set_num_threads(THREADS)
    for name in [options.only] if options.only else RECIPES:
        make(name, options.folder)


if __name__ == "__main__":
    main()
