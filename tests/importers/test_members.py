"""A source of several networks becomes one model file, certified as the mean that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unet_engine
from support.volumes import make_volume, result_of
from unet_engine.errors import ModelError
from unet_engine.model.credit import Credit
from unet_engine.model.file import open_model
from unet_export.importers.base import Imported, Member, Sample, Wanted
from unet_export.importers.make import make

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
WEIGHTS = (("fold_0", 1.0), ("fold_1", 3.0))


def convolution(seed: int) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Conv2d(1, 2, 3, padding=1).eval()


class Folds:
    """Two folds, whose mean weighs the second three times, and test tensors of `expected`."""

    name, keeps, cannot, extra = "folds", "", "", ""

    def __init__(self, expected: np.ndarray | None) -> None:
        self.samples = () if expected is None else (Sample(given(), expected),)

    def content(self, path: Path) -> list[Path]:
        return [path]

    def read(self, path: Path, wanted: Wanted, tell: Any) -> Imported:
        members = tuple(Member(n, convolution(i), w) for i, (n, w) in enumerate(WEIGHTS))
        promised = {"channels_in": 1, "channels_out": 2, "window": (16, 16), "axes": "yx", "channels": "classes",
                    "normalization": "none", "mirror_axes": "yx"}  # fmt: skip
        return Imported(members, promised, "the test", Credit(source="two folds"), self.samples)


def given() -> np.ndarray:
    return np.random.default_rng(0).random((1, 16, 16)).astype(np.float32)


def of_fold(seed: int, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(convolution(seed)(torch.from_numpy(image[None]))[0])


def mean(image: np.ndarray) -> np.ndarray:
    return (of_fold(0, image) + 3 * of_fold(1, image)) / 4


def test_all_folds_are_in_the_file_and_their_mean_is_certified(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    facts = make(Folds(mean(given())), Wanted(checkpoint=str(tmp_path / "source"), out=str(tmp_path / "net.onnx")))
    model = open_model(tmp_path / "net.onnx")
    assert [(n.label, n.weight) for n in model.networks] == list(WEIGHTS)
    assert facts["credit"]["certificate"][0]["equal_labels"] >= 0.999
    assert model.credit is not None
    volume = make_volume(tmp_path / "scan.zarr", given()[0])
    found = unet_engine.run(
        volume,
        model=str(model.path),
        out=str(tmp_path / "o.zarr"),
        output="logits",
        window=(16, 16),
        tta="none",
    )
    np.testing.assert_allclose(result_of(found.out), mean(given()), atol=1e-5)
    one = unet_engine.run(
        volume,
        model=str(model.path),
        folds="1",
        out=str(tmp_path / "one.zarr"),
        output="logits",
        window=(16, 16),
        tta="none",
    )
    np.testing.assert_allclose(result_of(one.out), of_fold(1, given()), atol=1e-5)


def test_without_tensors_of_the_source_its_networks_are_asked_without_mirrors(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    facts = make(Folds(None), Wanted(checkpoint=str(tmp_path / "source"), out=str(tmp_path / "net.onnx")))
    (certificate,) = facts["credit"]["certificate"]
    assert certificate["against"] == "the mean of its 2 networks in PyTorch, of a whole image"
    assert certificate["largest_difference"] < 1e-5


def test_what_is_only_the_first_fold_is_not_certified(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    with pytest.raises(ModelError, match="would not give what the source does"):
        make(Folds(of_fold(0, given())), Wanted(checkpoint=str(tmp_path / "source"), out=str(tmp_path / "net.onnx")))
    assert not (tmp_path / "net.onnx").exists()
