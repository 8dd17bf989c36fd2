"""Back ends on device memory, on the simulated GPU with real networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.volumes import make_volume, result_of
from unet_engine.backends.base import Setup
from unet_engine.backends.device_tensor import contiguous
from unet_engine.backends.libraries import open_on_device
from unet_engine.errors import BackendError, ModelError
from unet_engine.model.file import open_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small network with two channels in and three classes, as ONNX and ``.pt2``."""
    torch = pytest.importorskip("torch")
    from unet_export.conversion.onnx_export import export_onnx, export_torch
    from unet_export.train.nets import UNet, UNetConfig
    from unet_export.train.specs import spec_for

    torch.manual_seed(5)
    config = UNetConfig(dims=3, channels_in=2, classes=3, base=4, depth=2, norm="instance")
    network = UNet(config).eval()
    folder = tmp_path_factory.mktemp("nets")
    spec = spec_for(config, name="net", window=(16, 16, 16))
    export_onnx(network, spec, folder / "net.onnx")
    export_torch(network, spec, folder / "net.pt2")
    return folder


COMBINATIONS = [("onnxruntime", "net.onnx"), ("pytorch", "net.pt2")]


@pytest.mark.parametrize(("name", "file"), COMBINATIONS)
def test_a_real_network_gives_what_it_gives_on_the_cpu(files: Path, tmp_path: Path, name: str, file: str) -> None:
    """Voxels go to the device, logits come back; the library reads and writes the pipeline's own memory, channels last
    in PyTorch."""
    pytest.importorskip("torch" if name == "pytorch" else name)
    array = np.random.default_rng(3).normal(100, 20, (2, 30, 24, 28)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", array, axes="czyx")
    got = {}
    for device in ("cpu", "simulated"):
        result = unet_engine.run(
            volume, model=str(files / file), backend=name, device=device, precision="fp32", output="logits",
            out=str(tmp_path / f"{device}.zarr"), normalize="zscore",
        )  # fmt: skip
        got[device] = result_of(result.out)
    np.testing.assert_allclose(got["simulated"], got["cpu"], atol=2e-5 * np.abs(got["cpu"]).max())


@pytest.mark.slow
def test_bfloat16_is_close_and_computed_in_it_all_the_way(files: Path, tmp_path: Path) -> None:
    """Windows are cut and added in the type that the network computes in."""
    pytest.importorskip("torch")
    array = np.random.default_rng(3).normal(100, 20, (2, 20, 24, 28)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", array, axes="czyx")
    got = {}
    for precision in ("fp32", "bf16"):
        result = unet_engine.run(
            volume, model=str(files / "net.pt2"), backend="pytorch", device="simulated", precision=precision,
            output="logits",
            out=str(tmp_path / f"{precision}.zarr"), normalize="zscore",
        )  # fmt: skip
        got[precision] = result_of(result.out)
    opened = open_on_device("pytorch", Setup(open_model(files / "net.pt2"), (16, 16, 16), "simulated", "bf16"))
    assert (opened.input.dtype, opened.output.dtype) == ("bfloat16", "bfloat16")
    apart = np.abs(got["bf16"] - got["fp32"]).max() / np.abs(got["fp32"]).max()
    assert 0 < apart < 0.1


@pytest.mark.parametrize(("name", "file"), COMBINATIONS)
def test_batches_that_run_one_after_the_other_are_independent(files: Path, name: str, file: str) -> None:
    pytest.importorskip("torch" if name == "pytorch" else name)
    backend = open_on_device(name, Setup(open_model(files / file), (16, 16, 16), "simulated", batch=2))
    assert backend.input.shape == (2, 2, 16, 16, 16)
    assert backend.output.shape == (2, 3, 16, 16, 16)
    device, rng = backend.device, np.random.default_rng(1)
    batches = [rng.normal(size=backend.input.shape).astype(np.float32) for _ in range(3)]
    answers = []
    for batch in (*batches, *batches):
        source, target = (
            np.from_dlpack(device.array(t.region, t.shape, t.dtype, t.strides)) for t in (backend.input, backend.output)
        )
        source[...] = batch
        backend.run(backend.stream.handle)
        answers.append(target.copy())
    for first, again in zip(answers[:3], answers[3:], strict=True):
        np.testing.assert_array_equal(first, again)
    assert np.abs(answers[0] - answers[1]).max() > 0
    backend.close()


def test_a_precision_or_a_back_end_that_does_not_run_there_is_refused(files: Path) -> None:
    model = open_model(files / "net.onnx")
    with pytest.raises(BackendError, match="openvino does not run on simulated"):
        open_on_device("openvino", Setup(model, (16, 16, 16), "simulated"))
    with pytest.raises(BackendError, match="use --precision fp32"):
        open_on_device("onnxruntime", Setup(model, (16, 16, 16), "simulated", precision="int8"))
    pytest.importorskip("torch")
    with pytest.raises(ModelError, match="does not take windows"):
        open_on_device("pytorch", Setup(open_model(files / "net.pt2"), (15, 16, 16), "simulated"))
    with pytest.raises(BackendError, match="use --precision fp32, bf16, fp16"):
        open_on_device("pytorch", Setup(open_model(files / "net.pt2"), (16, 16, 16), "simulated", precision="int8"))


def test_strides_of_c_order() -> None:
    assert contiguous((2, 3, 4)) == (12, 4, 1)
