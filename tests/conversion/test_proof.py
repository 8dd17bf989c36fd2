"""An exported file computes what its network computes: as near as the network's own rounding allows, and on every size
that the file claims."""

import itertools

import numpy as np
import pytest

from support.command_line import cli
from support.shares import share

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from support import networks  # noqa: E402
from unet_engine.errors import ModelError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.model.spec import ModelSpec  # noqa: E402
from unet_export.conversion.exporters import from_module  # noqa: E402
from unet_export.conversion.onnx_export import export_onnx  # noqa: E402
from unet_export.conversion.probe import probe  # noqa: E402
from unet_export.conversion.proof import LARGEST_TOLERANCE, TOLERANCE, Comparison, proved, tried  # noqa: E402


def spec_of(window=(32, 32), least=(8, 8), step=(1, 1), channels=2):
    return ModelSpec(
        name="net", axes="yx", channels_in=1, channels_out=channels, window=window, window_min=least, window_step=step,
        margin=(0, 0), activation="none",
    )  # fmt: skip


class Cancelling(nn.Module):
    """A small deviation from large numbers decides, so that float32 rounds much of it away."""

    def __init__(self, offset=1000.0):
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.deep = nn.Conv2d(1, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.norm, self.last = nn.InstanceNorm2d(64, eps=1e-12), nn.Conv2d(64, 2, 1)
        self.deep.bias.data += offset

    def forward(self, x):
        return self.last(self.norm(self.deep(self.wide(x))))


def test_a_network_that_rounds_much_may_differ_by_as_much_and_a_wrong_file_is_still_refused(tmp_path):
    network, spec = Cancelling().eval(), spec_of(least=(24, 24))
    export_onnx(network, spec, tmp_path / "net.onnx")  # refused where a tolerance for all networks was 1e-4
    exact = Cancelling().double().eval()
    comparison = Comparison(network, lambda x: exact(x.double()).float(), spec)
    assert TOLERANCE < comparison.difference((32, 32)) < comparison.limit((32, 32)) <= LARGEST_TOLERANCE
    wrong = Cancelling().eval()
    with torch.no_grad():
        wrong.last.weight[0, :8] *= 1.01
    with pytest.raises(ModelError, match="differs from PyTorch by"):
        Comparison(network, wrong, spec).difference((32, 32))


def test_a_network_that_rounds_little_is_held_to_the_least_tolerance():
    network, wrong = networks.fitting().eval(), networks.fitting().eval()
    wrong.load_state_dict(network.state_dict())
    with torch.no_grad():
        wrong.last.bias += 3e-3
    comparison = Comparison(network, wrong, spec_of())
    assert comparison.limit((32, 32)) == TOLERANCE
    with pytest.raises(ModelError, match=r"differs from PyTorch by .*limit 1e-04"):
        comparison.difference((32, 32))


def _right_for(admits):
    """A file that is right for the sizes that `admits`, refuses even ones and is wrong for others."""

    def run(x):
        sizes = x.shape[2:]
        if all(admits(n) for n in sizes):
            return x.repeat(1, 2, 1, 1)
        if all(n % 2 == 0 for n in sizes):
            raise RuntimeError("Non-zero status code returned while running Concat node")
        return x.repeat(1, 2, 1, 1) + 1

    return run


@pytest.mark.parametrize(
    ("admits", "least", "step"),
    [
        (lambda n: True, 8, 1),
        (lambda n: n % 2 == 0, 8, 2),
        (lambda n: n % 16 == 0, 16, 16),
        (lambda n: n >= 15, 20, 1),
        (lambda n: n == 32, None, None),
    ],
)
def test_sizes_are_those_that_the_file_is_right_for(admits, least, step):
    network = nn.Conv2d(1, 2, 1, bias=False)
    nn.init.ones_(network.weight)
    found = proved(Comparison(network, _right_for(admits), spec_of()))
    if least is None:
        assert found is None
    else:
        assert (found.window_min, found.window_step) == ((least, least), (step, step))
        assert all(admits(n) for window in tried(found) for n in window)


def test_windows_that_stand_for_others_are_odd_and_even_steps_and_never_huge():
    windows = tried(spec_of((64, 64), (16, 16), (16, 16)))
    steps = {tuple((n - 16) // 16 for n in window) for window in windows}
    assert {n % 2 for counts in steps for n in counts} == {0, 1}
    assert any(len(set(window)) == 2 for window in windows)
    assert all(np.prod(window) <= 3 * 64 * 64 for window in windows)


def test_a_file_that_is_wrong_on_its_own_window_is_refused_in_one_line():
    network = networks.fitting().eval()

    def broken(x):
        raise RuntimeError("[ONNXRuntimeError] : 6 : Status Message: Concat axes differ\nat node 7")

    with pytest.raises(ModelError, match="does not run on its own window of 32×32: Concat axes differ at node 7; try"):
        proved(Comparison(network, broken, spec_of()))


def test_sizes_are_multiples_of_what_the_network_pools_by_though_it_takes_others():
    assert networks.fitting()(torch.zeros(1, 1, 33, 35)).shape[2:] == (33, 35)
    found = probe(networks.fitting().eval(), (32, 32), None, fixed=False)
    assert (found.window_min, found.window_step) == ((8, 8), (4, 4))
    assert probe(networks.fitting().eval(), (30, 32), None, fixed=False).window_min == (6, 8)


@pytest.mark.parametrize("name", share(["fitting", "pyramid"]))
def test_every_claimed_size_is_computed_as_pytorch_computes_it(tmp_path, name):
    torch.manual_seed(0)
    network = getattr(networks, name)().eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    said = cli(
        "export", tmp_path / "w.pth", "--factory", f"support.networks:{name}", "--out", tmp_path / "n.onnx", "--window",
        "36,24"
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "onnxruntime" not in said.err
    spec = open_model(tmp_path / "n.onnx").spec
    assert any(spec.window_step) or "alone" in said.err
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"))
    for y, x in itertools.product(range(4), repeat=2):
        size = [l + k * s for l, k, s in zip(spec.window_min, (y, x), spec.window_step, strict=True)]
        voxels = torch.randn(1, 1, *size)
        with torch.inference_mode():
            expected = network(voxels).numpy()
        got = session.run(None, {session.get_inputs()[0].name: voxels.numpy()})[0]
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


class Padded(nn.Module):
    """Adds channels to what it has without its history, as MONAI's ResNet does."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        y = self.first(x)
        return torch.cat((y.data, torch.zeros(y.size(0), 1, *y.shape[2:])), 1)


def test_data_without_history_is_exported_as_it_is_computed(tmp_path):
    export_onnx(Padded().eval(), spec_of(channels=3), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert session.run(None, {"input": np.ones((1, 1, 16, 16), np.float32)})[0].shape == (1, 3, 16, 16)


class OwnWindows(nn.Module):
    """Attends within windows of 3 voxels that it pads its image for, as SwinUNETR does in each of its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x):
        x = self.first(x)
        (h, w), more = x.shape[2:], [(3 - n % 3) % 3 for n in x.shape[2:]]
        x = nn.functional.pad(x, (0, more[1], 0, more[0]))
        b, c, rows, columns = x.shape
        x = x.view(b, c, rows // 3, 3, columns // 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, c)
        x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        x = x.view(b, rows // 3, columns // 3, 3, 3, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, rows, columns)
        return self.last(x[:, :, :h, :w])


def test_a_network_with_windows_of_its_own_is_not_followed_through_free_sizes_for_ever():
    with pytest.raises(ModelError, match="windows of its own"):
        from_module(OwnWindows().eval(), spec_of((16, 16), (8, 8), (4, 4)))
