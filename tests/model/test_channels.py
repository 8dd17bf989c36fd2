"""What output channels are: said by the spec, followed from the graph, or asked for; labels are had of classes
alone."""

import json

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import ModelError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.stitching import operations

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

VOXELS = np.random.default_rng(0).integers(0, 256, (10, 18, 17), dtype=np.uint8)
FACTORS = np.array([1, 0.5, -1], np.float32)
LOGITS = FACTORS.reshape(3, 1, 1, 1) * (VOXELS.astype(np.float32) - 128) / 16


def network(path, ending=None, output="y", channels=3, spec=None):
    """Logits `LOGITS` and what `ending` makes of them; with a spec of its own where `spec` gives fields of one."""
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c" if ending else output])]
    if ending:
        nodes.append(helper.make_node(ending, ["c"], [output], **({"axis": 1} if ending == "Softmax" else {})))
    factors = FACTORS[:channels]
    weights = {"w": (factors / 16).reshape(-1, 1, 1, 1, 1), "b": factors * np.float32(-8)}
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, channels, 8, 8, 8])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if spec is not None:
        own = ModelSpec(
            name="n", axes="zyx", channels_in=1, channels_out=channels, window=(8,) * 3, window_min=(8,) * 3,
            window_step=(0,) * 3, margin=(0,) * 3, **spec,
        )  # fmt: skip
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, own.model_dump_json()
    onnx.save(model, path)
    return str(path)


@pytest.fixture
def run(tmp_path):
    scan = make_volume(tmp_path / "scan.zarr", VOXELS, axes="zyx")
    count = iter(range(100))

    def go(model, **options):
        options = {"out": str(tmp_path / f"{next(count)}.zarr"), "blend": "crop", **options}
        return result_of(unet_engine.run(scan, model=model, **options).out)

    return go


def argmax_above_half(logits):
    return np.where(logits.max(0) > 0, logits.argmax(0) + 1, 0)


SIGMOIDS = {
    "a foreign sigmoid": {"ending": "Sigmoid"},
    "numbers by their own spec": {"spec": {"activation": "none"}},
    "unknown by its own spec": {"spec": {"activation": "sigmoid", "channels": "unknown"}},
    "called affinities": {"output": "pred_affs"},
    "called offsets": {"output": "Offsets"},
}


@pytest.mark.parametrize("case", SIGMOIDS)
def test_labels_of_what_may_overlap_are_asked_for(run, tmp_path, case):
    model = network(tmp_path / "net.onnx", **SIGMOIDS[case])
    with pytest.raises(SettingsError, match=r"net.onnx: labels are asked for, and .*--channels classes") as error:
        run(model)
    assert "\n" not in str(error.value)
    labels = run(model, channels="classes")
    each = open_model(model).spec.overlaps
    np.testing.assert_array_equal(labels, argmax_above_half(LOGITS) if each else LOGITS.argmax(0))
    assert run(model, output="probabilities").shape == LOGITS.shape


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "probabilities", "probabilities_each"])
def test_files_with_a_spec_of_before_give_the_labels_of_before(run, tmp_path, activation):
    model = network(tmp_path / "net.onnx", spec={"activation": activation})
    above = operations.label_threshold(activation, 3)
    expected = LOGITS.argmax(0) if above is None else np.where(LOGITS.max(0) > above, LOGITS.argmax(0) + 1, 0)
    np.testing.assert_array_equal(run(model), expected)
    assert "channels" not in json.loads(open_model(model).spec.model_dump_json())


def test_a_file_beside_says_it_or_the_activation(run, tmp_path):
    model = network(tmp_path / "net.onnx", "Sigmoid")
    (tmp_path / "net.toml").write_text('activation = "probabilities_each"\n')
    np.testing.assert_array_equal(run(model), argmax_above_half(LOGITS))
    (tmp_path / "net.toml").write_text('channels = "multilabel"\n')
    with pytest.raises(SettingsError, match="--output masks"):
        run(model)
    other = network(tmp_path / "plain.onnx")
    (tmp_path / "plain.toml").write_text('channels = "offsets"\n')
    assert open_model(other).spec.activation == "none"
    np.testing.assert_allclose(run(other, output="logits"), LOGITS, atol=1e-5)
    (tmp_path / "plain.toml").write_text('channels = "many"\n')
    with pytest.raises(ModelError, match="channels: Input should be"):
        open_model(other)


@pytest.mark.parametrize("channels", ["image", "offsets"])
def test_of_an_image_or_offsets_numbers_are_had(run, tmp_path, channels):
    model = network(tmp_path / "net.onnx")
    for output in ("labels", "masks", "probabilities"):
        with pytest.raises(SettingsError, match=rf"{output} are asked for.*--output logits"):
            run(model, channels=channels, output=output)
    np.testing.assert_allclose(run(model, channels=channels, output="logits"), LOGITS, atol=1e-5)
    with pytest.raises(SettingsError, match="--overlap auto compares labels"):
        run(model, channels=channels, output="logits", overlap="auto", blend="gaussian")
    affinities = network(tmp_path / "affs.onnx", "Sigmoid")
    with pytest.raises(SettingsError, match="use --output probabilities"):
        run(affinities, channels=channels)
    found = run(affinities, channels=channels, output="probabilities", dtype="float32")
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-LOGITS)), atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "simulated"])
@pytest.mark.parametrize("activation", ["sigmoid", "probabilities_each"])
def test_masks_say_of_each_class_on_its_own_whether_it_is_there(tmp_path, run, device, activation):
    """The fake network gives its two channels as they are."""
    image = np.random.default_rng(1).normal(0.2, 1, (2, 20, 21, 22)).astype(np.float32)
    image[:, 0, 0, :3] = 0.5, 0.0, -0.0
    scan = make_volume(tmp_path / "two.zarr", image, axes="czyx")
    model = fake_model(tmp_path, channels_in=2, channels_out=2, activation=activation, channels="multilabel")
    result = unet_engine.run(
        scan,
        model=model,
        out=str(tmp_path / "m.zarr"),
        output="masks",
        blend="crop",
        device=device,
        roi="2:20,0:21,1:22",
    )
    above = operations.label_threshold(activation, 2)
    found = result_of(result.out)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, (image > above)[:, 2:, :, 1:])
    with pytest.raises(SettingsError, match=r"labels are asked for.*may overlap.*--output masks"):
        unet_engine.run(scan, model=model, out=str(tmp_path / "l.zarr"), device=device)


def test_masks_blend_and_leave_out_as_other_outputs_do(tmp_path):
    image = np.random.default_rng(2).normal(size=(16, 16, 16)).astype(np.float32)
    scan = make_volume(tmp_path / "scan.zarr", image, axes="zyx")
    mask = np.zeros(image.shape, np.uint8)
    mask[:, :7] = 1
    where = make_volume(tmp_path / "mask.zarr", mask, axes="zyx")
    model = fake_model(tmp_path, channels_out=3, activation="sigmoid", channels="multilabel")
    options = {"model": model, "mask": where, "outside": 7, "output": "masks"}
    outs = []
    for device in ("cpu", "simulated"):
        outs.append(
            result_of(unet_engine.run(scan, out=str(tmp_path / f"{device}.zarr"), device=device, **options).out)
        )
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], np.where(mask, image > 0, 7)[None].repeat(3, 0))


def test_a_network_that_ends_in_a_sigmoid_gives_masks_without_being_asked_what_it_is(run, tmp_path):
    model = network(tmp_path / "net.onnx", "Sigmoid")
    np.testing.assert_array_equal(run(model, output="masks"), LOGITS > 0)


def test_masks_of_classes_that_exclude_one_another_are_refused(run, tmp_path):
    for model in (network(tmp_path / "net.onnx"), network(tmp_path / "soft.onnx", "Softmax")):
        with pytest.raises(SettingsError, match=r"masks are asked for.*exclude one another; use --output labels"):
            run(model, output="masks")
    with pytest.raises(SettingsError, match=r"--channels multilabel does not fit .*soft.onnx"):
        run(str(tmp_path / "soft.onnx"), channels="multilabel", output="masks")
    np.testing.assert_array_equal(run(str(tmp_path / "net.onnx"), channels="multilabel", output="masks"), LOGITS > 0)
    with pytest.raises(SettingsError, match="--dtype"):
        run(str(tmp_path / "net.onnx"), channels="multilabel", output="masks", dtype="float32")


def test_what_is_guessed_is_told(tmp_path):
    scan = make_volume(tmp_path / "scan.zarr", VOXELS, axes="zyx")
    model = network(tmp_path / "net.onnx")
    asked = [
        "run",
        "--in",
        scan,
        "--model",
        model,
        "--normalize",
        "range:0,255",
        "--overwrite",
        "--out",
        tmp_path / "o.zarr",
    ]
    words = "they are taken for logits of classes"
    assert words in cli(*asked).err
    for said in (["--channels", "classes"], ["--activation", "softmax"], ["--output", "logits"]):
        assert words not in cli(*asked, *said).err


def test_the_spec_holds_no_contradiction():
    fields = {
        "name": "n", "axes": "yx", "channels_in": 1, "channels_out": 2, "window": (8, 8), "window_min": (8, 8),
        "window_step": (0, 0), "margin": (0, 0),
    }  # fmt: skip
    for channels, activation in (("multilabel", "softmax"), ("image", "softmax"), ("multilabel", "none")):
        with pytest.raises(ValueError, match="channels"):
            ModelSpec(**fields, channels=channels, activation=activation)
    assert ModelSpec(**fields, channels="offsets", activation="none").model_dump()["channels"] == "offsets"


def test_what_channels_are_does_not_name_the_run(run, tmp_path):
    """It may be corrected without making another run of it."""
    model = network(tmp_path / "net.onnx")
    scan, out = str(tmp_path / "scan.zarr"), str(tmp_path / "o.zarr")
    first = unet_engine.run(scan, model=model, out=out)
    again = unet_engine.run(scan, model=model, out=out, channels="classes", resume=True)
    assert first.digest == again.digest
    assert '"channels"' not in zarr.open_group(out).attrs["unet_engine"]["identity"]["spec"]


def test_export_writes_what_is_said_and_asks_for_the_rest(run, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from unet_export.conversion.export import Export, export

    def exported(source, **options):
        told = []
        spec = export(Export(source, str(tmp_path / "out.onnx"), window=(8, 8, 8), **options), told.append)
        return spec, any("--output-channels" in line for line in told)

    sigmoid, plain = network(tmp_path / "sigmoid.onnx", "Sigmoid"), network(tmp_path / "plain.onnx")
    spec, asked = exported(sigmoid)
    assert (spec["channels"], spec["activation"], asked) == ("unknown", "probabilities_each", True)
    with pytest.raises(SettingsError, match="labels are asked for"):
        run(str(tmp_path / "out.onnx"))
    spec, asked = exported(str(tmp_path / "out.onnx").replace("out", "sigmoid"), output_channels="multilabel")
    assert (spec["channels"], spec["activation"], asked) == ("multilabel", "probabilities_each", False)
    assert cli("info", tmp_path / "out.onnx", "--json").json["channels"] == "multilabel"
    spec, asked = exported(plain, output_channels="multilabel")
    assert (spec["channels"], spec["activation"], asked) == ("multilabel", "sigmoid", False)
    spec, asked = exported(plain, output_channels="offsets")
    assert (spec["channels"], spec["activation"], asked) == ("offsets", "none", False)
    spec, asked = exported(plain)
    assert ("channels" in spec, spec["activation"], asked) == (False, "softmax", False)
    spec, asked = exported(plain, activation="none")
    assert (spec["channels"], asked) == ("unknown", True)
