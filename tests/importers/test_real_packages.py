"""Packages of other people, as they are: what their own test tensors say of the model file."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("yaml")

from support.command_line import cli  # noqa: E402
from support.shares import share  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_export.importers.bioimageio import torch_em  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared" / "models" / "bioimageio"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real packages lie in ../shared, which is not here")


@needs_shared
@pytest.mark.parametrize(
    ("name", "step", "labels"), share([("unet2d_fixed_shape", (0, 0), 1), ("unet2d_diff_output_shape", (16, 16), 2)])
)
def test_a_package_without_its_code_is_imported_and_certified(tmp_path, name, step, labels):
    said = cli("import", SHARED / name, "--out", tmp_path / "net.onnx")
    assert said.code == 0, said.err
    model = open_model(tmp_path / "net.onnx")
    (certificate,) = model.credit.certificate
    assert certificate.largest_difference < 5e-4
    if labels == 1:  # its test output is above 0 everywhere, so that labels prove nothing
        assert certificate.equal_labels is None
    else:
        assert certificate.equal_labels >= 0.999
        assert min(certificate.dice.values()) >= 0.999
    assert (model.spec.window, model.spec.window_step) == ((256, 256), step)
    assert model.credit.licence == "CC-BY-4.0"


@needs_shared
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("unet2d_multi_tensor", "takes 2 inputs (input0, input1)"),
        ("unet2d_keras_tf2", "tf2onnx"),
        ("upsample_test_model", "makes 4 voxels of each one along y"),
    ],
)
def test_packages_that_are_not_taken_say_why(tmp_path, name, why):
    said = cli("import", SHARED / name, "--out", tmp_path / "net.onnx", "--trust")
    assert said.code == 5
    assert why in said.error
    assert not (tmp_path / "net.onnx").exists()


@needs_shared
def test_a_network_without_its_code_is_not_taken_on_faith(tmp_path):
    said = cli("import", SHARED / "unet2d_fixed_shape", "--out", tmp_path / "net.onnx", "--uncertified")
    assert said.code == 5
    assert "lacks unet.py" in said.error


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("UNet2d", {"in_channels": 1, "out_channels": 2, "depth": 3}, True),
        ("AnisotropicUNet", {"in_channels": 1, "out_channels": 2, "scale_factors": [[1, 2, 2], [2, 2, 2]]}, True),
        ("UNet2d", {"in_channels": 1, "out_channels": 2, "final_activation": "load"}, False),
        ("UNet2d", {"in_channels": 1, "out_channels": 2, "postprocessing": "affinities_to_boundaries2d"}, False),
        ("UNet2d", {"in_channels": 1, "out_channels": 2, "own": 1}, False),
        ("Tiny", {"in_channels": 1, "out_channels": 2}, False),
    ],
)
def test_which_networks_are_built_without_their_code(name, said, expected):
    assert torch_em.known(name, said) == expected
    if expected:
        dims = 2 if name == "UNet2d" else 3
        x = torch.zeros(1, 1, *((16,) * dims))
        assert torch_em.built(name, said | {"initial_features": 2})(x).shape == (1, 2, *x.shape[2:])
