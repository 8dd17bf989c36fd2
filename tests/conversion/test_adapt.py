"""What a network takes and gives is seen by running it: outputs in containers, channels last, other types, another
resolution. It is wrapped, or refused by name."""

import collections
import dataclasses

import numpy as np
import pytest

from support.command_line import cli

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
from torch import nn  # noqa: E402

from unet_engine.errors import ModelError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.model.spec import ModelSpec  # noqa: E402
from unet_export.conversion.adapt import Adapted, adapted  # noqa: E402
from unet_export.conversion.checkpoint import Checkpoint  # noqa: E402
from unet_export.conversion.probe import probe  # noqa: E402
from unet_export.conversion.writing import graph_of  # noqa: E402

WINDOW = (16, 24)
Pair = collections.namedtuple("Pair", ["mask", "deep"])


@dataclasses.dataclass
class Record:
    logits: torch.Tensor


class Shaped(nn.Module):
    """A convolution, and `returns` of its result."""

    def __init__(self, returns=lambda y: y, channels=(1, 2)):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.returns = nn.Conv2d(*channels, 3, padding=1), returns

    def forward(self, x):
        return self.returns(self.conv(x))


class Last(Shaped):
    """As Keras has it: (batch, y, x, channel)."""

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def low(y):
    return nn.functional.max_pool2d(y, 2)


def image(channels=1):
    return torch.randn(1, channels, *WINDOW, generator=torch.Generator().manual_seed(1))


def check(network, expected, channels=1):
    told = []
    found = adapted(network.eval(), WINDOW, channels, None, told.append)
    with torch.inference_mode():
        torch.testing.assert_close(found(image(channels)), expected(network, image(channels)))
    assert found(image(channels)).dtype == torch.float32
    return told


@pytest.mark.parametrize(
    "returns",
    [
        lambda y: [y],
        lambda y: (y,),
        lambda y: {"out": y},
        lambda y: {"out": {"seg": [y]}},
        lambda y: Pair(y, low(y)),
        lambda y: (low(y), y),
        Record,
        lambda y: [y, y.softmax(1)],
        lambda y: {"logits": y, "labels": y.argmax(1)},
        lambda y: {"aux": y * 2, "out": y},
        lambda y: (y, y.mean((2, 3))),
        lambda y: y.double(),
        lambda y: [None, y],
    ],
    ids=range(13),
)
def test_the_output_that_is_meant_is_found_in_whatever_holds_it(returns):
    check(Shaped(returns), lambda net, x: net.conv(x))


@pytest.mark.parametrize(
    ("returns", "listed", "head"),
    [
        (lambda y: (y, y * 2), r"0 \(2×16×24\), 1 \(2×16×24\)", "1"),
        (lambda y: {"membrane": y, "nuclei": y + 1}, r"membrane \(2×16×24\), nuclei", "nuclei"),
    ],
)
def test_a_tie_is_refused_with_names_and_shapes_and_a_head_decides(returns, listed, head):
    with pytest.raises(ModelError, match=rf"{listed}.*; name one with --head"):
        adapted(Shaped(returns), WINDOW, 1)
    found = adapted(Shaped(returns), WINDOW, 1, head)
    with torch.inference_mode():
        torch.testing.assert_close(found(image()), list(_values(Shaped(returns)(image())))[1])
    with pytest.raises(ModelError, match="has no output 'other'"):
        adapted(Shaped(returns), WINDOW, 1, "other")


def _values(returned):
    return returned.values() if isinstance(returned, dict) else returned


def test_channels_last_are_recognised_and_wrapped():
    for network, channels in ((Last(channels=(1, 2)), 1), (Last(channels=(3, 2)), 3)):
        told = check(network, lambda net, x: net.conv(x), channels)
        assert "takes and gives channels last" in told[0]
    told = check(Shaped(lambda y: y.permute(0, 2, 3, 1)), lambda net, x: net.conv(x))
    assert "gives channels last" in told[0]
    valid = Shaped(lambda y: y[:, :, 2:-2, 2:-2].permute(0, 2, 3, 1))
    check(valid, lambda net, x: net.conv(x)[:, :, 2:-2, 2:-2])
    check(Shaped(lambda y: y[:, 0]), lambda net, x: net.conv(x)[:, :1])


@pytest.mark.parametrize(
    "returns", [lambda y: y.argmax(1), lambda y: y > 0, lambda y: y.argmax(1, keepdim=True).to(torch.uint8)]
)
def test_labels_are_refused_by_name(returns):
    with pytest.raises(ModelError, match="labels of windows cannot be blended; export what lies before"):
        adapted(Shaped(returns), WINDOW, 1)


@pytest.mark.parametrize(
    ("returns", "sizes"),
    [
        (low, "8×12"),
        (lambda y: low(low(y)), "4×6"),
        (lambda y: nn.functional.interpolate(y, scale_factor=2), "32×48"),
        (lambda y: low(y)[:, :, 1:-1, 1:-1], "6×10"),
    ],
)  # fmt: skip
def test_another_resolution_is_no_rim_and_refused_by_name(returns, sizes):
    with pytest.raises(ModelError, match=rf"turns 16×24 into {sizes}: its output has another resolution"):
        probe(Shaped(returns).eval(), WINDOW, 1, fixed=False)
    program = torch.export.export(Shaped(returns).eval(), (image(),))
    with pytest.raises(ModelError, match=r"another resolution|cannot be told"):
        probe(program.module(), WINDOW, 1, fixed=True)


@pytest.mark.parametrize("fixed", [False, True])
def test_a_rim_is_no_other_resolution(fixed):
    found = probe(Shaped(lambda y: y[:, :, 3:-3, 2:-2]).eval(), WINDOW, 1, fixed=fixed)
    assert found.margin == (3, 2)
    program = torch.export.export(Shaped(lambda y: y[:, :, 3:-3, 2:-2]).eval(), (image(),))
    assert probe(program.module(), WINDOW, 1, fixed=True).margin == (3, 2)


class Mixed(nn.Module):
    """Its second layer is given float64."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.second(self.first(x).double())


def test_a_layer_that_is_given_another_type_is_named():
    said = r"mixes types .*layer second \(Conv2d\) holds float32 and is given float64; let both be float32"
    with pytest.raises(ModelError, match=said):
        adapted(Mixed().eval(), WINDOW, 1)
    odd = Mixed().eval()
    odd.second.double()
    assert isinstance(adapted(odd, WINDOW, 1), Adapted), "it computes as it is"
    with pytest.raises(ModelError, match="use --window and --channels"):
        adapted(Shaped(lambda y: y @ y), WINDOW, 1)


def test_half_and_double_precision_come_in():
    for kind in (torch.float64, torch.float16):
        program = torch.export.export(Shaped().to(kind).eval(), (image().to(kind),)).module()
        found = adapted(program, WINDOW, 1)
        assert isinstance(found, Adapted)
        with torch.inference_mode():
            torch.testing.assert_close(found(image()), Shaped()(image()), atol=2e-3, rtol=0)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_program_with_several_outputs_or_of_another_type_becomes_a_file(tmp_path, kind):
    network = Shaped(lambda y: (low(y), y)).to(kind).eval()
    torch.export.save(torch.export.export(network, (image().to(kind),)), tmp_path / "net.pt2")
    told = cli("export", tmp_path / "net.pt2", "--out", tmp_path / "n.onnx", "--window", "16,24")
    assert told.code == 0, told.err
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"))
    (got,) = session.run(None, {session.get_inputs()[0].name: image().numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(got, network.conv(image().to(kind)), atol=1e-5)


def two_heads():
    return Shaped(lambda y: {"membrane": y, "nuclei": y + 1})


def channels_last():
    return Last(channels=(3, 2))


@pytest.mark.parametrize(
    ("name", "options", "said"), [("two_heads", ["--head", "nuclei"], ""), ("channels_last", [], "channels last")]
)
def test_the_file_gives_what_was_chosen(tmp_path, monkeypatch, name, options, said):
    network = globals()[name]().eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    (tmp_path / "factories.py").write_text(
        f"import importlib.util\nspec = importlib.util.spec_from_file_location('adapt_nets', {__file__!r})\n"
        "nets = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(nets)\nglobals().update(vars(nets))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "n.onnx"
    told = cli(
        "export", tmp_path / "w.pth", "--factory", f"factories:{name}", "--out", out, "--window", "16,24", *options
    )
    assert told.code == 0, told.err
    assert said in told.err
    channels = open_model(out).spec.channels_in
    session = onnxruntime.InferenceSession(str(out))
    got = session.run(None, {session.get_inputs()[0].name: image(channels).numpy()})
    with torch.inference_mode():
        expected = network.conv(image(channels)) + (name == "two_heads")
    assert len(got) == 1
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


class OfBatch(nn.Module):
    """Saved for a batch of `rows`, which its reshaping holds."""

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.rows = nn.Conv2d(1, 3, 1), rows

    def forward(self, x):
        return self.layer(x).reshape(self.rows, 3, -1).reshape(self.rows, 3, *x.shape[2:])


def test_a_network_saved_for_a_batch_of_several_windows_is_given_each_as_often():
    told = []
    script = torch.jit.trace(OfBatch(4).eval(), torch.zeros(4, 1, *WINDOW))
    network = adapted(script, WINDOW, 1, tell=told.append)
    x = torch.randn(1, 1, *WINDOW)
    torch.testing.assert_close(network(x), OfBatch(1)(x))
    assert any("batches of 4 windows alone" in line for line in told)
    measuring = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ModelError, match="does not take a window"):
        adapted(measuring.eval(), WINDOW, 1)


def test_a_script_for_single_windows_becomes_a_graph_for_single_windows():
    script = torch.jit.trace(OfBatch(1).eval(), torch.zeros(1, 1, *WINDOW))
    spec = ModelSpec(
        name="net", axes="yx", channels_in=1, channels_out=3, window=WINDOW, window_min=WINDOW, window_step=(0, 0),
        margin=(0, 0), activation="none",
    )  # fmt: skip
    proto, _ = graph_of(Checkpoint(script, "torchscript"), script, spec)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
