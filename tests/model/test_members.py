"""A model file of several networks: what it holds, what of it is its hash, and what is refused."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.graphs import convolution, graph, node
from support.volumes import make_volume, result_of
from unet_engine.backends.libraries import library
from unet_engine.errors import ModelError, SettingsError
from unet_engine.model import attachments
from unet_engine.model.attached import NETWORK, network_bytes
from unet_engine.model.ensemble import MEMBERS
from unet_engine.model.file import open_model
from unet_engine.model.spec import ModelSpec
from unet_engine.model.verdict import Calibration, Figures, Thresholds, Verdict
from unet_engine.model.writing import with_attachments, write_members
from unet_engine.prepare.precision import choose

pytest.importorskip("onnx")


def network(folder, seed, **spec):
    """A convolution of one voxel, so that what it gives is known, with a spec."""
    values = {
        "name": "net", "axes": "yx", "channels_in": 1, "channels_out": 2, "window": (8, 8), "window_min": (8, 8),
        "window_step": (0, 0), "margin": (0, 0), "normalization": "none", **spec,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    return graph(
        folder / f"{seed}.onnx", [node("Conv", "x w", "y")], shape=(1, 1, 8, 8), spec=ModelSpec.model_validate(values),
        w=convolution(channels_out=2, seed=seed),
    )  # fmt: skip


@pytest.fixture
def parts(tmp_path):
    return [(network(tmp_path / "parts", seed), f"fold_{seed}", weight) for seed, weight in ((0, 1), (1, 1), (3, 2))]


@pytest.fixture
def file(parts, tmp_path):
    return write_members(tmp_path / "net.onnx", parts).path


def test_it_holds_the_networks_as_they_were(parts, file):
    model = open_model(file)
    assert [n.label for n in model.networks] == ["fold_0", "fold_1", "fold_3"]
    assert model.shares == (0.25, 0.25, 0.5)
    for (path, _, _), member in zip(parts, model.networks, strict=True):
        assert member.sha256 == open_model(path).sha256
        assert network_bytes(file, member.inside) == Path(path).read_bytes()
    import onnx

    onnx.checker.check_model(onnx.load(file))  # for any other reader it is the first network


def test_weights_members_and_their_order_are_its_hash(parts, file, tmp_path):
    own = open_model(file).sha256
    others = [parts[::-1], parts[:2], [(p, n, w + 1) for p, n, w in parts]]
    assert len({own, *(write_members(tmp_path / f"{i}.onnx", other).sha256 for i, other in enumerate(others))}) == 4
    moved = write_members(tmp_path / "again.onnx", parts)
    assert moved.sha256 == own == open_model(",".join(p for p, _, _ in parts), weights="1,1,2").sha256
    assert open_model(file, folds="1").sha256 == open_model(parts[1][0]).sha256
    assert open_model(file, folds="fold_3,0").sha256 == open_model(file, folds="0,3").sha256 != own


def test_a_run_is_the_weighted_mean(parts, file, tmp_path):
    image = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", image)
    found = unet_engine.run(volume, model=str(file), out=str(tmp_path / "o.zarr"), output="logits")
    weights = sum(w * convolution(channels_out=2, seed=int(name[-1])) for _, name, w in parts)[:, :, 0] / 4
    np.testing.assert_allclose(result_of(found.out), weights * image, atol=1e-5)
    assert (
        found.windows_inferred
        == found.windows_planned
        == 3 * unet_engine.make_plan(volume, model=parts[0][0]).window_count
    )
    one = unet_engine.run(volume, model=str(file), folds="3", out=str(tmp_path / "one.zarr"), output="logits")
    alone = unet_engine.run(volume, model=parts[2][0], out=str(tmp_path / "alone.zarr"), output="logits")
    assert one.digest == alone.digest
    np.testing.assert_array_equal(result_of(one.out), result_of(alone.out))


def test_numbers_are_those_of_folds_not_places(file):
    assert [n.label for n in open_model(file, folds="3,1").networks] == ["fold_1", "fold_3"]
    with pytest.raises(SettingsError, match="no '2'; the model has fold_0, fold_1, fold_3"):
        open_model(file, folds="2")
    assert len(open_model(file, folds="all").networks) == 3


@pytest.mark.parametrize("weights", ["1e308,1e308,1e308", "1e-320,1,1", "0,1,1", "1,nan,1"])
def test_weights_that_sums_do_not_hold_are_refused(file, weights):
    """Of three times 1e308 each network counted nothing, and every voxel was the background."""
    with pytest.raises(SettingsError, match="--weights"):
        open_model(file, weights=weights)


def test_networks_count_from_0_where_they_have_names(parts):
    files = ",".join(path for path, _, _ in parts[:2]).replace("0.onnx", "a.onnx").replace("1.onnx", "b.onnx")
    for (path, _, _), name in zip(parts[:2], files.split(","), strict=True):
        Path(path).rename(name)
    assert open_model(files, folds="1").sha256 == open_model(files.split(",")[1]).sha256
    with pytest.raises(SettingsError, match="there is no '9999"):
        open_model(files, folds="9" * 5000)


def test_what_else_is_attached_leaves_the_members(file):
    before = open_model(file)
    with_attachments(before, file, (), {})
    assert open_model(file).sha256 == before.sha256


def test_a_member_that_is_missing_or_damaged_is_refused(file):
    values = {a.key: attachments.read(file, a.key) for a in attachments.attachments(file)}
    missing = {key: value for key, value in values.items() if not key.startswith(NETWORK)}
    damaged = {**values, next(k for k in values if k.startswith(NETWORK)): base64.b64encode(b"x")}
    broken = {**values, next(k for k in values if k.startswith(NETWORK)): b"abc"}
    strange = {**values, MEMBERS: b'[{"name": "a", "weight": -1}]'}
    endless = {**values, MEMBERS: json.dumps([{"name": str(i)} for i in range(10_000)]).encode()}
    for wrong, words in (
        (missing, "of its members is missing"), (damaged, "of its members is damaged"),
        (broken, "of its members is damaged"), (strange, "list of networks is not valid"),
        (endless, "list of networks is not valid"),
    ):  # fmt: skip
        attachments.attach(file, file, wrong)
        with pytest.raises(ModelError, match=words):
            open_model(file)


def test_what_makes_no_file_of_several_leaves_none(parts, tmp_path):
    other = network(tmp_path / "parts", 7, spacing=(1.0, 2.0))
    twice = [*parts, (parts[0][0], "fold_1", 1)]
    several = [parts[0], (write_members(tmp_path / "two.onnx", parts[:2]).path, "both", 1)]
    for wrong, words in (
        ([*parts, (other, "fold_7", 1)], "spacing is not said and"), (twice, "names of their own"),
        (several, "single network"), ([(parts[0][0], "a,b", 1), parts[1]], "without commas"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=words):
            write_members(tmp_path / "wrong.onnx", wrong)
        assert not (tmp_path / "wrong.onnx").exists()


def test_names_lead_nowhere_and_hold_no_signs_of_control(file):
    values = {a.key: attachments.read(file, a.key) for a in attachments.attachments(file)}
    attachments.attach(file, file, {**values, MEMBERS: json.dumps([{"name": "\x1b[2J/../x"}, {"name": "b"}]).encode()})
    assert [n.label for n in open_model(file).networks] == ["_[2J_.._x", "b"]


def test_info_shows_them(file):
    said = cli("info", str(file), "--json")
    assert [m.split(":")[0] for m in said.json["members"]] == ["fold_0", "fold_1", "fold_3"]
    assert "50 %" in said.json["members"][2]
    assert json.loads(attachments.read(file, MEMBERS))[2]["weight"] == 2


# --- precision is what is proved for each ---


def passed(member, precision="bf16", *, dice=0.9995):
    figures = Figures(
        windows=4, voxels=100, nonfinite=0, max_error=0.01, mean_error=0.001, agreement=1.0, classes=("a",),
        dice=(dice,), lost=(), one_class=False,
    )  # fmt: skip
    return Verdict(
        precision=precision, backend="openvino", library=library("openvino", "cpu"), model=member.sha256, network=None,
        rest="fp32", window=(8, 8), normalization=str(member.spec.normalization), activation=member.spec.activation,
        passed=True, emulated=False, reason="as told", figures=figures, thresholds=Thresholds(dice=0.999),
        calibration=Calibration(
            volume="v", fingerprint="f", windows=4, held_out=4, seed=0, quantiles=((0, 1, 2, 3, 4),)
        ),
        seconds_per_window=1.0, fp32_seconds_per_window=2.0,
    )  # fmt: skip


def test_a_precision_runs_where_it_is_proved_for_each_member(file):
    pytest.importorskip("openvino")
    members = open_model(file).networks
    with_attachments(open_model(file), file, [passed(members[0]), passed(members[1])], {})
    assert [len(n.verdicts) for n in open_model(file).networks] == [1, 1, 0]
    some = choose(open_model(file), "openvino", "cpu", "auto", (8, 8))
    assert (some.precision, "fold_3) fp32" in some.why) == ("fp32", True)
    assert choose(open_model(file, folds="0,1"), "openvino", "cpu", "auto", (8, 8)).precision == "bf16"
    verdicts = [passed(members[0]), passed(members[1], dice=0.9992), passed(members[2])]
    with_attachments(open_model(file), file, verdicts, {})
    every = choose(open_model(file), "openvino", "cpu", "auto", (8, 8))
    assert (every.precision, every.judged) == ("bf16", (None, None, None))
    assert "0.9992" in every.why  # the least of all
    assert any("fold_1: bf16" in line for line in cli("info", str(file), "--json").json["judged"])


def test_it_is_read_again_as_it_was_asked_for(file, parts):
    """As a worker of a cluster does, to see that it has the same."""
    for asked in (
        {"folds": "3,0"}, {"weights": "1,2,3"}, {"folds": "1"}, {},
    ):  # fmt: skip
        model = open_model(file, **asked)
        assert model.again((8, 8)).sha256 == model.sha256
    listed = open_model(",".join(p for p, _, _ in parts), folds="0,3")
    assert listed.again((8, 8)).sha256 == listed.sha256
