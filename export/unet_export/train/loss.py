"""Training loss, and the Dice coefficient that results are judged by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits: Tensor, labels: Tensor, ignore: int | None = None) -> Tensor:
    """Cross entropy plus one minus soft Dice, averaged over classes and batch together.

    logits float (n, c, *spatial), labels int64 (n, *spatial); voxels labelled `ignore` count in neither term.
    Soft Dice of Milletari et al. 2016 without the squares, over the whole batch. A class that the batch lacks is
    punished until its probability vanishes: batches should be large enough to hold every class most of the time.
    """
    logits = logits.float()
    kept = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    target = torch.where(kept, labels, 0)
    # By hand, because the deterministic mode of PyTorch lacks some cross entropy kernels.
    log_probability = F.log_softmax(logits, dim=1)
    picked = log_probability.gather(1, target.unsqueeze(1)).squeeze(1)
    cross_entropy = -(picked * kept).sum() / kept.sum().clamp(min=1)

    probability = log_probability.exp() * kept.unsqueeze(1)
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1) * kept.unsqueeze(1)
    over = [0, *range(2, logits.dim())]
    shared = (probability * truth).sum(over)
    total = probability.sum(over) + truth.sum(over)
    return cross_entropy + 1 - ((2 * shared + 1) / (total + 1)).mean()


def dice_per_class(
    predicted: npt.NDArray[np.integer], truth: npt.NDArray[np.integer], classes: int, ignore: int | None = None
) -> tuple[float, ...]:
    """2·|P ∩ T| / (|P| + |T|) for each class id; 1.0 where a class is absent from both."""
    kept = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    scores = []
    for class_id in range(classes):
        p, t = (predicted == class_id) & kept, (truth == class_id) & kept
        total = int(p.sum()) + int(t.sum())
        scores.append(2 * int((p & t).sum()) / total if total else 1.0)
    return tuple(scores)


def show_dice(names: Sequence[str], scores: Sequence[float]) -> str:
    return ", ".join(f"{name} {score:.4f}" for name, score in zip(names, scores, strict=True))
