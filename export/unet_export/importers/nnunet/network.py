"""The network that plans describe, from `dynamic-network-architectures`. Names in plans are looked up in lists of known
classes, never imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from torch import nn

from unet_engine.errors import ModelError, first_line
from unet_export.importers.nnunet.plans import Architecture

_ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
_LAYERS = (
    *(f"{kind}{n}d" for kind in ("Conv", "InstanceNorm", "BatchNorm", "Dropout") for n in (2, 3)),
    *("LeakyReLU", "ReLU", "GELU", "ELU", "SiLU", "Mish", "PReLU", "Softplus", "ReLU6", "Dropout"),
)
_BLOCKS = ("BasicBlockD", "BottleneckD")
_CLASSES = ("conv_op", "norm_op", "dropout_op", "nonlin", "block")
_MOST = 2**14
"""Of any number in plans: no network has more channels, stages or layers."""


def built(
    folder: Path, said: Architecture, channels_in: int, channels_out: int, weights: Mapping[str, Any]
) -> nn.Module:
    """The network, in inference mode, without deep supervision; not filled yet. weights: those that it will get, which
    tell where a trainer took batch norm for instance norm.

    Raises `ModelError` where its class is not known, what the plans say of it cannot be, or the library is missing."""
    name = said.network_class_name.rpartition(".")[2]
    if name not in _ARCHITECTURES:
        raise ModelError(
            f"{folder}: its architecture {said.network_class_name} is none of {', '.join(_ARCHITECTURES)}; export the "
            "network yourself, with unet-engine export --factory"
        )
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError as error:
        raise ModelError(
            f"{folder}: the networks of nnU-Net are in dynamic-network-architectures, which is not installed "
            f"({first_line(error)}); pip install 'unet-engine[nnunet]'"
        ) from error
    arguments = {key: _value(folder, key, value) for key, value in said.arch_kwargs.items()}
    norm = arguments.get("norm_op")
    if norm is not None and "Instance" in norm.__name__ and any(key.endswith("running_mean") for key in weights):
        arguments["norm_op"] = getattr(nn, norm.__name__.replace("Instance", "Batch"))
    try:
        kind = getattr(unet, name)
        network: nn.Module = kind(
            **arguments | {"input_channels": channels_in, "num_classes": channels_out, "deep_supervision": False}
        )
    except Exception as error:  # whatever their constructors raise
        raise ModelError(
            f"{folder}: {name} cannot be built as its plans say: {first_line(error)}; get the folder again"
        ) from error
    return network.eval()


def _value(folder: Path, key: str, value: Any) -> Any:
    """What an argument stands for: a class that is known, or plain numbers."""
    if key in _CLASSES and value is not None:
        return _known(folder, key, value)
    if not _is_plain(value):
        raise ModelError(f"{folder}: what its plans say of {key} is no number, list or word of them; get it again")
    return value


def _known(folder: Path, key: str, value: Any) -> Any:
    package, _, name = str(value).rpartition(".")
    if package.startswith("torch.nn") and name in _LAYERS:
        return getattr(nn, name)
    if package.startswith("dynamic_network_architectures.") and name in _BLOCKS:
        from dynamic_network_architectures.building_blocks import residual

        return getattr(residual, name)
    raise ModelError(
        f"{folder}: {key} is {value}, which is none of the layers that are known; export the network yourself, with "
        "unet-engine export --factory"
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 4 and len(value) <= _MOST and all(_is_plain(v, depth + 1) for v in value)
    if isinstance(value, dict):
        return depth < 4 and all(_is_plain(v, depth + 1) for v in value.values())
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= _MOST)


def steps(strides: Sequence[Any], axes: int) -> tuple[int, ...]:
    """Per axis, what input sizes are multiples of: the product of all strides."""
    each = [[s] * axes if isinstance(s, int) else list(s) for s in strides]
    return tuple(prod(int(s[a]) for s in each) for a in range(axes))
