"""What nobody says of a network and the shapes of its weights do: channels, classes, a head that classifies images."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unet_export.importers.checkpoints.smp import Named, built

_HEAD = "segmentation_head."
_CLASSIFIES = "classification_head."
"""A head beside the one that is meant. Its weights belong to the network, which is then built with it."""


def as_weights_say(path: str, named: Named, held: Any) -> Named:
    """`named` with what its arguments leave out, as far as `held`, a `unet_export.conversion.weights.Weights`, shows
    it. Where it shows several things, nothing is taken. Raises `ModelError` where the network cannot be built."""
    shapes = {name: tuple(tensor.shape) for name, tensor in held.tensors.items()}
    found: dict[str, Any] = {}
    heads = {s[0] for n, s in shapes.items() if _CLASSIFIES in n and len(s) == 2}
    if "aux_params" not in named.arguments and len(heads) == 1:
        found["aux_params"] = {"classes": heads.pop()}
    if not {"in_channels", "classes"} <= named.arguments.keys():
        own = {n: tuple(t.shape) for n, t in built(path, named).state_dict().items() if t.dim() == 4}
        last = {s[0] for n, s in shapes.items() if _HEAD in n and len(s) == 4}
        if "classes" not in named.arguments and len(last) == 1:
            found["classes"] = last.pop()
        if "in_channels" not in named.arguments and len(first := _first(own, shapes)) == 1:
            found["in_channels"] = first.pop()
    return replace(named, arguments={**named.arguments, **found}) if found else named


def window_of(network: Any, encoder: str) -> tuple[int, ...] | None:
    """The one size of images that a network with attention is built for; None where it takes others, too, as far as its
    layers and timm say."""
    sizes = {
        tuple(module.img_size)
        for module in network.modules()
        if isinstance(getattr(module, "img_size", None), tuple) and getattr(module, "strict_img_size", True)
    }
    if len(sizes) == 1:
        return tuple(map(int, sizes.pop()))
    known = timm_says(encoder)
    return tuple(map(int, known.input_size[1:])) if known and known.fixed_input_size else None


def timm_says(encoder: str) -> Any:
    """What timm knows of an encoder of its own, without fetching anything; None where it is none, or not known."""
    timm = sys.modules.get("timm")
    if timm is None or not encoder.startswith("tu-"):
        return None
    try:
        return timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
    except Exception:  # it says no in its own ways
        return None


def _first(own: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]) -> set[int]:
    """Input channels of the weights of the network's first convolution, wherever in the file they lie."""
    name = next((n for n, s in own.items() if s[1] == 3), None)
    return {s[1] for n, s in shapes.items() if name and (n == name or n.endswith("." + name)) and len(s) == 4}
