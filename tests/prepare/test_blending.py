"""``--blend-at``: the features before a linear last layer are blended in place of the outputs, which gives the same."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import zarr
from onnx import numpy_helper

import unet_engine
from support.command_line import cli
from support.graphs import graph, node
from support.volumes import make_volume
from unet_engine.backends import second_opinion
from unet_engine.backends.base import Setup
from unet_engine.errors import BackendError, ResumeError, SettingsError
from unet_engine.model.file import open_model
from unet_engine.model.spec import ModelSpec
from unet_engine.model.verdict import Thresholds
from unet_engine.prepare.blending import outputs_of
from unet_engine.prepare.tiling_proof import Judge

FEATURES, CLASSES, WINDOW = 3, 17, 8


def network(path, last=(), *, axes=3, features=FEATURES, classes=CLASSES, before=(), spec=None, **constants):
    """Features of a window by two layers, classes by a convolution of one voxel and the nodes `last`."""
    rng, ones = np.random.default_rng(5), (1,) * axes
    constants = {
        "first": rng.standard_normal((features, 1, *(3,) * axes)),
        "weights": rng.standard_normal((classes, features, *ones)),
        "bias": 3 * rng.standard_normal(classes),
        **constants,
    }
    nodes = [
        node("Conv", "x first", "rough", pads=[1] * 2 * axes), node("Relu", "rough", "features"), *before,
        *(last or [node("Conv", "features weights bias", "y")]),
    ]  # fmt: skip
    said = spec or ModelSpec(
        name="many", axes="zyx"[-axes:], channels_in=1, channels_out=classes, activation="softmax",
        window=(WINDOW,) * axes, window_min=(WINDOW,) * axes, window_step=(2,) * axes, margin=(0,) * axes,
    )  # fmt: skip
    as_float = {k: np.asarray(v, np.float32) if np.asarray(v).dtype.kind == "f" else v for k, v in constants.items()}
    return graph(path, nodes, shape=(None, None, *(None,) * axes), spec=said, **as_float)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    array = np.random.default_rng(0).integers(0, 255, (14, 15, 21), np.uint8)
    return make_volume(folder / "scan.zarr", array), network(folder / "many.onnx")


def written(tmp_path, scene, name, **options):
    result = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / f"{name}.zarr"), device="cpu", **options)
    return result, zarr.open_array(str(tmp_path / f"{name}.zarr" / "0"), mode="r")[...]


@pytest.mark.parametrize("more", [
    {}, {"blend": "crop", "overlap": 0.25}, {"blend": "monai"}, {"tta": "mirror:yx"}, {"roi": "2:13,0:9,4:20"},
    {"backend": "onnxruntime"}, {"tiling": "8,10,8:2,2,3:crop"}, {"precision": "bf16"},
], ids=str)  # fmt: skip
def test_features_give_the_outputs(tmp_path, scene, proved, more):
    if more.get("precision") == "bf16":
        pytest.importorskip("openvino")
    logits = {"output": "logits", **more}
    result, features = written(tmp_path, scene, "features", **logits, blend_at="auto")
    plain, outputs = written(tmp_path, scene, "outputs", **logits, blend_at="outputs")
    assert (result.blended, plain.blended) == ("features", "outputs")
    assert result.digest != plain.digest
    apart = np.abs(features - outputs).max() / np.ptp(outputs)
    assert 0 < apart < (2e-2 if "precision" in more else 2e-6)


@pytest.mark.parametrize("output", ["labels", "probabilities", "masks"])
def test_what_is_made_of_features_is_what_is_made_of_outputs(tmp_path, scene, proved, output):
    more = {"activation": "sigmoid", "channels": "multilabel"} if output == "masks" else {}
    features = written(tmp_path, scene, "features", output=output, **more)[1]
    outputs = written(tmp_path, scene, "outputs", output=output, blend_at="outputs", **more)[1]
    assert len(np.unique(outputs)) > 1
    assert np.abs(features.astype(int) - outputs).max() <= (1 if output == "probabilities" else 0)


def test_a_network_of_planes(tmp_path, scene, proved):
    model = network(tmp_path / "flat.onnx", axes=2)
    both = [written(tmp_path, (scene[0], model), at, blend_at=at, output="logits") for at in ("features", "outputs")]
    assert both[0][0].blended == "features"
    np.testing.assert_allclose(both[0][1], both[1][1], atol=2e-6 * np.ptp(both[1][1]))


def test_a_network_of_few_classes_keeps_its_bytes(tmp_path, scene, proved):
    model = network(tmp_path / "few.onnx", classes=3)
    result, labels = written(tmp_path, (scene[0], model), "auto")
    assert result.blended == "outputs"
    assert not proved
    again, same = written(tmp_path, (scene[0], model), "outputs", blend_at="outputs")
    assert result.digest == again.digest
    assert (labels == same).all()
    asked, features = written(tmp_path, (scene[0], model), "features", blend_at="features")
    assert asked.blended == "features"
    assert (features == labels).mean() > 0.999


def test_what_is_blended_is_asked_for_once_of_a_model(tmp_path, scene, proved, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(cache))
    for name in "ab":
        written(tmp_path, scene, name)
    assert len(proved) == 1


def test_features_that_give_something_else_are_left(tmp_path, scene, monkeypatch, proved):
    def wrong(model, given):
        return np.zeros((CLASSES, *given.shape[1:]), np.float32)

    monkeypatch.setattr(second_opinion, "_outputs", wrong)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(cache))
    result, _ = written(tmp_path, scene, "auto")
    assert result.blended == "outputs"
    assert any("differ by" in note for note in result.plan_notes)
    with pytest.raises(BackendError, match="--strict: outputs are blended"):
        written(tmp_path, scene, "strict", strict=True, normalize="none")
    with pytest.raises(BackendError, match="use --blend-at outputs"):
        written(tmp_path, scene, "features", blend_at="features")


def test_a_resume_goes_on_with_what_the_output_was_begun_with(tmp_path, scene, proved):
    for at in ("features", "outputs"):
        begun = [written(tmp_path, scene, at, blend_at=at, part="1/2"), written(tmp_path, scene, at, part="2/2")][-1]
        assert begun[0].complete
        assert begun[0].blended == at
        whole, labels = written(tmp_path, scene, f"{at} whole", blend_at=at)
        assert begun[0].digest == whole.digest
        assert (begun[1] == labels).all()
    with pytest.raises(ResumeError, match="blended"):
        written(tmp_path, scene, "outputs", blend_at="features", resume=True)


@pytest.mark.slow
def test_workers_of_a_cluster_blend_features_too(tmp_path, scene, proved):
    labels = written(tmp_path, scene, "here")[1]
    result, theirs = written(tmp_path, scene, "theirs", workers=2)
    assert result.blended == "features"
    assert (labels == theirs).all()


def test_a_tiling_is_chosen_by_labels_and_not_by_features(tmp_path, proved, monkeypatch):
    voxels = np.random.default_rng(0).normal(size=(40, 40, 44)).astype(np.float32)
    scan = make_volume(tmp_path / "noise.zarr", voxels, chunks=(16, 16, 16))
    model, found = network(tmp_path / "net.onnx"), []
    for at in ("features", "outputs"):
        monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / f"cache of {at}"))
        plan = ["plan", "--in", scan, "--model", model, "--normalize", "none", "--tiling", "auto", "--blend-at", at]
        done = cli(*plan, "--tiling-budget", 50, "--json")
        assert done.code == 0, done.err
        found.append(done.json["tiling_choice"])
    features, outputs = ({tuple(point["window"]): point["agreement"] for point in one["frontier"]} for one in found)
    assert found[0]["learnt"]["bar_agreement"] == found[1]["learnt"]["bar_agreement"] > 0.5
    both = {*features} & {*outputs}  # which sizes are shown hangs on time and memory, too
    assert both
    assert [features[size] for size in both] == pytest.approx([outputs[size] for size in both])


def test_a_precision_is_judged_by_outputs_and_not_by_features(tmp_path):
    last = open_model(network(tmp_path / "net.onnx")).last
    features = np.random.default_rng(0).standard_normal((2, FEATURES, 3, 4, 5)).astype(np.float32)
    outputs = [outputs_of(last, one) for one in features]
    verdicts = []
    for given, ahead in ((features, last), (outputs, None)):
        judge = Judge(("a",) * CLASSES, lambda logits: logits.argmax(0), Thresholds(dice=0.5), ahead)
        judge.add(*given)
        verdicts.append(judge.verdict((3, 4, 5), 1))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].max_error == pytest.approx(np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max())


@pytest.mark.parametrize(("last", "more"), [
    ([node("Conv", "features weights", "y")], {}),
    ([node("Conv", "features weights", "z"), node("Add", "z bias5", "y")], {}),
    ([node("Conv", "features weights bias", "z"), node("Add", "bias5 z", "w"), node("Identity", "w", "y")], {}),
    ([node("Conv", "features weights", "z"), node("Add", "z one", "y")], {"one": np.float32([2.5])}),
])  # fmt: skip
def test_linear_endings_are_known(tmp_path, last, more):
    bias = np.random.default_rng(2).standard_normal((1, CLASSES, 1, 1, 1))
    path = network(tmp_path / "net.onnx", last, bias5=bias, **more)
    model = open_model(path)
    assert (model.last.features, model.last.outputs) == (FEATURES, CLASSES)
    setup = Setup(replace(model, gives_features=True), (WINDOW,) * 3)
    window = np.random.default_rng(1).standard_normal((1, *(WINDOW,) * 3)).astype(np.float32)
    opinion = second_opinion.compare(setup, "openvino", second_opinion.Other("openvino"), window)
    assert opinion.difference < 1e-6


@pytest.mark.parametrize(("last", "more"), [
    ([node("Conv", "features weights bias", "z"), node("Softmax", "z", "y", axis=1)], {}),
    ([node("Conv", "features weights bias", "z"), node("Add", "z along", "y")], {"along": np.zeros(WINDOW)}),
    ([node("Conv", "features weights bias", "z"), node("Add", "z z", "y")], {}),
    ([node("Conv", "features wide bias", "y", pads=[1] * 6)], {"wide": np.zeros((CLASSES, FEATURES, 3, 3, 3))}),
    ([node("Conv", "features pairs bias", "y", group=3)], {"pairs": np.zeros((18, 1, 1, 1, 1)), "bias": np.zeros(18)}),
    ([node("Conv", "features weights bias", "z"), node("Clip", "z", "y")], {}),
])  # fmt: skip
def test_other_endings_are_left_alone(tmp_path, last, more):
    assert open_model(network(tmp_path / "net.onnx", last, **more)).last is None


def test_weights_beside_the_file_are_read(tmp_path):
    path = network(tmp_path / "net.onnx")
    inside = open_model(path).last
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="net.bin", size_threshold=0,
        all_tensors_to_one_file=True,
    )  # fmt: skip
    assert open_model(path).last == inside
    assert inside.weights.shape == (CLASSES, FEATURES)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(inside.bias, held["bias"])


@pytest.mark.parametrize(("more", "why"), [
    ({"device": "simulated"}, "on the CPU alone"),
    ({"empty": True}, "in outputs"),
    ({"ending": [node("Conv", "features weights bias", "z"), node("Softmax", "z", "y", axis=1)]}, "does not end in"),
])  # fmt: skip
def test_what_cannot_be_blended_so_is_refused_where_it_is_asked_for(tmp_path, scene, more, why):
    spec = None
    if more.get("empty"):
        spec = open_model(scene[1]).spec.model_copy(update={"empty": (1.0, *(0.0,) * (CLASSES - 1)), "background": 0.0})
    path = network(tmp_path / "net.onnx", more.get("ending", ()), spec=spec)
    with pytest.raises(SettingsError, match=f"--blend-at features: .*{why}"):
        unet_engine.run(scene[0], model=path, out=str(tmp_path / "o.zarr"), blend_at="features",
                        device=more.get("device", "cpu"), activation="probabilities" if "ending" in more else None)  # fmt: skip


def test_the_command_line_takes_it_and_says_it(tmp_path, scene, proved):
    out = str(tmp_path / "o.zarr")
    done = cli("plan", "--in", scene[0], "--model", scene[1], "--blend-at", "features", "--out", out)
    assert "3 features that the last layer makes 17 outputs of" in done.out
    done = cli("run", "--in", scene[0], "--model", scene[1], "--out", out, "--json")
    assert done.json["blended"] == "features"
    assert cli("run", "--in", scene[0], "--model", scene[1], "--out", out, "--blend-at", "logits").code == 2


def test_a_process_of_its_own_is_asked(scene, asking):
    """It says the same as is found here."""
    setup = Setup(replace(open_model(scene[1]), gives_features=True), (WINDOW,) * 3)
    window = np.random.default_rng(1).standard_normal((1, *(WINDOW,) * 3)).astype(np.float32)
    opinion = second_opinion.of_rewriting(setup, "openvino", window)
    assert opinion == second_opinion.compare(setup, "openvino", second_opinion.Other("openvino"), window)
    assert opinion.wrong == ""
    assert len(list(asking.glob("*.opinion"))) == 1


def test_a_last_layer_is_tried_on_a_part_of_a_large_window(tmp_path, monkeypatch):
    model = open_model(network(tmp_path / "net.onnx", classes=64))
    seen = []
    monkeypatch.setattr(second_opinion, "_kept", lambda *args: seen.append(args))
    monkeypatch.setattr(second_opinion, "SMALL", 4 * 64 * 1000)
    window = np.arange(16 * 12 * 10, dtype=np.float32).reshape(1, 16, 12, 10)
    second_opinion.of_rewriting(Setup(replace(model, gives_features=True), (16, 12, 10)), "openvino", window)
    _, setup, _, _, part = seen[0]
    assert part.shape[1:] == setup.window
    assert np.prod(setup.window) <= 1000
    model.spec.check_window(setup.window)


@pytest.mark.parametrize("output", ["labels", "probabilities"])
def test_blocks_outside_of_a_mask_are_not_inferred(tmp_path, scene, proved, monkeypatch, output):
    for name in ("SUMS_TARGET", "SUMS_MOST"):  # blocks of a window each
        monkeypatch.setattr(f"unet_engine.plan.sizing.{name}", 1)
    inside = np.zeros((14, 15, 40), np.uint8)
    inside[..., :4] = 1
    scan = make_volume(tmp_path / "long.zarr", np.random.default_rng(0).integers(0, 255, inside.shape, np.uint8))
    mask = make_volume(tmp_path / "mask.zarr", inside)
    more = {"mask": mask, "output": output}
    results = [written(tmp_path, (scan, scene[1]), at, blend_at=at, **more) for at in ("features", "outputs")]
    assert results[0][0].blended == "features"
    assert results[0][0].windows_skipped
    assert results[0][0].blocks_planned > 2
    assert np.abs(results[0][1].astype(int) - results[1][1]).max() <= (output == "probabilities")
    assert not results[0][1][..., 20:].any()
