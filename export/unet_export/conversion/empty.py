"""What a network gives where there is nothing but background, so that such windows need not be inferred."""

from __future__ import annotations

import numpy as np
import torch

from unet_engine.errors import ModelError, SettingsError
from unet_engine.model.spec import ModelSpec
from unet_engine.units import times
from unet_engine.volumes.normalize import scaling
from unet_export.conversion.proof import Run

AUTO = "auto"
EVEN = 0.01
"""By how much of the largest output the middle of an empty window may vary to pass for constant."""
_LARGEST = 16
"""How many times the voxels of the file's window a window has at most that is run to get away from the borders."""


def empty_of(said: str, spec: ModelSpec, run: Run) -> tuple[float, ...]:
    """Output per channel on background: the numbers in `said`, or with ``auto`` those that `run` gives in the middle of
    a window that is ``spec.background`` everywhere, as the spec normalises it.

    Raises `SettingsError` for other words, and for auto where the normalisation needs the volume; `ModelError` where
    the middle is not constant.
    """
    if said == AUTO:
        return _measured(spec, run)
    try:
        values = tuple(float(part) for part in said.split(","))
    except ValueError as error:
        raise SettingsError(f"--empty {said!r}: give one number per output channel, e.g. 4,-2, or auto") from error
    if len(values) != spec.channels_out:
        raise SettingsError(
            f"--empty {said} has {len(values)} numbers for {spec.channels_out} output channels; give one for each"
        )
    return values


def _measured(spec: ModelSpec, run: Run) -> tuple[float, ...]:
    """Windows grow, where they may, until what the borders do no longer reaches the middle."""
    if spec.normalization.looks:
        raise SettingsError(
            f"--empty auto: what background becomes under {spec.normalization} depends on the volume; "
            "give one number per output channel, or --normalize none, range or fixed"
        )
    found = scaling(spec.normalization, [np.zeros(0)] * spec.channels_in)
    values = [float(found.normalised(np.array([spec.background]), c)[0]) for c in range(spec.channels_in)]
    voxel, window = torch.tensor(values).reshape(1, -1, *(1,) * len(spec.axes)), spec.window
    while True:
        with torch.inference_mode():
            y = run(voxel.expand(1, -1, *window).contiguous())[0]
        middle = y[(slice(None), *(slice(n // 3, n - n // 3) for n in y.shape[1:]))].flatten(1)
        varies = float((middle.amax(1) - middle.amin(1)).max())
        if varies <= EVEN * max(float(y.abs().max()), 1e-6):
            return tuple(float(v) for v in y[(slice(None), *(n // 2 for n in y.shape[1:]))])
        larger = _larger(spec, window)
        if larger is None:
            raise ModelError(
                f"--empty auto: on background alone the outputs of {spec.name} vary by {varies:.2g} in the middle of "
                f"windows of {times(window)}; give one number per output channel"
            )
        window = larger


def _larger(spec: ModelSpec, window: tuple[int, ...]) -> tuple[int, ...] | None:
    """About half as large again along every axis that is free; None where that is too much, or nothing is free."""
    grown = tuple(w + -(-w // (2 * s)) * s if s else w for w, s in zip(window, spec.window_step, strict=True))
    voxels = torch.Size(grown).numel()
    return grown if grown != window and voxels <= _LARGEST * torch.Size(spec.window).numel() else None
