"""Networks that give labels: whether they do so by an argmax, before which their graph can be cut as that of a foreign
file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_engine.errors import ModelError
from unet_engine.model.file import ModelFile, open_model
from unet_engine.model.onnx_shapes import images_of
from unet_engine.model.spec import ModelSpec
from unet_export.conversion.checkpoint import Checkpoint
from unet_export.conversion.runners import onnx_runner, plain_graph
from unet_export.conversion.writing import graph_of

AGREE = 0.999
"""Part of the labels of noise that must be those of the graph that was cut: of nearly equal channels either may win."""


def gives_whole_numbers(network: Any, channels: int, window: tuple[int, ...]) -> bool:
    """Whether outputs are labels or masks that were made floats: of noise, whole numbers alone, and several."""
    with torch.inference_mode():
        found = network(_noise(channels, window))
    return bool(torch.equal(found, found.round()) and found.min() < found.max())


def cut_file(checkpoint: Checkpoint, network: Any, spec: ModelSpec, path: Path) -> ModelFile | None:
    """The graph of `network`, which gives labels, written to `path` and read as one that ends in an ArgMax, which is
    left out; None where it ends in something else.

    spec: that of its labels. Raises `ModelError` where what is left tells other labels than the network.
    """
    import onnx

    try:
        proto, _ = graph_of(checkpoint, network, spec)
    except ModelError:
        fixed = spec.model_copy(update={"window_min": spec.window, "window_step": (0,) * len(spec.axes)})
        proto, _ = graph_of(checkpoint, network, fixed)
    onnx.save(proto, path)
    try:
        model = open_model(path, spec.window)
    except ModelError:
        return None
    ends = {output.name for output in proto.graph.output} | {image.name for image in images_of(proto.graph)}
    if model.rewriting is None or model.rewriting.output in ends:
        return None
    noise = _noise(spec.channels_in, spec.window)
    with torch.inference_mode():
        wanted = network(noise).numpy().ravel()
    got = onnx_runner(plain_graph(model).SerializeToString(), spec.name)(noise).numpy().argmax(1).ravel()
    if wanted.shape != got.shape or np.mean(wanted == got) < AGREE:
        raise ModelError(
            f"{spec.name} gives labels, and they are not the largest channel of {model.rewriting.output}, which its "
            "graph has before its ArgMax; export a network that returns what lies before"
        )
    return model


def _noise(channels: int, window: tuple[int, ...]) -> Any:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((1, channels, *window), dtype=np.float32))
