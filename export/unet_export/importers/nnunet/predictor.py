"""nnU-Net's own predictor, for the certificate: its preprocessing, its sliding window, its mirroring."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from unet_engine.model.normalization import Pair
from unet_engine.version import version_of
from unet_export.importers.base import Array, Predictor
from unet_export.importers.nnunet.geometry import Axes

NAME = "nnUNetPredictor, its sums in float32"
MODULE = "nnunetv2"
FINER = 1.25
"""Voxels of the example by one of the network's, along each axis, where plans resample."""
SMALL = 2**18
"""Voxels of a patch up to which a whole volume is compared, instead of two windows."""


def version() -> str | None:
    """Of nnU-Net, where it is installed."""
    return version_of(MODULE)


@contextlib.contextmanager
def float32_sums() -> Iterator[None]:
    """nnU-Net's predictor adds in float32 inside, with weights that are not rounded. It adds in float16 otherwise,
    which moves the labels of untrained networks by a thousandth."""
    import nnunetv2.inference.predict_from_raw_data as peer
    import torch

    before = peer.torch, peer.compute_gaussian
    weights = partial(peer.compute_gaussian, dtype=torch.float32)
    weights.cache_clear = peer.compute_gaussian.cache_clear  # type: ignore[attr-defined]  # it is called at the end
    peer.torch, peer.compute_gaussian = _Float32Sums(torch), weights
    try:
        yield
    finally:
        peer.torch, peer.compute_gaussian = before


class _Float32Sums:
    """PyTorch, but that `half`, the type of the predictor's sums, is float32."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.half = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def predictor_of(
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: str,
    networks: Sequence[Any],
    mirror: Sequence[int] | None,
    axes: Axes,
) -> Predictor:
    """What nnU-Net makes of a volume (c, [z,] y, x) with patches of a window's size: its logits (k, [z,] y, x), brought
    back to the volume's grid.

    networks: those of the folds, for the axes as the plans transpose them. Nothing is read from files: nnU-Net itself
    would unpickle them."""

    def predict(volume: Array, window: tuple[int, ...], spacing: Sequence[float] | None = None) -> Array:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, where our own answer may be JSON
            return computed(volume, window, spacing)

    def computed(volume: Array, window: tuple[int, ...], spacing: Sequence[float] | None) -> Array:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        predictor = nnUNetPredictor(
            tile_step_size=0.5, use_mirroring=bool(mirror), perform_everything_on_device=False,
            device=torch.device("cpu"), allow_tqdm=False,
        )  # fmt: skip
        manager = PlansManager(dict(plans))
        chosen = manager.get_configuration(configuration)
        chosen.configuration["patch_size"] = axes.in_network(window)
        states = [network.state_dict() for network in networks]
        allowed = tuple(mirror) if mirror else None
        network = networks[0]
        held = {name: tensor.clone() for name, tensor in states[0].items()}  # the predictor fills it with each fold
        try:
            predictor.manual_initialization(network, manager, chosen, [held, *states[1:]], dict(dataset), "", allowed)
            data, said = _preprocessed(volume, manager, chosen, dict(dataset), axes, spacing)
            with float32_sums():
                logits = np.asarray(predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)))
        finally:
            network.load_state_dict(held)
        logits = np.asarray(_on_its_grid(logits, said, manager, chosen))
        back = [0, *(1 + a for a in manager.transpose_backward)]
        found: Array = logits.transpose(back)
        return found[:, 0] if volume.ndim == 3 else found

    return predict


def _preprocessed(
    volume: Array,
    manager: Any,
    chosen: Any,
    dataset: dict[str, Any],
    axes: Axes,
    spacing: Sequence[float] | None,
) -> tuple[Array, dict[str, Any]]:
    """What its preprocessor makes of the volume, and what it notes of it."""
    whole = volume if volume.ndim == 4 else volume[:, None]
    by_axis = dict(zip(axes.seen, chosen.spacing, strict=True))
    given = [1.0] * (3 - len(spacing)) + list(spacing) if spacing else [float(by_axis.get(a, 1.0)) for a in range(3)]
    preprocessor = chosen.preprocessor_class(verbose=False)
    data, _, said = preprocessor.run_case_npy(whole, None, {"spacing": given}, manager, chosen, dataset)
    return np.ascontiguousarray(data, np.float32), said


def _on_its_grid(logits: Array, said: Mapping[str, Any], manager: Any, chosen: Any) -> Any:
    """As its export does before it makes labels."""
    given = [said["spacing"][a] for a in manager.transpose_forward]
    shape = said["shape_after_cropping_and_before_resampling"]
    current = chosen.spacing if len(chosen.spacing) == len(shape) else [given[0], *chosen.spacing]
    return chosen.resampling_fn_probabilities(logits, shape, current, given)


def example(window: Sequence[int], ranges: Sequence[Pair], finer: float = 1.0, *, masked: bool = False) -> Array:
    """A volume of a window and a half along its axes (of large windows along the last one only): smoothed noise within
    the range of each channel, nowhere 0, which nnU-Net would crop; but for what is `emptied` where it is `masked`.

    finer: how many of its voxels one of the network's spans."""
    whole = np.prod(window) <= SMALL
    shape = [
        round(finer * (w + (w // 2 if whole or a == len(window) - 1 else 0))) if w > 1 else 3
        for a, w in enumerate(window)
    ]
    noise = np.random.default_rng(0).standard_normal((len(ranges), *shape))
    for axis in range(1, noise.ndim):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)) / 2
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    values = np.stack([low + (high - low) * n for (low, high), n in zip(ranges, noise, strict=True)]).astype(np.float32)
    values = np.where(values == 0, np.float32(1), values)
    return emptied(values) if masked else values


def emptied(values: Array) -> Array:
    """The volume (c, z, y, x), 0 around what is inside, in a hole in there, and in a part of it in the first channel
    alone. Two corners stay, so that nothing is cropped."""
    shape = values.shape[1:]
    inside = np.zeros(shape, bool)
    inside[tuple(slice(n // 8, n - n // 8) for n in shape)] = True
    inside[tuple(slice(n // 3, n // 3 + max(1, n // 6)) for n in shape)] = False
    inside[(0,) * len(shape)] = inside[(-1,) * len(shape)] = True
    found = np.where(inside, values, np.float32(0))
    found[0][tuple(slice(n // 2, n // 2 + max(1, n // 6)) for n in shape)] = 0
    return found
