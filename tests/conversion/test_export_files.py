"""Model files: any admissible window, any batch, every runtime, the spec inside, nothing of the author's machine."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from support.paths import MODELS
from support.shares import share
from unet_engine.errors import ModelError, OutputError, SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_export.train.geometry import UNetConfig, output_margin
from unet_export.train.specs import spec_for

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from unet_export.conversion import onnx_export  # noqa: E402
from unet_export.conversion.onnx_export import export_onnx, export_torch  # noqa: E402
from unet_export.train.nets import UNet  # noqa: E402

LAYOUTS = {
    "2d-batch-same": UNetConfig(dims=2, channels_in=2, classes=3, base=2, depth=2),
    "3d-instance-same": UNetConfig(dims=3, classes=2, base=2, depth=1, norm="instance"),
    "2d-none-valid": UNetConfig(dims=2, classes=2, base=2, depth=1, norm="none", padding="valid"),
}


def trained(config):
    """A network whose batch statistics are not the initial zeros and ones."""
    torch.manual_seed(0)
    model = UNet(config)
    spec = spec_for(config, name="tiny", window=window_of(config, 2))
    model(torch.randn(2, config.channels_in, *spec.window))
    return model.eval(), spec


def window_of(config, k):
    from unet_export.train.geometry import window_rule

    least, step = window_rule(config)
    return (least + k * step,) * config.dims


@pytest.fixture(scope="module", params=share(["3d-instance-same", "2d-none-valid", "2d-batch-same"]))
def exported(request, tmp_path_factory):
    model, spec = trained(LAYOUTS[request.param])
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    error = export_onnx(model, spec, path)
    return model, spec, path, error


def calls(model, spec):
    """(input, expected output) on sizes that the export has not seen, with unequal axes."""
    for batch, k in ((1, 0), (3, 3)):
        sizes = window_of(model.config, k)
        sizes = (sizes[0] + spec.window_step[0], *sizes[1:])
        x = torch.randn(batch, spec.channels_in, *sizes)
        with torch.inference_mode():
            yield x.numpy(), model(x).numpy()


def test_onnx_runtime_takes_any_batch_and_admissible_window(exported):
    model, spec, path, error = exported
    assert error < 1e-5
    session = onnxruntime.InferenceSession(str(path))
    for x, expected in calls(model, spec):
        np.testing.assert_allclose(session.run(["output"], {"input": x})[0], expected, atol=1e-4)


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "reshaped"])
def test_openvino_takes_it_dynamic_and_reshaped_to_a_window(exported, fixed):
    ov = pytest.importorskip("openvino")
    model, spec, path, _ = exported
    for x, expected in calls(model, spec):
        graph = ov.Core().read_model(path)
        if fixed:
            graph.reshape(list(x.shape))
        compiled = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        np.testing.assert_allclose(compiled(x)[0], expected, atol=1e-4)


def test_the_file_carries_its_spec_and_weights_and_no_folder_of_the_author(exported):
    _, spec, path, _ = exported
    proto = onnx.load(path)
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    assert ModelSpec.model_validate_json(entries[METADATA_KEY]) == spec
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [20]
    assert [value.name for value in proto.graph.input] == ["input"]
    assert [value.name for value in proto.graph.output] == ["output"]
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert list(path.parent.iterdir()) == [path]
    data = path.read_bytes()
    assert b".py" not in data
    assert str(Path.home()).encode() + b"/" not in data


def test_the_same_network_gives_the_same_bytes(tmp_path):
    model, spec = trained(LAYOUTS["2d-none-valid"])
    for name in ("a.onnx", "b.onnx"):
        export_onnx(model, spec, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_fixed_file_takes_its_window_alone_and_says_so(tmp_path):
    model, spec = trained(LAYOUTS["2d-none-valid"])
    export_onnx(model, spec, tmp_path / "fixed.onnx", dynamic=False)
    proto = onnx.load(tmp_path / "fixed.onnx")
    inside = ModelSpec.model_validate_json(proto.metadata_props[0].value)
    assert (inside.window_min, inside.window_step) == (spec.window, (0, 0))
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim[2:]] == list(spec.window)


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
@pytest.mark.parametrize("layout", share(["3d-instance-same", "2d-batch-same", "2d-none-valid"], 2))
def test_pytorch_files_take_any_batch_and_admissible_window(layout, suffix, tmp_path):
    model, spec = trained(LAYOUTS[layout])
    path = tmp_path / f"tiny{suffix}"
    assert export_torch(model, spec, path) < 1e-5
    extra = {METADATA_KEY: ""}
    if suffix == ".pt2":
        program = torch.export.load(path, extra_files=extra)
        run = program.module()
    else:
        run = torch.jit.load(path, _extra_files=extra)
    assert ModelSpec.model_validate(json.loads(extra[METADATA_KEY])) == spec
    with torch.inference_mode():
        for x, expected in calls(model, spec):
            np.testing.assert_allclose(run(torch.from_numpy(x)).numpy(), expected, atol=1e-5)


def test_pt2_names_no_folder_of_the_author(tmp_path):
    model, spec = trained(LAYOUTS["2d-none-valid"])
    export_torch(model, spec, tmp_path / "tiny.pt2")
    with zipfile.ZipFile(tmp_path / "tiny.pt2") as archive:
        assert not any(b"unet_export/nets.py" in archive.read(name) for name in archive.namelist())


def test_exporting_leaves_the_network_as_it_was():
    model, _ = trained(LAYOUTS["2d-batch-same"])
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with onnx_export.frozen(model) as net:
        assert not net.training
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_file_that_differs_from_pytorch_is_not_written(tmp_path, monkeypatch):
    model, spec = trained(LAYOUTS["2d-none-valid"])
    monkeypatch.setattr(onnx_export, "_onnx_runner", lambda data: lambda x: model(x) * 1.01)
    with pytest.raises(ModelError, match="differs from PyTorch by 1"):
        export_onnx(model, spec, tmp_path / "tiny.onnx")
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        export_torch(model, spec, tmp_path / "tiny.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_spec_of_another_network_or_a_bad_path_is_refused(tmp_path):
    model, spec = trained(LAYOUTS["2d-none-valid"])
    with pytest.raises(SettingsError, match=r"use spec_for\(config\)"):
        export_onnx(model, spec.model_copy(update={"channels_in": 3}), tmp_path / "x.onnx")
    with pytest.raises(SettingsError, match="names no PyTorch format"):
        export_torch(model, spec, tmp_path / "x.bin")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export_torch(model, spec, tmp_path / "file" / "x.pt")


def test_the_spec_follows_from_the_layout():
    config = UNetConfig(dims=2, classes=2, base=2, depth=1, norm="none", padding="valid")
    spec = spec_for(config, name="n", window=(40, 44), classes=("a", "b"), spacing=(0.5, 0.5))
    assert spec.margin == (output_margin(config),) * 2
    assert spec.activation == "softmax"
    assert spec.empty is None
    assert spec_for(UNetConfig(dims=2, classes=1), name="n", window=(32, 32)).activation == "sigmoid"
    assert spec_for(UNetConfig(dims=2, norm="instance"), name="n", window=(32, 32)).context is None
    with pytest.raises(SettingsError, match="3 class names for 2 labels"):
        spec_for(config, name="n", window=(40, 40), classes=("a", "b", "c"))
    with pytest.raises(SettingsError, match="not admissible"):
        spec_for(config, name="n", window=(41, 40))


def test_empty_is_the_output_on_background_and_needs_a_fixed_normalisation():
    config = LAYOUTS["2d-none-valid"]
    model, _ = trained(config)
    how = Normalization(mode="range", low=100, high=300)
    spec = spec_for(config, name="n", window=(40, 40), normalization=how, background=150, empty_from=model)
    with torch.inference_mode():
        expected = model(torch.full((1, 1, 40, 40), 0.25))[0, :, 12, 12]
    assert spec.empty == pytest.approx(expected.tolist(), rel=1e-5)
    with pytest.raises(SettingsError, match="depends on the volume"):
        spec_for(config, name="n", window=(40, 40), normalization=Normalization(mode="zscore"), empty_from=model)


@pytest.mark.parametrize("name", ["cells_3d", "cells_2d"])
def test_the_shipped_networks_know_tissue_that_they_have_never_seen(name):
    from unet_export.train.loss import dice_per_class
    from unet_export.train.tissue import make_tissue

    path = MODELS / f"{name}.onnx"
    spec = ModelSpec.model_validate_json(next(e.value for e in onnx.load(path).metadata_props if e.key == METADATA_KEY))
    assert spec.classes == ("outside", "cell", "membrane")
    image, labels = make_tissue((64, 128, 128), 99)
    x = image.astype(np.float32)[None, None] / 255
    if spec.axes == "yx":
        x, labels = x[0, 0, 16::16, None], labels[16::16]
    session = onnxruntime.InferenceSession(str(path))
    predicted = session.run(None, {"input": x})[0].argmax(1).reshape(labels.shape)
    assert min(dice_per_class(predicted, labels, 3)) > 0.88
    assert np.argmax(spec.empty) == 0
