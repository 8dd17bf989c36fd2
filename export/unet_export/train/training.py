"""Train a U-Net and write its model file: ``python -m unet_export.train --help``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from unet_engine.errors import SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.units import Tell
from unet_export.train.augment import Augmentation
from unet_export.train.data import LabelledVolume, batches, hold_out, shift_scale
from unet_export.train.evaluate import held_out_dice
from unet_export.train.geometry import UNetConfig
from unet_export.train.loss import segmentation_loss
from unet_export.train.nets import UNet
from unet_export.train.restart import hold_in_bf16, let_go, load_weights

EIGHT_BIT = Normalization(mode="range", low=0, high=255)


@dataclass(frozen=True)
class TrainSettings:
    """How to train. `window` gives sizes per axis of the network; `holdout` is a number of slices."""

    window: tuple[int, ...]
    steps: int = 1000
    batch: int = 2
    lr: float = 3e-3
    weight_decay: float = 1e-4
    seed: int = 0
    bf16: bool = False
    start: Path | None = None
    """ONNX file of an earlier training to resume from (see `restart.load_weights`)."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights and biases that BF16 holds exactly (see `restart.hold_in_bf16`)."""
    holdout: int = 16
    normalization: Normalization = EIGHT_BIT
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.lr > 0:
            raise SettingsError("steps and batch must be 1 or more and lr above 0; check the training settings")


@dataclass(frozen=True)
class Trained:
    """The network, its last loss (mean over the last twentieth of the steps) and its held-out Dice per class."""

    model: UNet
    loss: float
    dice: tuple[float, ...]


def train(config: UNetConfig, volume: LabelledVolume, settings: TrainSettings, tell: Tell = print) -> Trained:
    """Train on all of `volume` but its last `settings.holdout` slices, then measure Dice on those.

    AdamW with a one-cycle learning rate. The same settings, seed, machine and thread count give the same weights.
    Raises `SettingsError` or `InputError` before the first step where settings and data do not fit.
    """
    if config.classes < 2:
        raise SettingsError("training needs two classes or more (background counts); name at least two")
    volume.check_classes(config.classes)
    train_box, held_out = hold_out(volume, settings.holdout)
    part = volume.part(train_box)
    part.check_classes(config.classes)
    normalization = shift_scale(settings.normalization, part.image)
    windows = batches(
        part,
        config,
        normalization=normalization,
        window=settings.window,
        batch=settings.batch,
        how=settings.augmentation,
        rng=np.random.default_rng(settings.seed),
    )
    first = next(windows)  # refuses a bad window before anything is built
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    model = UNet(config)
    if settings.start is not None:
        load_weights(model, settings.start)
    if settings.weights == "bf16":
        hold_in_bf16(model)
    layout = torch.channels_last if config.dims == 2 else torch.channels_last_3d
    if settings.bf16:
        model = model.to(memory_format=layout)  # type: ignore[call-overload]  # channels_last_3d lacks in the stub
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.lr, total_steps=settings.steps + 1, pct_start=0.15
    )
    losses: list[float] = []
    start = time.monotonic()
    for step in range(settings.steps):
        x, y = first if step == 0 else next(windows)
        if settings.bf16:
            x = x.to(memory_format=layout)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            logits = model(x)
        loss = segmentation_loss(logits, y, volume.ignore)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        _report_step(tell, settings.steps, losses, time.monotonic() - start)
    let_go(model)
    tell("measuring Dice on the held-out slab")
    dice = held_out_dice(model, volume, held_out, normalization=normalization, window=settings.window)
    return Trained(model, float(np.mean(losses[-max(1, settings.steps // 20) :])), dice)


def _report_step(tell: Tell, steps: int, losses: list[float], seconds: float) -> None:
    done = len(losses)
    every = max(1, steps // 40)
    if done % every and done != steps:
        return
    if not np.isfinite(losses[-1]):
        raise SettingsError(f"the loss is {losses[-1]} at step {done}; use a smaller lr")
    left = seconds / done * (steps - done)
    tell(f"step {done}/{steps}  loss {np.mean(losses[-every:]):.4f}  {seconds / done:.2f} s/step  {left:.0f} s left")
