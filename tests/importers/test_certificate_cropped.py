"""What a network gives of a whole image, and a run of a model that takes only what is not 0."""

from types import SimpleNamespace

import numpy as np
import pytest

from support.graphs import graph, node
from unet_engine.model.file import open_model
from unet_engine.model.spec import ModelSpec

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("crop", [None, "nonzero"])
def test_a_model_that_crops_is_compared_on_an_image_of_which_nothing_is_cropped(tmp_path, crop):
    """Its example has planes of 0 at an end: cut off, nothing would agree with the network, which has no such step."""
    from unet_export.importers.certificate import _of_network

    weights, bias = np.array([1.0, -1.0], np.float32).reshape(2, 1, 1, 1, 1), np.array([0.3, 0.5], np.float32)
    spec = ModelSpec(
        name="two", axes="zyx", channels_in=1, channels_out=2, window=(8, 8, 8), window_min=(8, 8, 8),
        window_step=(8, 8, 8), margin=(0, 0, 0), activation="none", crop=crop,
    )  # fmt: skip
    model = open_model(graph(tmp_path / "two.onnx", [node("Conv", "x weights bias", "y")], shape=(1, 1, 8, 8, 8),
                             spec=spec, weights=weights, bias=bias))  # fmt: skip
    network = torch.nn.Conv3d(1, 2, 1).eval()
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(weights))
        network.bias.copy_(torch.from_numpy(bias))
    found = SimpleNamespace(
        members=[SimpleNamespace(weight=1.0, network=network)], head=None, versions={}, credit=SimpleNamespace(source="two")
    )  # fmt: skip
    assert _of_network(found, model).largest_difference < 1e-5
