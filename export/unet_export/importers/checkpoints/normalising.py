"""How images became numbers in a training, as far as its checkpoint tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unet_engine.units import Tell
from unet_export.importers.checkpoints.measured import timm_says
from unet_export.importers.checkpoints.smp import Named

_NAMES = (("mean", "std"), ("pixel_mean", "pixel_std"), ("image_mean", "image_std"), ("_mean", "_std"))
"""Buffers under which modules around a network keep what they take off images and divide them by."""

_OF_OTHERS = ("target", "label", "output", "loss", "criterion", "metric")
"""Words in names of buffers that are not about images."""


def take_scaling(held: Any, network: Any, channels: int) -> dict[str, Any] | None:
    """Fields of the `Normalization` that a module around `network` does, by its buffers, which are taken out of
    `held`, a `unet_export.conversion.weights.Weights`. None where there are none for so many channels, or several that
    differ."""
    own = [name for name in network.state_dict() if name.rpartition(".")[2] in dict(_NAMES)]
    found: dict[tuple[str, str], tuple[tuple[float, ...], tuple[float, ...]]] = {}
    for path in list(held.tensors):
        before, _, last = path.rpartition(".")
        other = next((b for a, b in _NAMES if a == last), None)
        pair = (path, f"{before}.{other}" if before else str(other))
        if other is None or pair[1] not in held.tensors or any(word in before.lower() for word in _OF_OTHERS):
            continue
        if any(f".{path}".endswith(f".{name}") for name in own):
            continue
        values = [held.tensors[name] for name in pair]
        if any(v.numel() not in (1, channels) or max(v.shape, default=1) != v.numel() for v in values):
            continue
        mean, std = (tuple(v.reshape(-1).double().tolist()) for v in values)
        if min(std) > 0:
            found[pair] = mean, std
    if len(set(found.values())) != 1:
        return None
    for name in (name for pair in found for name in pair):
        del held.tensors[name], held.holders[name]
    mean, std = next(iter(found.values()))
    return {"mode": "fixed", "mean": mean, "std": std}


def tell_scaling(taken: dict[str, Any] | None, named: Named, tell: Tell) -> None:
    """What is known of it, and what `--normalize` would say."""
    if taken:
        said = _text(taken["mean"], taken["std"])
        tell(
            f"note: the module around its network takes off a mean and divides by a deviation, which its buffers hold: "
            f"{said}; where training divided voxels before, say --normalize {said},divide=255, or whatever it did"
        )
        return
    told = _of_encoder(named.encoder)
    how = f"--normalize {told}, which its encoder was trained with," if told else "--normalize imagenet,"
    tell(
        "note: nothing says how voxels became numbers in training: they are taken as they are; "
        f"{how} or whatever was done, says otherwise"
    )


def _of_encoder(encoder: str) -> str:
    """What the weights that an encoder of timm begins with were trained with; empty where that is not known."""
    known = timm_says(encoder)
    return _text(known.mean, known.std) + ",divide=255" if known else ""


def _text(mean: Sequence[float], std: Sequence[float]) -> str:
    return "fixed:" + ",".join(
        f"{name}={'/'.join(f'{v:.6g}' for v in values)}" for name, values in (("mean", mean), ("std", std))
    )
