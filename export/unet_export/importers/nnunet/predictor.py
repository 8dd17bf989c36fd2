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
SMALL = 2**18
"""Voxels of a patch up to which a whole volume is compared, instead of two windows."""


def version() -> str | None:
    """Of nnU-Net, where it is installed."""
    return version_of(MODULE)


@contextlib.contextmanager
def float32_sums() -> Iterator[None]:
    """nnU-Net's predictor adds in float32 inside, with weights that are not rounded. It adds in float16 otherwise, which
    moves the labels of untrained networks by a thousandth."""
    import nnunetv2.inference.predict_from_raw_data as peer
    import torch

    before = peer.torch, peer.compute_gaussian
    peer.torch, peer.compute_gaussian = _Float32Sums(torch), partial(peer.compute_gaussian, dtype=torch.float32)
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
    """What nnU-Net makes of a volume (c, [z,] y, x) that has the network's spacing: its logits (k, [z,] y, x).

    networks: those of the folds, for the axes as the plans transpose them. Nothing is read from files: nnU-Net itself
    would unpickle them."""

    def predict(volume: Array, _: tuple[int, ...]) -> Array:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints, where our own answer may be JSON
            return computed(volume)

    def computed(volume: Array) -> Array:
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        predictor = nnUNetPredictor(
            tile_step_size=0.5, use_mirroring=bool(mirror), perform_everything_on_device=False,
            device=torch.device("cpu"), allow_tqdm=False,
        )  # fmt: skip
        manager = PlansManager(dict(plans))
        chosen = manager.get_configuration(configuration)
        states = [network.state_dict() for network in networks]
        allowed = tuple(mirror) if mirror else None
        network = networks[0]
        held = {name: tensor.clone() for name, tensor in states[0].items()}  # the predictor fills it with each fold
        try:
            predictor.manual_initialization(network, manager, chosen, [held, *states[1:]], dict(dataset), "", allowed)
            data = _preprocessed(volume, manager, chosen, dict(dataset), axes)
            with float32_sums():
                logits = np.asarray(predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)))
        finally:
            network.load_state_dict(held)
        back = [0, *(1 + a for a in manager.transpose_backward)]
        found: Array = logits.transpose(back)
        return found[:, 0] if volume.ndim == 3 else found

    return predict


def _preprocessed(volume: Array, manager: Any, chosen: Any, dataset: dict[str, Any], axes: Axes) -> Array:
    """What its preprocessor makes of the volume, as of a scan that has the network's spacing already."""
    whole = volume if volume.ndim == 4 else volume[:, None]
    by_axis = dict(zip(axes.seen, chosen.spacing, strict=True))
    spacing = [float(by_axis.get(a, 1.0)) for a in range(3)]
    preprocessor = chosen.preprocessor_class(verbose=False)
    data, *_ = preprocessor.run_case_npy(whole, None, {"spacing": spacing}, manager, chosen, dataset)
    return np.ascontiguousarray(data, np.float32)


def example(window: Sequence[int], ranges: Sequence[Pair]) -> Array:
    """A volume of a window and a half along its axes (of large windows along the last one only): smoothed noise within
    the range of each channel, nowhere 0, which nnU-Net would crop."""
    whole = np.prod(window) <= SMALL
    shape = [w + (w // 2 if whole or a == len(window) - 1 else 0) if w > 1 else 3 for a, w in enumerate(window)]
    noise = np.random.default_rng(0).standard_normal((len(ranges), *shape))
    for axis in range(1, noise.ndim):
        noise = (noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)) / 2
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    values = np.stack([low + (high - low) * n for (low, high), n in zip(ranges, noise, strict=True)]).astype(np.float32)
    return np.where(values == 0, np.float32(1), values)
