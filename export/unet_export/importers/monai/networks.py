"""Networks of MONAI by the name in a bundle's configuration: those that are listed here are built, others need
trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unet_engine.errors import ModelError

NETS = (
    "AHNet", "AttentionUnet", "BasicUNet", "BasicUnet", "Basicunet", "BasicUNetPlusPlus", "BasicUnetPlusPlus", "DynUNet",
    "DynUnet", "FlexibleUNet", "HighResNet", "MedNeXt", "MedNeXtS", "MedNeXtM", "MedNeXtB", "MedNeXtL", "Quicknat", "SegResNet",
    "SegResNetDS", "SegResNetDS2", "SegResNetVAE", "SwinUNETR", "UNETR", "UNet", "Unet", "VNet",
)  # fmt: skip
"""Classes of `monai.networks.nets` whose arguments are plain values and whose outputs are images."""
_MODULE = "monai.networks.nets"


def class_of(said: Mapping[str, Any]) -> str | None:
    """Name of the listed class that a configuration means; None where it is another."""
    target = str(said.get("_target_", ""))
    module, _, name = target.rpartition(".")
    known = not module or module == _MODULE or module.startswith(_MODULE + ".")
    return name if known and name in NETS else None


def built(path: str, said: Mapping[str, Any]) -> Any:
    """The network of a listed class. Raises `ModelError` where its arguments are none for it."""
    from monai.networks import nets

    from unet_export.importers import code

    keywords = {key: value for key, value in said.items() if not key.startswith("_")}
    keywords |= dict.fromkeys(keywords.keys() & {"pretrained"}, False)  # they would be fetched, and are filled anyway
    if _holds_components(keywords):
        raise ModelError(f"{path}: the arguments of its network are built of further classes; use --trust")
    return code.built(getattr(nets, str(class_of(said))), keywords, path)


def _holds_components(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_holds_components, value.values()))
    return isinstance(value, list | tuple) and any(map(_holds_components, value))


_CODES = ("node_a", "arch_code_a")
"""What networks that were searched for (DiNTS) say of their own architecture: tensors whose elements are asked."""


def decided(network: Any) -> Any:
    """The network, whose architecture is given by arrays: what tensors say is not known while a graph is made."""
    for module in network.modules():
        for name in _CODES:
            code = vars(module).get(name)
            if hasattr(code, "detach"):
                setattr(module, name, code.detach().cpu().numpy())
    return network
