"""Networks of segmentation-models-pytorch by name and plain arguments."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from unet_engine.errors import ModelError, SettingsError, first_line

NAMES = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet", "Segformer",
    "DPT",
)  # fmt: skip
_BY_WORD = {"".join(c for c in name.lower() if c.isalnum()): name for name in NAMES}
_SHORT = {"in": "in_channels", "channels": "in_channels", "encoder": "encoder_name"}
HOW = "write it like --smp Unet,resnet34,classes=5,in_channels=3"


@dataclass(frozen=True)
class Named:
    """What builds a network: a class, and arguments that are plain values."""

    name: str
    encoder: str = "resnet34"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join([self.name, self.encoder, *(f"{k}={v}" for k, v in self.arguments.items())])


def name_of(word: Any) -> str | None:
    """The class that a word such as ``unet++`` or ``UnetPlusPlus`` means; None where it means none."""
    plain = str(word).lower().replace("++", "plusplus").replace("deeplabv3+", "deeplabv3plus")
    return _BY_WORD.get("".join(c for c in plain if c.isalnum()))


def parsed(text: str) -> Named:
    """``Unet,resnet34,classes=5`` as what it means. Raises `SettingsError` where it means nothing."""
    first, *rest = [part.strip() for part in text.split(",")]
    name = name_of(first)
    if name is None:
        raise SettingsError(f"--smp {text!r}: {first!r} is none of {', '.join(NAMES)}; {HOW}")
    encoder, arguments = "resnet34", {}
    for i, part in enumerate(rest):
        key, equals, value = part.partition("=")
        if equals:
            arguments[_SHORT.get(key, key)] = _value(value)
        elif i == 0 and part:
            encoder = part
        else:
            raise SettingsError(f"--smp {text!r}: {part!r} is no name=value; {HOW}")
    return Named(name, str(arguments.pop("encoder_name", encoder)), arguments)


def _value(text: str) -> Any:
    if "/" in text:
        return [_value(part) for part in text.split("/")]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _fitting_torchvision() -> str:
    """What most often is the matter: PyTorch for CPUs, and torchvision from PyPI, which is for GPUs."""
    import torch

    command = "pip install --force-reinstall --no-deps torchvision"
    if torch.version.cuda is None and torch.version.hip is None:
        command += " --index-url https://download.pytorch.org/whl/cpu"
    return f"install the torchvision that fits this PyTorch: {command}"


def built(path: str, named: Named) -> Any:
    """The network, with nothing fetched from anywhere. Raises `ModelError` where it cannot be."""
    if ":" in named.encoder or "/" in named.encoder:
        raise ModelError(
            f"{path}: its encoder {named.encoder} would be fetched from elsewhere, and nothing is fetched for a network; "
            "save it with an encoder of segmentation-models-pytorch, or use unet-engine export with --factory"
        )
    from unet_export.importers import code

    try:
        import segmentation_models_pytorch as smp
    except Exception as error:  # what it needs fails in its own ways
        raise ModelError(
            f"segmentation-models-pytorch cannot be imported: {first_line(error)}; {_fitting_torchvision()}"
        ) from error
    unsaid = {k: v for k, v in named.arguments.items() if k not in ("encoder_weights", "encoder_name")}
    keywords = {**unsaid, "encoder_name": named.encoder, "encoder_weights": None}
    with _plain_attention():
        return code.built(getattr(smp, named.name), keywords, path)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Networks of timm are built with attention in steps: PyTorch's exporter knows the fused one with four axes alone,
    and Hiera's has five."""
    layers: Any = sys.modules.get("timm.layers")
    if layers is None:
        yield
        return
    fused, experimental = layers.use_fused_attn(), layers.use_fused_attn(experimental=True)
    layers.set_fused_attn(False)
    try:
        yield
    finally:
        layers.set_fused_attn(fused, experimental)
