"""The `ModelSpec` of a U-Net, from its layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from unet_engine.errors import SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.model.spec import Activation, ModelSpec
from unet_engine.volumes.normalize import scaling
from unet_export.train.geometry import UNetConfig, check_window, flops, output_margin, receptive_radius, window_rule

if TYPE_CHECKING:
    from unet_export.train.nets import UNet


AS_IT_IS = Normalization()


def spec_for(
    config: UNetConfig,
    *,
    name: str,
    window: Sequence[int],
    classes: Sequence[str] = (),
    normalization: Normalization = AS_IT_IS,
    activation: Activation | None = None,
    spacing: Sequence[float] | None = None,
    spacing_unit: str = "micrometer",
    background: float = 0.0,
    empty_from: UNet | None = None,
) -> ModelSpec:
    """What a model file of `config` promises: sizes, margin, receptive field and work follow from the layout.

    window      input sizes per axis used by default
    activation  what turns logits into probabilities; None: softmax, or sigmoid for a single output channel
    background  raw value of 'nothing here'
    empty_from  the trained network: its centre output on an all-background window becomes `ModelSpec.empty`, so that
                such windows need not be inferred. None leaves `empty` unset

    Raises `SettingsError` for a window that the layout does not take, a wrong number of class names, or an `empty`
    that depends on the volume (a normalisation that is measured).
    """
    sizes = tuple(window)
    check_window(config, sizes)
    least, step = window_rule(config)
    radius = receptive_radius(config)
    empty = None if empty_from is None else empty_output(empty_from, sizes, normalization, background)
    try:
        return ModelSpec(
            name=name,
            axes=config.axes,
            channels_in=config.channels_in,
            channels_out=config.classes,
            classes=tuple(classes),
            window=sizes,
            window_min=(least,) * config.dims,
            window_step=(step,) * config.dims,
            margin=(output_margin(config),) * config.dims,
            context=None if radius is None else (radius,) * config.dims,
            activation=activation or ("sigmoid" if config.classes == 1 else "softmax"),
            normalization=normalization,
            spacing=None if spacing is None else tuple(spacing),
            spacing_unit=spacing_unit,
            background=background,
            empty=empty,
            flops=flops(config, sizes),
        )
    except ValidationError as error:
        # ModelSpec's rules, told as the settings that break them.
        raise SettingsError("; ".join(str(e["msg"]) for e in error.errors())) from error


def empty_output(
    model: UNet, window: tuple[int, ...], normalization: Normalization, background: float
) -> tuple[float, ...]:
    """Logit per class at the centre of a window that holds `background` everywhere."""
    import torch

    if normalization.looks:
        raise SettingsError(
            f"the output of an empty window depends on the volume under {normalization}; "
            "train with none, range or fixed, or leave `empty` out"
        )
    channels = model.config.channels_in
    found = scaling(normalization, [np.zeros(0)] * channels)
    values = [float(found.normalised(np.array([background]), c)[0]) for c in range(channels)]
    shape = (1, channels, *window)
    x = torch.tensor(values).reshape(1, -1, *(1,) * len(window)).expand(shape)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        y = model(x)[0]
    model.train(was_training)
    centre = (slice(None), *(size // 2 for size in y.shape[1:]))
    return tuple(float(v) for v in y[centre])
