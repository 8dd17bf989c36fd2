"""Models of nnU-Net whose z-score is of what is inside: of several channels, with holes, against its own predictor."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("nnunetv2.inference.predict_from_raw_data")

from support import nnunet  # noqa: E402
from support.command_line import cli  # noqa: E402
from support.volumes import make_volume, result_of  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.volumes.cropped import nonzero_box  # noqa: E402
from unet_engine.volumes.formats import open_volume  # noqa: E402
from unet_engine.volumes.holes import outside_of  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.nnunet.importer import NnUNet  # noqa: E402

PATCH, ISOTROPIC = (8, 16, 16), (1.5, 0.8, 0.7)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def folder_of(path, schemes, mask, patch=PATCH, **more):
    name = "2d" if len(patch) == 2 else "3d_fullres"
    schemes = (
        {"z": "ZScoreNormalization", "c": "CTNormalization", "m": "RescaleTo01Normalization"}[schemes[0]],
        *("ZScoreNormalization" for _ in schemes[1:]),
    )
    config = nnunet.configuration(patch, schemes=schemes, mask=mask)
    return nnunet.result_folder(path, name, config, dataset_json=nnunet.dataset(len(schemes)), **more)


def head(channels, *, holes):
    """Something round in nothing: each channel is 0 in parts of its own; with holes, of which one is open."""
    rng, shape = np.random.default_rng(channels), (19, 35, 43)
    middle = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    outside = ((middle / np.array([8, 14, 18]).reshape(3, 1, 1, 1)) ** 2).sum(0) > 1
    scan = rng.gamma(2, 60, (channels, *shape)).astype(np.float32) * (1 + np.arange(channels))[:, None, None, None]
    scan[rng.random(scan.shape) < 0.1] = 0
    scan[:, outside] = 0
    if holes:
        scan[:, 7:12, 12:20, 12:25] = 0
        scan[:, 12:14, 20:23, 8:12] = 0
        scan[:, 9:11, :16, 30:33] = 0
    return scan


CASES = {
    "two channels": ("zz", (True, True), PATCH, ISOTROPIC, True, {}),
    "without holes": ("zz", (True, True), PATCH, (1.9, 0.7, 0.9), False, {}),
    "four channels": ("zzzz", (True,) * 4, PATCH, (1.9, 0.7, 0.9), True, {"mirror": (0, 1)}),
    "one without a mask": ("zzzz", (True, False, True, True), PATCH, ISOTROPIC, True, {}),
    "a CT beside it": ("cz", (False, True), PATCH, (5.0, 0.9, 0.6), True, {}),
    "0 to 1 beside it": ("mz", (False, True), PATCH, ISOTROPIC, True, {}),
    "one channel": ("z", (True,), PATCH, ISOTROPIC, True, {"transpose": (2, 0, 1)}),
    "planes": ("zz", (True, True), (16, 24), (1.5, 0.9, 0.6), True, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_masked_z_score_is_of_what_is_inside_as_its_own_predictor_has_it(tmp_path, case):
    schemes, mask, patch, spacing, holes, more = CASES[case]
    folder = folder_of(tmp_path / "r", schemes, mask, patch, **more)
    scan = head(len(schemes), holes=holes)
    found = NnUNet().read(Path(folder), Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None)
    said = cli("import", folder, "--out", "net.onnx")
    assert said.code == 0, said.err
    spec = open_model("net.onnx").spec
    given = spacing[-len(spec.axes) :] if found.example_spacing else None
    theirs = found.predictor(scan, spec.window, *((spacing,) if given else ()))
    volume = make_volume(tmp_path / "v.zarr", scan, axes="czyx", ome="0.5", scale=(1, *spacing), unit="millimeter")
    said = cli("run", "--in", volume, "--model", "net.onnx", "--out", "o.zarr", "--blend", "nnunet", "--output", "logits",
               *([] if given else ["--ignore-spacing"]))  # fmt: skip
    assert said.code == 0, said.err
    where = np.nonzero(scan.any(0))
    box = tuple(slice(int(a.min()), int(a.max()) + 1) for a in where)
    ours = result_of("o.zarr")
    np.testing.assert_allclose(ours[:, *box], theirs, atol=2e-5 * np.ptp(theirs))
    ours[:, *box] = 0
    assert not ours.any()


def test_the_certificate_is_of_a_volume_with_holes(tmp_path):
    """Else it would not tell whether they are filled."""
    folder = folder_of(tmp_path / "r", "zz", (True, True))
    found = NnUNet().read(Path(folder), Wanted(checkpoint=str(folder), out="net.onnx"), lambda _: None)
    assert str(found.promised["normalization"]) == "zscore:foreground=filled,eps=1e-08"
    image = found.example(PATCH)
    empty, outside = (image == 0).all(0), outside_of(image)
    assert (empty & ~outside).any()
    assert outside.any()
    assert (image[0] == 0).sum() > empty.sum()
    assert nonzero_box(open_volume(make_volume("v.zarr", image, axes="czyx"))).shape == image.shape[1:]
