"""A network that PyTorch runs on a GPU gets our own InstanceNorm, whatever file it came from."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from unet_engine.backends import torch_norm  # noqa: E402
from unet_engine.backends.torch_norm import normalised, put, rewritten  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


class Net(nn.Module):
    """A level of a U-Net: a skip is read by two layers."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 8, 3, 1, 1), nn.InstanceNorm3d(8, affine=True), act)
        self.down = nn.Sequential(nn.Conv3d(8, 16, 3, 2, 1), nn.InstanceNorm3d(16), act)
        self.up = nn.ConvTranspose3d(16, 8, 2, 2)
        self.head = nn.Conv3d(16, 2, 1)

    def forward(self, x: Any) -> Any:
        skip = self.first(x)
        return self.head(torch.cat((self.up(self.down(skip)), skip), 1))


def calls(graph: Any) -> list[Any]:
    return [n for n in graph.graph.nodes if n.target is normalised]


def window() -> Any:
    return torch.randn((2, 1, 8, 8, 8), generator=torch.Generator().manual_seed(2))


def forms(net: nn.Module) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "eager": net, "TorchScript": torch.jit.trace(net, window(), check_trace=False),
        "pt2": torch.export.export(net, (window(),)).module(),
    }  # fmt: skip


@pytest.mark.parametrize("form", ["eager", "TorchScript", "pt2"])
@pytest.mark.parametrize("act", [nn.LeakyReLU(0.1, inplace=True), nn.ReLU()], ids=["leaky", "relu"])
def test_every_instance_norm_is_ours_with_its_activation_and_concatenation(form: str, act: nn.Module) -> None:
    net = forms(Net(act).eval())[form]
    with torch.inference_mode():
        made = rewritten(net, window())
        assert made.why == ""
        found, wanted = made.network(window()), net(window())
    ours = calls(made.network)
    assert [n.args[4] for n in ours] == [0.1 if isinstance(act, nn.LeakyReLU) else 0.0] * 2
    assert len(ours[0].args) == 7, "the skip is written into the concatenation"
    assert "cat" not in made.network.code
    assert [n.target for n in made.network.graph.nodes].count(put) == 1, (
        "what is not normalised is put there by our kernel"
    )
    assert "copy_" not in made.network.code
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_under_autocast_parameters_are_converted_once() -> None:
    net = Net(nn.LeakyReLU()).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        made = rewritten(net, window().bfloat16())
        assert made.network(window().bfloat16()).dtype is torch.bfloat16
    assert "_to_copy" not in made.network.code


class Kept(nn.Module):
    """A skip that is changed in place after it was concatenated: a rewrite that wrote it earlier would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.conv = nn.Conv3d(1, 4, 3, 1, 1)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.conv(x))
        z = torch.relu(y)
        y.mul_(3)
        return torch.cat((y, z), 1)


class Branching(Net):
    def forward(self, x: Any) -> Any:
        out = super().forward(x)
        return out if out.mean() > 0 else -out


def test_what_cannot_be_rewritten_is_left_and_told() -> None:
    with torch.inference_mode():
        for net in (Kept().eval(), Branching(nn.ReLU()).eval()):
            made = rewritten(net, window())
            if made.network is not None:  # then it is the same network
                torch.testing.assert_close(made.network(window()), net(window()))
            else:
                assert "its InstanceNorm is PyTorch's" in made.why
        assert rewritten(Branching(nn.ReLU()).eval(), window()).network is None


def test_a_network_without_it_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ReLU()).eval()
    with torch.inference_mode():
        assert rewritten(net, window()) == torch_norm.Rewritten()


def test_a_wrong_rewrite_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_norm, "put", lambda joined, at, part: joined.zero_())
    with torch.inference_mode():
        made = rewritten(Net(nn.ReLU()).eval(), window())
    assert made.network is None
    assert "apart" in made.why
