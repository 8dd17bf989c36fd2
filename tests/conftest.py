"""Fixtures of all tests: small volumes, the identity network, a tiny real one."""

import signal
from pathlib import Path

import numpy as np
import pytest

from support.volumes import fake_model, make_volume
from unet_engine.backends import second_opinion
from unet_engine.backends.fake import FakeBackend
from unet_engine.model.spec import ModelSpec
from unet_engine.settings.files import CONFIG

pytest_plugins = ["support.cheaply", "support.examples", "support.exported_once", "support.importing", "support.turns"]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes name no test: packed ones may hold the time of day, and two processes that collect have to agree."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Tests run in a folder of their own, where no settings file lies."""
    monkeypatch.chdir(tmp_path)
    assert not Path(CONFIG).exists()


@pytest.fixture(autouse=True, scope="session")
def _own_settings(tmp_path_factory):
    """No settings of whoever runs the tests, and none are left with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Nothing is taken from the user's cache, and nothing left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNET_ENGINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_second_opinion(request, monkeypatch):
    """A second library is asked by the tests of that alone: for every other network it would be a process more."""
    if "asking" not in request.fixturenames:
        monkeypatch.setattr("unet_engine.backends.second_opinion.other_for", lambda *_: None)


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """A second library is asked, and nothing is known of earlier."""
    folder = tmp_path / "opinions"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(folder))
    return folder


@pytest.fixture
def proved(monkeypatch):
    """What is asked of a process of its own is asked here: it would be started for every model. The setups that were."""
    asked = []

    def found(setup, library, other, window):
        asked.append(setup)
        return second_opinion.compare(setup, library, other, window), True

    monkeypatch.setattr(second_opinion, "_found", found)
    return asked


@pytest.fixture
def trusting(monkeypatch):
    """The user trusts whatever model the test makes."""
    monkeypatch.setattr("unet_engine.model.trust.is_trusted", lambda sha256: True)


@pytest.fixture(autouse=True, scope="session")
def _signals():
    """What a shell starts in the background ignores these, and so would all that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def two_cores():
    """Of a small volume, what is cheaper hangs on how many windows are inferred at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_engine.machine.cpu_count", lambda: 2)
        yield


@pytest.fixture
def ramp(tmp_path):
    """A small volume of uint8 in which every voxel differs from its neighbours: (array, path)."""
    array = np.random.default_rng(0).integers(1, 200, (20, 22, 24), np.uint8)
    return array, make_volume(tmp_path / "scan.zarr", array)


@pytest.fixture
def model(tmp_path):
    """The identity network."""
    return fake_model(tmp_path)


@pytest.fixture
def blocks(monkeypatch):
    """Set the windows per block, which a user cannot: the result must not depend on it beyond rounding."""

    def fix(block):
        if block is None:
            monkeypatch.undo()
        else:
            monkeypatch.setattr("unet_engine.prepare.draft.default_block", lambda axes, _: block[-len(axes) :])

    return fix


@pytest.fixture
def meanwhile(monkeypatch):
    """``meanwhile(at, act)``: do `act` once, as the network is given its window number `at`."""

    def arrange(at, act):
        windows, start = [], FakeBackend.start

        def starting(self, slot):
            windows.append(slot)
            if len(windows) == at:
                act()
            start(self, slot)

        monkeypatch.setattr(FakeBackend, "start", starting)

    return arrange


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


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """A volume of the tissue that the demo networks know."""
    from unet_export.train.tissue import make_tissue

    folder = tmp_path_factory.mktemp("tissue")
    return make_volume(folder / "scan.zarr", make_tissue((48, 64, 64), 7)[0], chunks=(16, 32, 32))
