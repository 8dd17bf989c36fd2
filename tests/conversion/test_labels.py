"""Networks of PyTorch that give labels: cut before their argmax, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unet_engine
from support.volumes import make_volume, result_of
from unet_engine.errors import ModelError
from unet_engine.model.file import open_model

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402

from unet_export.conversion.export import Export, export  # noqa: E402

WINDOW = (16, 24)


class Ending(nn.Module):
    """Logits of three classes over the values 0 to 255, and what `ending` makes of them."""

    def __init__(self, ending: Any) -> None:
        super().__init__()
        self.conv, self.ending = nn.Conv2d(1, 3, 1), ending
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.0, -0.3, -1.103]))

    def forward(self, x: Any) -> Any:
        return self.ending(self.conv(x))


def _saved(ending: Any, path: Path) -> str:
    network, x = Ending(ending).eval(), torch.zeros(1, 1, *WINDOW)
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(network, (x,)), path)
    else:
        torch.jit.save(torch.jit.trace(network, x), str(path))
    return str(path)


@pytest.mark.parametrize(
    ("ending", "suffix"),
    [(lambda y: y.argmax(1), ".pt2"), (lambda y: y.softmax(1).argmax(1, keepdim=True).to(torch.uint8), ".ts"),
     (lambda y: y.argmax(1, keepdim=True).float(), ".ts"), (lambda y: y.max(1)[1], ".pt2")],
    ids=["int64", "uint8", "float", "max"],
)  # fmt: skip
def test_what_lies_before_an_argmax_is_blended(tmp_path: Path, ending: Any, suffix: str) -> None:
    told: list[str] = []
    out = str(tmp_path / "net.onnx")
    said = export(
        Export(_saved(ending, tmp_path / f"net{suffix}"), out, window=WINDOW, trust=True, normalize="range:0,255"),
        told.append,
    )
    assert said["channels_out"] == 3
    assert said["compared_with"] == "PyTorch"
    assert any("ends in ArgMax" in note for note in told)
    assert all(out in note for note in told if ".onnx" in note), "no file that nobody knows"
    assert open_model(out).spec.classes is None or len(open_model(out).spec.class_names) == 3
    image = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    result = unet_engine.run(make_volume(str(tmp_path / "v.zarr"), image), model=out, out=str(tmp_path / "o.zarr"))
    x = image / 255
    np.testing.assert_array_equal(result_of(result.out), np.argmax([0 * x, x - 0.3, 2 * x - 1.103], axis=0))


@pytest.mark.parametrize(
    "ending", [lambda y: (y > 0).float(), lambda y: y.sigmoid().round()], ids=["threshold", "round"]
)
def test_masks_made_floats_are_asked_about(tmp_path: Path, ending: Any) -> None:
    source, out = _saved(ending, tmp_path / "net.ts"), str(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"whole numbers alone.*lies before its threshold.*--activation"):
        export(Export(source, out, window=WINDOW, trust=True), print)
    said = export(Export(source, out, window=WINDOW, trust=True, activation="probabilities_each"), print)
    assert said["activation"] == "probabilities_each"


def test_the_least_channel_is_no_argmax(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="labels of windows cannot be blended"):
        export(
            Export(
                _saved(lambda y: y.argmin(1), tmp_path / "n.ts"), str(tmp_path / "n.onnx"), window=WINDOW, trust=True
            )
        )
