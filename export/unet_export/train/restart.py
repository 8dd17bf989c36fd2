"""Resuming from a network that training wrote, and weights that BF16 can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unet_engine.errors import ModelError, SettingsError, first_line
from unet_export.train.nets import UNet

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def load_weights(model: UNet, path: Path) -> None:
    """Copy weights and biases of the ONNX file at `path`, which `export_onnx` wrote from a `UNet` of the same sizes,
    into `model`.

    The file holds batch normalisation folded into the convolutions, so `model` has norm "none". Raises `ModelError`
    where the file is another network's, `SettingsError` where `model` has norms.
    """
    import onnx
    from onnx import numpy_helper

    if model.config.norm != "none":
        raise SettingsError(f"--start holds folded norms, and --norm is {model.config.norm}; use --norm none with it")
    try:
        graph = onnx.load(path).graph
    except Exception as error:
        raise ModelError(
            f"--start {path} cannot be read: {first_line(error)}; give an ONNX file of this command"
        ) from error
    tensors = {t.name: t for t in graph.initializer}
    stored = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose")]
    layers = _in_order(model)
    shapes = [tuple(tensors[n.input[1]].dims) if n.input[1] in tensors else () for n in stored]
    if shapes != [tuple(layer.weight.shape) for layer in layers] or any(len(n.input) < 3 for n in stored):
        raise ModelError(
            f"--start {path} has {len(stored)} convolutions of other sizes than the {len(layers)} here; use its "
            "--base, --depth and --classes"
        )
    with torch.no_grad():
        for node, layer in zip(stored, layers, strict=True):
            for name, target in zip(node.input[1:3], (layer.weight, layer.bias), strict=True):
                target.copy_(torch.from_numpy(np.array(numpy_helper.to_array(tensors[name]))))


def _in_order(model: UNet) -> list[nn.Module]:
    """The convolutions in the order of computation."""
    parts: list[nn.Module] = [*model.encoders]
    for level in reversed(range(model.config.depth)):
        parts += [model.ups[level], model.decoders[level]]
    return [m for part in (*parts, model.head) for m in part.modules() if isinstance(m, CONVOLUTIONS)]


class _ToBF16(nn.Module):  # type: ignore[misc]  # the type checker skips torch
    """Rounds to the nearest BF16; gradients pass as if it did not (Bengio et al. 2013, straight-through)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.bfloat16().float() - x).detach()

    def right_inverse(self, x: Tensor) -> Tensor:
        return x


def hold_in_bf16(model: UNet) -> None:
    """From now on compute with every weight and bias of a convolution rounded to BF16, until `let_go`.

    Libraries that compute in BF16 round weights and biases too; of a network trained so, they change neither. Raises
    `SettingsError` for batch normalisation, which is folded into the weights later and would undo it.
    """
    if model.config.norm == "batch":
        raise SettingsError(
            "--weights bf16 and --norm batch do not go together: it is folded into the weights; use --start, --norm "
            "none"
        )
    for layer in _in_order(model):
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                parametrize.register_parametrization(layer, name, _ToBF16())


def let_go(model: UNet) -> None:
    """Leave the rounded values as the weights."""
    for layer in _in_order(model):
        for name in ("weight", "bias"):
            if parametrize.is_parametrized(layer, name):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
