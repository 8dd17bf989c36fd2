"""The predictors of other tools, as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


class _Float32Sums:
    """PyTorch as nnU-Net's predictor sees it, but that `torch.half`, the type of its sums, is float32: its own rounding
    moves the labels of untrained networks by a thousandth."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.half = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


@contextlib.contextmanager
def float32_sums() -> Iterator[None]:
    """nnU-Net's predictor adds in float32 inside, with weights that are not rounded to float16."""
    from functools import partial

    import nnunetv2.inference.predict_from_raw_data as peer
    import torch

    before = peer.torch, peer.compute_gaussian
    peer.torch, peer.compute_gaussian = _Float32Sums(torch), partial(peer.compute_gaussian, dtype=torch.float32)
    try:
        yield
    finally:
        peer.torch, peer.compute_gaussian = before


def nnunet_logits(
    network: Any, image: Any, patch: Sequence[int], *, channels: int, step: float, mirror: Sequence[int] | None = None
) -> Any:
    """What `nnUNetPredictor.predict_sliding_window_return_logits` gives: (channels, z, y, x) float32. image: (c, z, y,
    x) float32."""
    pytest.importorskip("nnunetv2")
    predict = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    import torch

    predictor = predict.nnUNetPredictor(
        tile_step_size=step, use_mirroring=bool(mirror), perform_everything_on_device=False,
        device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    labels = SimpleNamespace(num_segmentation_heads=channels)
    plans = SimpleNamespace(get_label_manager=lambda _: labels)
    predictor.manual_initialization(
        network, plans, SimpleNamespace(patch_size=list(patch)), None, {}, "nnUNetTrainer", mirror
    )
    with float32_sums():
        return np.asarray(predictor.predict_sliding_window_return_logits(torch.from_numpy(image)))
