"""``unet-engine export``: whatever people keep after training becomes a file that computes what PyTorch computes."""

import json

import numpy as np
import pytest

from support.command_line import cli
from support.shares import share

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from support import networks  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("trusting")]

SMALL = {2: "32,48", 3: "16,16,24"}


def exported(tmp_path, name, *options, dims=3):
    """Export the network `name` of `networks` from its state dict; what the command said, its spec and the network."""
    torch.manual_seed(1)
    network = getattr(networks, name)().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "net.onnx"
    said = cli(
        "export", tmp_path / "weights.pth", "--factory", f"support.networks:{name}", "--out", out,
        "--window", SMALL[dims], "--json", *options,
    )  # fmt: skip
    return said, network, out


def check(network, out, shape):
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(x))
        expected = (expected[0] if isinstance(expected, (list, tuple)) else expected).numpy()
    session = onnxruntime.InferenceSession(str(out))
    got = session.run(None, {session.get_inputs()[0].name: x})
    assert len(got) == 1
    np.testing.assert_allclose(got[0], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", share(["instance_trilinear", "attention", "valid", "group", "residual", "supervised"]))
def test_unusual_layers_come_out_as_pytorch_has_them_on_other_windows_too(tmp_path, name):
    said, network, out = exported(tmp_path, name)
    assert said.code == 0, said.err
    spec = open_model(out).spec
    assert all(spec.window_step), said.err
    other = tuple(w + s for w, s in zip(spec.window, spec.window_step, strict=True))
    check(network, out, (1, spec.channels_in, *other))
    assert said.json["largest_difference"] < 1e-4
    assert ("outputs" in said.err) == (name == "supervised")


def test_an_anisotropic_2d_network_has_a_lattice_of_its_own_per_axis(tmp_path):
    said, network, out = exported(tmp_path, "anisotropic", dims=2)
    assert said.code == 0, said.err
    spec = open_model(out).spec
    assert (spec.axes, spec.window_step) == ("yx", (1, 4))
    check(network, out, (2, 1, 33, 20))


def test_outputs_that_only_values_show_to_be_probabilities_are_told(tmp_path):
    said, _, _ = exported(tmp_path, "swinging", dims=2)
    assert said.code == 0, said.err
    assert "of noise, outputs lie between" in said.err
    assert "use --activation probabilities" in said.err
    said, _, _ = exported(tmp_path, "swinging", "--activation", "probabilities", dims=2)
    assert "of noise" not in said.err


@pytest.mark.usefixtures("asking")
def test_a_layer_that_a_library_computes_wrongly_is_told(tmp_path):
    said, _, _ = exported(tmp_path, "edged", "--sizes", "static", dims=2)
    assert said.code == 0, said.err
    assert "of noise, openvino" in said.err
    assert "a run takes onnxruntime" in said.err


def test_a_static_file_takes_its_window_alone(tmp_path):
    _, network, out = exported(tmp_path, "group", "--sizes", "static")
    spec = open_model(out).spec
    assert (spec.window_min, spec.window_step) == ((16, 16, 24), (0, 0, 0))
    check(network, out, (1, 1, 16, 16, 24))


@pytest.mark.parametrize("suffix", [".pt2", ".pt", ".onnx"])
def test_exported_programs_scripts_and_onnx_come_in_too(tmp_path, suffix):
    network = networks.group().eval()
    example, path = torch.zeros(1, 1, 16, 16, 24), tmp_path / f"source{suffix}"
    if suffix == ".pt2":
        torch.export.save(torch.export.export(network, (example,)), path)
    elif suffix == ".pt":
        torch.jit.save(torch.jit.trace(network, example), path)
    else:
        torch.onnx.export(network, (example,), path, dynamo=True, external_data=False, verbose=False)
    out = tmp_path / "net.onnx"
    said = cli("export", path, "--out", out, "--window", "16,16,24", "--classes", "a,b", "--normalize", "range:0,255")
    assert said.code == 0, said.err
    spec = open_model(out).spec
    assert (spec.classes, str(spec.normalization), spec.window) == (("a", "b"), "range:0,255", (16, 16, 24))
    check(network, out, (1, 1, 16, 16, 24))


def test_free_sizes_of_a_program_that_has_none_are_refused(tmp_path):
    network = networks.group().eval()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 1, 16, 16, 16),)), tmp_path / "fixed.pt2")
    options = ["--out", tmp_path / "net.onnx", "--window", "16,16,16"]
    said = cli("export", tmp_path / "fixed.pt2", *options, "--sizes", "dynamic")
    assert said.code == 5
    assert "takes one size alone along z, y, x" in said.error
    said = cli("export", tmp_path / "fixed.pt2", *options)
    assert "takes windows of (16, 16, 16) alone" in said.err


def test_an_onnx_with_several_outputs_keeps_the_one_of_full_resolution(tmp_path):
    network = networks.supervised().eval()
    path = tmp_path / "heads.onnx"
    torch.onnx.export(network, (torch.zeros(1, 1, 16, 16, 24),), path, dynamo=True, external_data=False, verbose=False)
    said = cli("export", path, "--out", tmp_path / "net.onnx")
    assert said.code == 0, said.err
    check(network, tmp_path / "net.onnx", (1, 1, 16, 16, 24))


@pytest.mark.slow
def test_a_network_of_nnunet_with_its_heads_comes_through(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    network = networks.nnunet().eval()
    torch.save({"network_weights": network.state_dict()}, tmp_path / "checkpoint_final.pth")
    said = cli(
        "export", tmp_path / "checkpoint_final.pth", "--factory", "support.networks:nnunet", "--window", "16,16,16",
        "--out", tmp_path / "net.onnx",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "2 outputs; that of the highest resolution is kept" in said.err
    check(network, tmp_path / "net.onnx", (1, 1, 16, 24, 20))


@pytest.mark.parametrize("holder", share(["state_dict", "network_weights"]))
def test_weights_are_found_where_frameworks_keep_them_and_prefixes_go(tmp_path, holder):
    network = networks.group()
    torch.save({holder: {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 3}, tmp_path / "c.ckpt")
    said = cli(
        "export",
        tmp_path / "c.ckpt",
        "--factory",
        "support.networks:group",
        "--out",
        tmp_path / "n.onnx",
        "--window",
        "16,16,16",
    )
    assert said.code == 0, said.err
    check(network.eval(), tmp_path / "n.onnx", (1, 1, 16, 16, 16))


def test_arguments_reach_the_factory(tmp_path):
    network = networks.group(base=3)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    arguments = ["--factory", "support.networks:group", "--out", tmp_path / "n.onnx", "--window", "16,16,16"]
    assert cli("export", tmp_path / "w.pth", *arguments, "--arguments", json.dumps({"base": 3})).code == 0
    said = cli("export", tmp_path / "w.pth", *arguments)
    assert said.code == 5
    assert "check --arguments" in said.error


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--factory", "support.networks:unsupported"], 5,
         "uses the operator prims.bessel_j0, which has no form in ONNX"),
        (["--factory", "support.networks:nothing"], 2, "has no attribute 'nothing'"),
        (["--factory", "support.networks"], 2, "is not package.module:function"),
        (["--factory", "support.networks:broken"], 2, "failed: no such size"),
        (["--factory", "support.networks:no_module"], 2, "returned a int"),
        (["--factory", "support.networks:other"], 5, "lacks down.weight, down.bias of the network"),
        (["--factory", "support.networks:group", "--arguments", "{base"], 2, "--arguments is not valid JSON"),
        (["--factory", "support.networks:group", "--arguments", "3"], 2, "is no JSON object"),
        (["--factory", "support.networks:group", "--window", "15,16,16"], 5, "does not take a window of 15×16×16"),
        (["--factory", "support.networks:group", "--window", "a"], 2, "--window 'a'"),
        (["--factory", "support.networks:group", "--classes", "a,b,c"], 2, "3 class names for 2 labels"),
        ([], 2, "name what builds it: --factory"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path, options, code, message):
    torch.save(networks.group().state_dict(), tmp_path / "w.pth")
    if "support.networks:unsupported" in options:
        torch.save(networks.unsupported().state_dict(), tmp_path / "w.pth")
    window = [] if "--window" in options else ["--window", "16,16,16"]
    said = cli("export", tmp_path / "w.pth", "--out", tmp_path / "n.onnx", *options, *window)
    assert said.code == code, said.err
    assert message in said.error
    assert not (tmp_path / "n.onnx").exists()


def test_a_checkpoint_that_is_none_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"not weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (("gone.pth", "does not exist"), ("w.pth", "plain weights"), ("list.pth", "no weights")):
        said = cli("export", tmp_path / name, "--factory", "support.networks:group", "--out", tmp_path / "n.onnx")
        assert said.code == 5
        assert message in said.error
    assert cli("export", tmp_path / "w.pth", "--out", tmp_path / "n.pt2").code == 2


class _EvalSigmoid(torch.nn.Module):
    """Ends in a sigmoid or softmax in evaluation alone, as pytorch-3dunet's networks do."""

    def __init__(self, classes):
        super().__init__()
        self.last = torch.nn.Conv2d(1, classes, 1)
        self.end = torch.nn.Sigmoid() if classes == 1 else torch.nn.Softmax(dim=1)

    def forward(self, x):
        return self.last(x) if self.training else self.end(self.last(x))


@pytest.mark.parametrize("classes", [1, 3])
def test_an_activation_of_evaluation_alone_is_found_in_what_is_exported(tmp_path, classes):
    from unet_export.conversion.export import Export, export

    script = str(tmp_path / "net.pt")
    torch.jit.save(torch.jit.trace(_EvalSigmoid(classes).eval(), torch.zeros(1, 1, 32, 32)), script)
    told = []
    export(Export(script, str(tmp_path / "net.onnx"), window=(32, 32)), told.append)
    assert open_model(tmp_path / "net.onnx").spec.activation == "probabilities"
    assert any("its outputs are taken as probabilities" in line for line in told)
    told.clear()
    export(Export(script, str(tmp_path / "said.onnx"), window=(32, 32), activation="sigmoid"), told.append)
    assert open_model(tmp_path / "said.onnx").spec.activation == "sigmoid"
    assert any("would be applied again" in line for line in told)


@pytest.mark.parametrize(("end", "words"), [("Softplus", "are never below 0"), ("Tanh", "lie from -1 to 1")])
def test_what_can_be_no_logits_is_exported_as_numbers(tmp_path, end, words):
    """As logits of a sigmoid every voxel of the first would be label 1, and no probability near 0 or 1."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), getattr(torch.nn, end)()).eval()
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16)).save(str(tmp_path / "w.pt"))
    given = [
        "export",
        tmp_path / "w.pt",
        "--trust",
        "--window",
        "16,16",
        "--out",
        tmp_path / "n.onnx",
        "--normalize",
        "none",
    ]
    said = cli(*given)
    assert said.code == 0, said.err
    assert f"ends in {end}, whose outputs {words}, so they are no logits: activation none" in said.out + said.err
    assert open_model(tmp_path / "n.onnx").spec.activation == "none"
