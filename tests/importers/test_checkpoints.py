"""Checkpoints whose network is known by name: hub folders, Lightning, torchgeo, terratorch, averages of weights."""

import json
import os
import sys
from argparse import Namespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402

from support.command_line import cli  # noqa: E402
from support.shares import share  # noqa: E402
from support.volumes import make_volume  # noqa: E402
from unet_engine.errors import ModelError, SettingsError  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_export.conversion.weights import read_data, read_weights  # noqa: E402
from unet_export.importers.base import Wanted  # noqa: E402
from unet_export.importers.checkpoints import hyperparameters, smp  # noqa: E402
from unet_export.importers.checkpoints.importer import Checkpoint, SmpFolder  # noqa: E402


class Little(nn.Module):
    """Stands for a network of the library, which takes a minute to be imported and converted."""

    def __init__(self, encoder_name, encoder_weights, in_channels=3, classes=1, activation=None, aux_params=None, **_):
        super().__init__()
        assert encoder_weights is None
        self.down = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.segmentation_head = nn.Conv2d(4, classes, 1)
        self.activation = {None: nn.Identity(), "sigmoid": nn.Sigmoid(), "softmax2d": nn.Softmax(1)}[activation]
        if aux_params:
            self.classification_head = nn.Linear(4, aux_params["classes"])

    def forward(self, x):
        x = nn.functional.max_pool2d(self.down(x).relu(), 32)
        y = self.activation(self.segmentation_head(nn.functional.interpolate(x, scale_factor=32)))
        return (y, self.classification_head(x.mean((2, 3)))) if hasattr(self, "classification_head") else y


@pytest.fixture
def little(monkeypatch):
    """A library whose Unet is `Little`."""
    import sys
    from types import ModuleType

    module = ModuleType("segmentation_models_pytorch")
    module.Unet = Little
    module.__spec__ = json.__spec__
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    torch.manual_seed(2)
    return Little("resnet18", None, 3, 2)


def imported(source, *options):
    said = cli("import", source, "--out", "net.onnx", "--json", "--window", "64,64", *options)
    assert said.code == 0, said.err
    return said, open_model("net.onnx")


def refusal(source, *options):
    said = cli("import", source, "--out", "net.onnx", *options)
    assert said.code in (2, 5), said.err
    assert "Traceback" not in said.err
    assert not os.path.exists("ran")  # noqa: PTH110
    return said.error


def test_a_folder_of_a_hub(tmp_path, little):
    from safetensors.torch import save_file

    folder = tmp_path / "hub"
    folder.mkdir()
    config = {
        "_model_class": "Unet",
        "encoder_name": "resnet18",
        "encoder_weights": "imagenet",
        "in_channels": 3,
        "classes": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# card\n")
    save_file(little.state_dict(), folder / "model.safetensors")
    _, model = imported(folder, "--output-channels", "classes", "--normalize", "imagenet")
    assert (model.spec.channels_in, model.spec.channels_out) == (3, 2)
    assert model.spec.window_step == (32, 32)  # what it pools by, not 1
    assert model.credit.licence == "mit"
    assert model.credit.source == "segmentation-models-pytorch: Unet, resnet18, in_channels=3, classes=2"
    assert model.credit.certificate[0].largest_difference < 1e-4
    (folder / "model.safetensors").unlink()
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    places = {name: parts[n % 2] for n, name in enumerate(little.state_dict())}
    for part in parts:
        save_file({n: t for n, t in little.state_dict().items() if places[n] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (member,) = SmpFolder().read(folder, Wanted(str(folder), "net.onnx"), print).members
    assert all(torch.equal(t, little.state_dict()[n]) for n, t in member.network.state_dict().items())
    assert set(SmpFolder().content(folder)) >= {folder / part for part in parts}


@pytest.mark.parametrize("form", share(["lightning", "named", "weights", "average"], 3))
def test_checkpoints_of_trainings(tmp_path, little, form):
    path, options = tmp_path / "last.ckpt", ()
    state = {f"model.{k}": v for k, v in little.state_dict().items()}
    said = {"arch": "Unet", "encoder_name": "resnet18", "in_channels": 3, "out_classes": 2, "lr": 1e-3}
    held = {"state_dict": state, "hyper_parameters": said, "optimizer_states": [{"state": {0: torch.zeros(3)}}]}
    if form == "named":
        del held["hyper_parameters"]
        options = ("--smp", "Unet,resnet18,classes=2")
    elif form == "weights":
        path = tmp_path / "last.pth"
        held = {"params": dict(little.state_dict()), "config": said}
    elif form == "average":
        held["ema_state_dict"] = {k: v + 1 for k, v in state.items()}
        options = ("--weights", "ema_state_dict.model")
    torch.save(held, path)
    _, model = imported(path, "--output-channels", "classes", *options)
    assert model.spec.channels_out == 2
    (certificate,) = model.credit.certificate
    assert certificate.largest_difference < 1e-4


def test_networks_of_timm_are_built_with_attention_in_steps(little, monkeypatch):
    """PyTorch's exporter refuses the fused one of Hiera. What is built elsewhere keeps it."""
    import sys
    from types import SimpleNamespace

    held, seen = [1], []
    layers = SimpleNamespace(
        use_fused_attn=lambda experimental=False: held[0] > experimental,  # as timm has it
        set_fused_attn=lambda enable=True, experimental=False: held.__setitem__(0, enable and 1 + experimental),
    )
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    monkeypatch.setattr("segmentation_models_pytorch.Unet", lambda **_: seen.append(layers.use_fused_attn()) or little)
    smp.built("x.ckpt", smp.Named("Unet"))
    assert (seen, held) == ([False], [1])


@pytest.mark.parametrize(("strict", "expected"), [(True, (96, 64)), (False, None)])
def test_a_network_for_one_size_of_image_has_that_for_its_window(tmp_path, little, monkeypatch, strict, expected):
    """As transformers of timm are built; they were refused, for the window that others are tried with."""

    class Fixed(Little):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.down.img_size, self.down.strict_img_size = (96, 64), strict

    monkeypatch.setattr("segmentation_models_pytorch.Unet", Fixed)
    torch.save({"state_dict": little.state_dict()}, tmp_path / "last.ckpt")
    wanted = Wanted(checkpoint=str(tmp_path / "last.ckpt"), out="net.onnx", smp="Unet,resnet18,classes=2")
    assert Checkpoint().read(tmp_path / "last.ckpt", wanted, print).promised.get("window") == expected


def test_what_a_module_around_the_network_does_to_images_is_done(tmp_path, little):
    """As the examples of segmentation-models-pytorch have it: buffers of a Lightning module. They were left out."""
    state = {f"model.{k}": v for k, v in little.state_dict().items()}
    state |= {
        "mean": torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1),
        "std": torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1),
    }
    state |= {"target_scaler.mean": torch.zeros(1), "target_scaler.std": torch.full((1,), 9.0)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    options = ("--smp", "Unet,resnet18,classes=2", "--output-channels", "classes")
    said, model = imported(tmp_path / "last.ckpt", *options)
    assert "fixed:mean=0.5/0.4/0.3,std=0.2/0.3/0.25,divide=255" in said.err
    assert "the network: state_dict.target_scaler.mean, state_dict.target_scaler.std\n" in said.err
    found = model.spec.normalization
    assert (found.mode, found.divide) == ("fixed", 1)
    assert found.mean == pytest.approx((0.5, 0.4, 0.3))
    assert found.std == pytest.approx((0.2, 0.3, 0.25))
    _, model = imported(tmp_path / "last.ckpt", *options, "--normalize", "none")
    assert model.spec.normalization.mode == "none"


@pytest.mark.parametrize(("activation", "classes"), share([("softmax2d", 2), ("sigmoid", 1)]))
def test_networks_that_end_in_their_activation(tmp_path, little, activation, classes):
    """Their run is compared in probabilities, as there are no logits."""
    network = Little("resnet18", None, 3, classes, activation)
    said = {
        "arch": "Unet",
        "encoder_name": "resnet18",
        "classes": classes,
        "activation": activation,
        "task": "multiclass",
    }
    torch.save({"state_dict": network.state_dict(), "hyper_parameters": said}, tmp_path / "a.ckpt")
    _, model = imported(tmp_path / "a.ckpt")
    assert model.spec.activation == "probabilities"
    assert model.credit.certificate[0].largest_difference < 1e-4


def test_what_nobody_says_the_weights_do(tmp_path, little):
    """Channels, classes, and a head beside the one that is meant, whose output is not taken."""
    network = Little("resnet18", None, 4, 5, None, {"classes": 7})
    said = {"arch": "Unet", "encoder_name": "resnet18"}
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}, "hparams": said}, tmp_path / "a.ckpt"
    )
    found = Checkpoint().read(tmp_path / "a.ckpt", Wanted("a.ckpt", "net.onnx"), [].append)
    assert found.promised["channels_in"] == 4
    x = torch.randn(1, 4, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(found.members[0].network(x), network(x), strict=True):
            torch.testing.assert_close(ours, theirs)
    torch.save({"state_dict": network.state_dict(), "hparams": {**said, "in_channels": 3}}, tmp_path / "a.ckpt")
    assert "check --smp" in refusal(tmp_path / "a.ckpt")


class AttributeDict(dict):
    """As Lightning has it."""

    __module__ = "lightning.fabric.utilities.data"


def test_hyperparameters_are_read_as_data(tmp_path):
    torch.save(
        {"hyper_parameters": Namespace(arch="Unet", nested={"a": [1, Namespace(b=2)]}), "x": torch.ones(1)},
        tmp_path / "a.ckpt",
    )
    assert read_data(tmp_path / "a.ckpt")["hyper_parameters"] == {"arch": "Unet", "nested": {"a": [1, {"b": 2}]}}


def test_a_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch ran",)

    torch.save({"hyper_parameters": Evil(), "state_dict": {"a": torch.ones(1)}}, tmp_path / "a.ckpt")
    told = refusal(tmp_path / "a.ckpt")
    assert "posix.system in it is code that would run, and is not" in told
    assert "weights_only" not in told  # PyTorch's own advice is to run it


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"arch": "Unet", "encoder_name": "resnet34", "in_channels": 3, "out_classes": 1},
         smp.Named("Unet", "resnet34", {"in_channels": 3, "classes": 1})),
        ({"model": "unet", "backbone": "resnet50", "in_channels": 12, "num_classes": 7, "loss": "ce", "task": "multiclass"},
         smp.Named("Unet", "resnet50", {"in_channels": 12, "classes": 7})),  # torchgeo
        ({"model": "deeplabv3+", "backbone": "resnet18", "num_classes": 2}, smp.Named("DeepLabV3Plus", "resnet18", {"classes": 2})),
        ({"model_args": {"model": "Unet", "backbone": "resnet34", "in_channels": 6, "num_classes": 2}, "model_factory": "SMPModelFactory"},
         smp.Named("Unet", "resnet34", {"in_channels": 6, "classes": 2})),  # terratorch
        ({"model": "FPN", "encoder": "efficientnet-b0", "classes": ["a", "b", "c"]}, smp.Named("FPN", "efficientnet-b0", {"classes": 3})),
        ({"net": {"_target_": "segmentation_models_pytorch.FPN", "encoder_name": "resnet18", "classes": 2}},
         smp.Named("FPN", "resnet18", {"classes": 2})),  # Hydra
        ({"model": {"class_path": "segmentation_models_pytorch.Unet", "init_args": {"encoder_name": "resnet18", "classes": 2}}},
         smp.Named("Unet", "resnet18", {"classes": 2})),  # Lightning's command line
        ({"arch": "DeepLabV3Plus", "encoder_name": "resnet18", "encoder_output_stride": 8, "activation": "gelu"},
         smp.Named("DeepLabV3Plus", "resnet18", {"encoder_output_stride": 8})),  # weights would fit without it
        ({"name": "unet", "encoder_name": "resnet18"}, None),  # a name of the experiment
        ({"lr": 1}, None),
        ({"arch": "MyNet", "encoder_name": "resnet18"}, None),
        ({"model_args": {"decoder": "UNetDecoder", "backbone": "prithvi_vit_100"}}, None),
    ],
)  # fmt: skip
def test_networks_in_hyperparameters(said, expected):
    assert hyperparameters.named_in(said) == expected


@pytest.mark.parametrize(
    ("cuda", "from_where"), [(None, "--index-url https://download.pytorch.org/whl/cpu"), ("13.0", "torchvision")]
)
def test_a_torchvision_for_another_pytorch_comes_with_the_command_for_this_one(monkeypatch, cuda, from_where):
    """From PyPI comes one for GPUs, which PyTorch for CPUs cannot load."""
    monkeypatch.setattr("torch.version.cuda", cuda)
    monkeypatch.setattr("torch.version.hip", None)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ModelError, match="install the torchvision that fits this PyTorch: pip install") as refused:
        smp.built("hub", smp.Named("Unet", "resnet18", {}))
    assert str(refused.value).endswith(from_where)


def test_what_outputs_are_in_hyperparameters():
    assert hyperparameters.meaning_in({"task": "multiclass", "class_names": ["a", "b"]}) == {
        "activation": "softmax", "channels": "classes", "classes": ("a", "b")
    }  # fmt: skip
    assert hyperparameters.meaning_in({"task": "multilabel"}) == {"activation": "sigmoid", "channels": "multilabel"}
    assert hyperparameters.meaning_in({"lr": 1}) == {}


def test_the_option_that_names_a_network():
    assert smp.parsed("unet++, resnet34, classes=5, decoder_channels=64/32/16") == smp.Named(
        "UnetPlusPlus", "resnet34", {"classes": 5, "decoder_channels": [64, 32, 16]}
    )
    for text in ("Nothing,resnet34", "Unet,resnet34,5"):
        with pytest.raises(SettingsError, match="write it like --smp"):
            smp.parsed(text)


@pytest.mark.parametrize("encoder", ["hf-hub:timm/x", "tu-hf_hub:a/b", "local-dir:/tmp/x"])
def test_nothing_is_fetched(encoder):
    with pytest.raises(ModelError, match="fetched from elsewhere"):
        smp.built("x", smp.Named("Unet", encoder))


@pytest.mark.parametrize("held", ["nothing", "own", "cut", "text"])
def test_checkpoints_that_say_too_little_or_are_damaged_are_one_line(tmp_path, held):
    path = tmp_path / "a.ckpt"
    said = {"own": {"hyper_parameters": {"width": 3}}}.get(held, {})
    torch.save({"state_dict": {"a.weight": torch.ones(3)}, **said}, path)
    if held == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif held == "text":
        path.write_text("no checkpoint at all")
    told = refusal(path)
    if held in ("nothing", "own"):
        assert "--smp" in told
        assert "--factory" in told


def test_a_safetensors_file_is_read_and_a_damaged_one_is_one_line(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    safetensors.save_file({"a.weight": torch.ones(3)}, path)
    assert list(read_weights(path).tensors) == ["a.weight"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ModelError, match="safetensors"):
        read_weights(path)


def test_what_is_recognised_reads_no_pickle(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"no pickle")
    assert Checkpoint().recognises(tmp_path / "a.ckpt")
    assert not SmpFolder().recognises(tmp_path)


# --- what is run nowhere here ---


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("m.mlmodel", "Apple"), ("m.mlpackage/Manifest.json", "Apple"), ("m.tflite", "--tflite"), ("m.h5", "--keras"),
        ("m.keras", "--keras"), ("m/saved_model.pb", "--saved-model"), ("m.pb", "--graphdef"), ("m.xml", "OpenVINO"),
        ("m.engine", "TensorRT"), ("m/model.json", "TensorFlow.js"),
    ],
)  # fmt: skip
def test_other_frameworks_are_refused_by_name_with_the_way_out(tmp_path, name, way):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")
    scan = make_volume(tmp_path / "v.zarr", np.zeros((8, 8, 8), np.uint8))
    source = tmp_path / name.partition("/")[0]
    for said in (cli("import", source, "--out", "net.onnx"), cli("plan", "--in", scan, "--model", source)):
        assert said.code == 5, said.err
        assert way in said.error
