"""Resuming from an exported network, and weights that BF16 holds."""

import numpy as np
import pytest

from support.shares import share
from unet_engine.errors import ModelError, SettingsError
from unet_export.quantize.metrics import to_bf16

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import numpy_helper  # noqa: E402

from unet_export.conversion.onnx_export import export_onnx  # noqa: E402
from unet_export.train.geometry import UNetConfig  # noqa: E402
from unet_export.train.nets import UNet  # noqa: E402
from unet_export.train.restart import hold_in_bf16, let_go, load_weights  # noqa: E402
from unet_export.train.specs import spec_for  # noqa: E402

WINDOW = (8, 8, 8)


def net(norm="none", **changes):
    torch.manual_seed(3)
    network = UNet(UNetConfig(**{"dims": 3, "base": 2, "depth": 2, "norm": norm, **changes}))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):  # statistics of a training
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    return network.eval()


def exported(network, path):
    export_onnx(network, spec_for(network.config, name="net", window=WINDOW), path)
    return path


@pytest.mark.parametrize("norm", share(["none", "batch"]))
def test_a_network_that_starts_from_a_file_computes_the_same(tmp_path, norm):
    first = net(norm)
    path = exported(first, tmp_path / "net.onnx")
    torch.manual_seed(9)
    again = UNet(UNetConfig(dims=3, base=2, depth=2, norm="none")).eval()
    x = torch.randn(2, 1, *WINDOW)
    assert not torch.allclose(again(x), first(x), atol=1e-3)
    load_weights(again, path)
    torch.testing.assert_close(again(x), first(x), atol=1e-5, rtol=1e-4)


def test_weights_end_as_bf16_has_them_and_learn_nevertheless(tmp_path):
    network = net()
    before = [p.detach().clone() for p in network.parameters()]
    hold_in_bf16(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    x = torch.randn(2, 1, *WINDOW)
    held = network(x).detach()
    for _ in range(3):
        network(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert network(x).square().mean() < held.square().mean()
    trained = network(x).detach()
    let_go(network)
    torch.testing.assert_close(network(x), trained)
    assert sum(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)) == len(before)
    for tensor in onnx.load(exported(network, tmp_path / "net.onnx")).graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            np.testing.assert_array_equal(values, to_bf16(values), tensor.name)


def test_what_cannot_be_gone_on_from_is_refused(tmp_path):
    path = exported(net(), tmp_path / "net.onnx")
    with pytest.raises(SettingsError, match="use --norm none"):
        load_weights(net("batch"), path)
    with pytest.raises(ModelError, match="other sizes"):
        load_weights(net(base=4), path)
    with pytest.raises(ModelError, match="other sizes"):
        load_weights(net(depth=1), path)
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(net(), tmp_path / "no.onnx")
    with pytest.raises(SettingsError, match="use --start"):
        hold_in_bf16(net("batch"))
