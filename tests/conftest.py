"""What the tests share: small volumes, the identity network, a tiny real one, and the command line with all it prints."""

from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis.database import DirectoryBasedExampleDatabase

from support.paths import ROOT
from support.volumes import fake_model, make_volume
from unet_engine.model.spec import ModelSpec
from unet_engine.settings import CONFIG

pytest_plugins = ["support.turns"]

# Machines are shared, so an example may take long for no reason of its own. `make fresh` draws other examples each time.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile(
    "fresh",
    deadline=None,
    derandomize=False,
    database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples"),
    print_blob=True,
    max_examples=1000,
)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Tests run in a folder of their own, where no settings file lies."""
    monkeypatch.chdir(tmp_path)
    assert not Path(CONFIG).exists()


@pytest.fixture
def ramp(tmp_path):
    """A small volume of uint8 in which every voxel differs from its neighbours: (array, path)."""
    array = np.random.default_rng(0).integers(1, 200, (20, 22, 24), np.uint8)
    return array, make_volume(tmp_path / "scan.zarr", array)


@pytest.fixture
def model(tmp_path):
    """The identity network."""
    return fake_model(tmp_path)


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory):
    """A real network in 3D with two poolings and two classes, untrained, as a model file."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.specs import spec_for

    torch.manual_seed(0)
    config = UNetConfig(dims=3, classes=2, base=4, depth=2, norm="none")
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    spec: ModelSpec = spec_for(config, name="tiny", window=(16, 16, 16))
    export_onnx(UNet(config).eval(), spec, path)
    return str(path)
