"""A `.pt2` or TorchScript that runs as it is: what its graph says of its outputs, and which of them is taken."""

import numpy as np
import pytest
import zarr

import unet_engine
from unet_engine.errors import ModelError
from unet_engine.model.file import open_model

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

IMAGE = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32)
TOML = """name = "net"
axes = "yx"
channels_in = 1
channels_out = {channels}
window = [16, 16]
window_min = [16, 16]
window_step = [0, 0]
margin = [0, 0]
"""


def conv(channels):
    torch.manual_seed(channels)
    return nn.Conv2d(1, channels, 1)


class Of(nn.Module):
    """What `end` makes of a convolution."""

    def __init__(self, end, channels=1):
        super().__init__()
        self.conv, self.end = conv(channels), end

    def forward(self, x):
        return self.end(self.conv(x)) if isinstance(self.end, nn.Module) else self.end(self, x)


def saved(folder, network, kind, channels=1, batch=1, toml=""):
    network, example = network.eval(), torch.zeros(batch, 1, 16, 16)
    path = folder / f"net.{kind}"
    if kind == "pt2":
        torch.export.save(torch.export.export(network, (example,)), path)
    else:
        torch.jit.trace(network, example, strict=False).save(str(path))
    (folder / "net.toml").write_text(TOML.format(channels=channels) + toml)
    return path


def run(folder, model, **options):
    volume, out = folder / "v.zarr", str(folder / f"{len(list(folder.iterdir()))}.zarr")
    if not volume.exists():
        zarr.save_array(str(volume), IMAGE)
    unet_engine.run(str(volume), model=str(model), out=out, trust=True, normalize="none", **options)
    return zarr.open_array(out + "/0", mode="r")[...]


def whole(network, image=IMAGE):
    with torch.no_grad():
        return network.eval()(torch.from_numpy(image)[None, None])


KINDS = pytest.mark.parametrize("kind", ["pt2", "pt"])
ENDS = {
    "sigmoid": (nn.Sigmoid(), 1, "probabilities"),
    "sigmoid of channels": (nn.Sequential(nn.Sigmoid(), nn.Identity()), 2, "probabilities_each"),
    "softmax": (nn.Softmax(dim=1), 3, "probabilities"),
    "softmax from behind": (nn.Sequential(nn.Softmax(dim=-3), nn.Hardtanh(0, 1)), 3, "probabilities"),
    "a leaky end": (nn.LeakyReLU(), 3, "softmax"),
    "a mask": (lambda net, x: (net.conv(x) > 0).float(), 1, "probabilities"),
    "rounded": (lambda net, x: torch.sigmoid(net.conv(x)).round(), 1, "probabilities"),
    "half a tanh": (lambda net, x: (torch.tanh(net.conv(x)) + 1) * 0.5, 1, "probabilities"),
    "the opposite": (lambda net, x: 1 - torch.sigmoid(net.conv(x)), 1, "probabilities"),
    "heads side by side": (
        lambda net, x: torch.cat([torch.sigmoid(net.conv(x)[:, :1]), torch.sigmoid(net.conv(x)[:, 1:])], 1),
        2,
        "probabilities_each",
    ),
    "the mean of two": (lambda net, x: (net.conv(x).softmax(1) + net.conv(x * 2).softmax(1)) / 2, 3, "probabilities"),
    "squared": (lambda net, x: torch.sigmoid(net.conv(x)) ** 2, 1, "probabilities"),
    "a difference": (lambda net, x: torch.sigmoid(net.conv(x)) - net.conv(x), 1, "sigmoid"),
    "a gate": (lambda net, x: net.conv(x) * torch.sigmoid(net.conv(x)), 1, "sigmoid"),
}


@KINDS
@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_the_graph_tells_the_activation(tmp_path, kind, end):
    module, channels, activation = ENDS[end]
    network = Of(module, channels)
    path = saved(tmp_path, network, kind, channels)
    assert open_model(path).spec.activation == activation
    values = whole(network)[0].numpy()
    expected = {
        "probabilities": values[0] > 0.5 if channels == 1 else values.argmax(0),
        "probabilities_each": np.where(values.max(0) > 0.5, values.argmax(0) + 1, 0),
        "sigmoid": values[0] > 0,
        "softmax": values.argmax(0),
    }[activation]
    np.testing.assert_array_equal(run(tmp_path, path), expected)


class InEvalMode(nn.Module):
    """A network that applies its activation where it is not trained, as many do."""

    def __init__(self):
        super().__init__()
        self.conv, self.end = conv(2), nn.Softmax(dim=1)

    def forward(self, x):
        x = self.conv(x)
        if not self.training:
            x = self.end(x)
        return x


def test_a_script_with_branches_is_followed_where_they_are_decided(tmp_path):
    path = saved(tmp_path, InEvalMode(), "pt", 2)
    torch.jit.script(InEvalMode().eval()).save(str(path))
    assert open_model(path).spec.activation == "probabilities"
    np.testing.assert_array_equal(run(tmp_path, path), whole(InEvalMode())[0].argmax(0))


@KINDS
def test_an_activation_that_the_graph_contradicts_is_told(tmp_path, kind):
    path = saved(tmp_path, Of(nn.Sigmoid()), kind, toml='activation = "sigmoid"\n')
    assert "sigmoid would be applied again" in open_model(path).contradiction
    assert not open_model(path, activation="probabilities").contradiction


class Several(nn.Module):
    """Two outputs: `form` of a coarse and a fine one, or of twins."""

    def __init__(self, form, *, coarse=True):
        super().__init__()
        self.a, self.b, self.form, self.coarse = conv(2), nn.Conv2d(1, 2, 1), form, coarse

    def forward(self, x):
        first = self.a(torch.nn.functional.avg_pool2d(x, 2) if self.coarse else x)
        return (first, self.b(x)) if self.form == "tuple" else {"first": first, "fine": self.b(x)}


@KINDS
@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_the_output_at_the_resolution_of_the_input_is_taken(tmp_path, kind, form):
    network = Several(form)
    path = saved(tmp_path, network, kind, 2)
    found = whole(network)
    fine = found[1] if form == "tuple" else found["fine"]
    np.testing.assert_array_equal(run(tmp_path, path), fine[0].argmax(0))


@KINDS
def test_equal_outputs_are_asked_about_and_named(tmp_path, kind):
    network = Several("dict", coarse=False)
    path = saved(tmp_path, network, kind, 2)
    with pytest.raises(ModelError, match=r"first \(2×16×16\), fine \(2×16×16\); name one with --head"):
        run(tmp_path, path)
    for name, values in whole(network).items():
        np.testing.assert_array_equal(run(tmp_path, path, head=name), values[0].argmax(0))
    with pytest.raises(ModelError, match="no output 'seg'"):
        run(tmp_path, path, head="seg")


def test_another_head_is_another_run(tmp_path):
    from unet_engine.errors import ResumeError

    path = saved(tmp_path, Several("dict", coarse=False), "pt", 2)
    run(tmp_path, path, head="first")
    out = next(p for p in tmp_path.iterdir() if p.suffix == ".zarr" and p.name != "v.zarr")
    with pytest.raises(ResumeError):
        unet_engine.run(
            str(tmp_path / "v.zarr"), model=str(path), out=str(out), head="fine", resume=True, normalize="none"
        )


class Coarse(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1 if stride > 1 else 9, stride=stride)

    def forward(self, x):
        return self.conv(x)


def test_a_stride_is_no_rim(tmp_path):
    """Half of the input either way; the spec says that it lacks a rim."""
    for stride in (1, 2):
        network = Coarse(stride)
        path = saved(tmp_path, network, "pt", 2)
        path.with_suffix(".toml").write_text(TOML.format(channels=2).replace("margin = [0, 0]", "margin = [4, 4]"))
        if stride == 1:
            expected = whole(network, np.pad(IMAGE, 4, "reflect"))[0].argmax(0)
            np.testing.assert_array_equal(run(tmp_path, path), expected)
            continue
        with pytest.raises(ModelError, match="another resolution"):
            run(tmp_path, path)


@pytest.mark.parametrize("options", [{}, {"device": "simulated", "batch": 3}], ids=["cpu", "simulated"])
def test_a_program_of_one_batch_is_filled(tmp_path, options):
    network = Of(nn.Identity(), 2)
    path = saved(tmp_path, network, "pt2", 2, batch=4)
    np.testing.assert_array_equal(run(tmp_path, path, **options), whole(network)[0].argmax(0))


@KINDS
def test_labels_are_named(tmp_path, kind):
    network = Of(lambda net, x: net.conv(x).argmax(1, keepdim=True), 2)
    path = saved(tmp_path, network, kind, 1)
    with pytest.raises(ModelError, match="ends in ArgMax, with whole numbers, which are labels rather than logits"):
        run(tmp_path, path)
    with pytest.raises(ModelError, match="int64, and labels cannot be blended; save the network with the numbers"):
        run(tmp_path, path, activation="none")


@KINDS
def test_networks_in_half_precision(tmp_path, kind):
    network = Of(lambda net, x: net.conv(x.half()), 2)
    network.conv.half()
    with torch.no_grad():
        expected = network(torch.from_numpy(IMAGE)[None, None])[0].float().numpy()
    path = saved(tmp_path, network, kind, 2)
    np.testing.assert_allclose(run(tmp_path, path, output="logits"), expected, atol=5e-3)


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path, monkeypatch):
    from unet_engine.model import torch_graph

    path = saved(tmp_path, Of(nn.Sigmoid()), "pt2")
    assert open_model(path).spec.activation == "probabilities"
    monkeypatch.setattr(torch_graph, "LARGEST", 10)
    assert open_model(path).spec.activation == "sigmoid"  # the guess for one channel


def test_names_of_classes_fit_what_the_graph_tells(tmp_path):
    path = saved(tmp_path, Of(nn.Sigmoid()), "pt", toml='classes = ["outside", "inside"]\n')
    assert open_model(path).spec.class_names == ("outside", "inside")
    (tmp_path / "net.toml").write_text(TOML.format(channels=2) + 'channels = "offsets"\n')
    torch.jit.trace(conv(2).eval(), torch.zeros(1, 1, 16, 16)).save(str(path))
    assert open_model(path).spec.activation == "none"


@KINDS
def test_windows_that_change_one_another_never_share_a_batch(tmp_path, kind):
    """Without statistics of its own a BatchNorm takes those of the batch: windows go to it one by one on a device, as
    they do on a processor."""
    network = Of(nn.BatchNorm2d(2, track_running_stats=False), 2)
    path = saved(tmp_path, network, kind, 2, batch=3)
    expected = run(tmp_path, path, output="logits")
    found = run(tmp_path, path, output="logits", device="simulated", batch=3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@KINDS
def test_outputs_that_are_drawn_by_lot_are_refused(tmp_path, kind):
    """They would be other labels each time. The same network in inference mode runs."""
    network = Of(nn.Dropout(0.5), 2)
    path = saved(tmp_path, network, kind, 2)
    assert open_model(path).spec.channels_out == 2
    network.eval = network.train
    with pytest.raises(ModelError, match=r"random numbers .*dropout.*net\.eval"):
        open_model(saved(tmp_path, network, kind, 2))
