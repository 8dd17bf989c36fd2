"""The predictors of other tools, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unet_export.importers.nnunet.predictor import float32_sums


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
