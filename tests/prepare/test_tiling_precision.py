"""``--tiling auto`` in a precision that was proved for windows of one size alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.untrained import untrained
from support.volumes import make_volume, result_of
from unet_engine.backends.libraries import library
from unet_engine.errors import BackendError
from unet_engine.model.file import open_model
from unet_engine.model.verdict import Calibration, Figures, Thresholds, Verdict
from unet_engine.model.writing import with_attachments
from unet_engine.prepare import tiling_speed
from unet_engine.prepare.precision import Grounds, choose, proof_key
from unet_engine.prepare.precision import chosen as chosen_of
from unet_engine.prepare.precision_proof import Proof, remember_proof
from unet_engine.prepare.tiling_choice import TilingChoice
from unet_engine.volumes import samples
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.normalize import quantiles as quantiles_of

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("two_cores")]

pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    noise = np.random.default_rng(0).normal(size=(48, 56, 60)).astype(np.float32)
    return make_volume(tmp_path_factory.mktemp("scan") / "scan.zarr", noise, chunks=(16, 16, 16))


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    """And a voxel takes as long in windows of any size, whatever this machine is like."""
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tiling_speed, "_nanoseconds", lambda *_: 1.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def judged(exported, tmp_path):
    """Gives a network with a verdict that BF16 passed in its own windows, asked for that Dice."""
    if "BF16" not in library("openvino", "cpu").upper():
        pytest.skip("this processor does not compute in bf16")
    return lambda dice: with_verdict(shutil.copy(exported, tmp_path), dice)


def with_verdict(path, dice):
    model = open_model(path)
    figures = Figures(
        windows=4, voxels=100, nonfinite=0, max_error=0.01, mean_error=0.001, agreement=1.0, classes=("a",),
        dice=(1.0,), lost=(), one_class=False,
    )  # fmt: skip
    verdict = Verdict(
        precision="bf16", backend="openvino", library=library("openvino", "cpu"), model=model.sha256, network=None,
        rest="fp32", window=model.spec.window, normalization=str(model.spec.normalization), passed=True,
        emulated=False, reason="as told", figures=figures, thresholds=Thresholds(dice=dice),
        calibration=Calibration(
            volume="v", fingerprint="f", windows=4, held_out=4, seed=0, quantiles=((0, 1, 2, 3, 4),)
        ),
        seconds_per_window=1.0, fp32_seconds_per_window=2.0,
    )  # fmt: skip
    with_attachments(model, model.path, [verdict], {})
    return path


def chosen(said):
    assert said.code == 0, said.err
    return TilingChoice.model_validate(said.json["tiling_choice"])


AUTO = ("--tiling", "auto", "--tiling-budget", 50)


def test_other_windows_are_proved_before_they_are_taken(scan, judged, tmp_path):
    model, out = judged(0.9), str(tmp_path / "out.zarr")
    said = cli("run", "--in", scan, "--model", model, "--out", out, *AUTO, "--json")
    choice = chosen(said)
    identity = zarr.open_group(out, mode="r").attrs["unet_engine"]["identity"]
    assert identity["precision"] == "bf16"
    assert choice.window != open_model(model).spec.window
    assert choice.proof.window == choice.window
    assert choice.proof.regions >= 2
    assert choice.proof.least_dice > 0.9
    assert choice.proving > 0
    assert "its precision passes in these windows, too" in choice.line
    whole = unet_engine.run(
        scan, model=model, out=str(tmp_path / "w.zarr"), precision="fp32", tiling="48,56,60:0,0,0:crop"
    )
    assert (result_of(out) == result_of(whole.out)).mean() > 0.9
    named = f"{','.join(map(str, choice.window))}:{','.join(map(str, choice.shared))}:{choice.blend}"
    by_hand = cli("run", "--in", scan, "--model", model, "--out", tmp_path / "h.zarr", "--tiling", named, "--json")
    assert by_hand.json["precision"] == "bf16"
    assert by_hand.json["digest"] == said.json["digest"]
    assert np.array_equal(result_of(by_hand.json["out"]), result_of(out))


BY_HAND = ("--tiling", "24,24,24:4,4,4:crop")


def proved_by_a_run(model, scan, precision="bf16", quantiles=None, **fields):
    """What such a run leaves in the cache of windows of 24³."""
    file, volume = open_model(model), open_volume(scan)
    key = proof_key(file, "openvino", "cpu", choose(file, "openvino", "cpu", precision, file.spec.window))
    seen = quantiles_of(samples.measured(volume), samples.scaling_of(volume, file.spec.normalization))
    proof = {"window": (24, 24, 24), "regions": 4, "voxels": 9, "agreement": 1.0, "least_dice": 0.99, "max_error": 0.0}
    remember_proof(
        key, Proof(**{**proof, "reason": "", "volume": "before.zarr", "quantiles": quantiles or seen, **fields})
    )


def test_a_run_by_hand_uses_what_one_before_it_proved(scan, judged, tmp_path):
    model = judged(0.9)
    before = cli("plan", "--in", scan, "--model", model, *BY_HAND, "--json").json
    proved_by_a_run(model, scan)
    after = cli("plan", "--in", scan, "--model", model, *BY_HAND, "--json").json
    assert (before["precision"], after["precision"]) == ("fp32", "bf16")
    assert before["digest"] != after["digest"]
    [note] = [n for n in after["notes"] if "precision" in n]
    assert "proved in windows of 24×24×24 by an earlier run on before.zarr, 4 regions, least Dice" in note
    asked = cli("plan", "--in", scan, "--model", model, *BY_HAND, "--precision", "bf16", "--strict", "--json")
    assert asked.json["digest"] == after["digest"]
    other = cli("plan", "--in", scan, "--model", model, "--tiling", "32,24,24:4,4,4:crop", "--json").json
    assert other["precision"] == "fp32"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"quantiles": ((9.0, 9.2, 9.4, 9.6, 9.8),)}, "proved in these windows on data of another kind, channel 0"),
        ({"reason": "Dice of a is 0.5, below 0.9"}, "failed in these windows: Dice of a is 0.5"),
    ],
)
def test_a_proof_on_other_data_or_a_failure_permits_nothing(scan, judged, tmp_path, fields, why):
    model = judged(0.9)
    proved_by_a_run(model, scan, **fields)
    said = cli("plan", "--in", scan, "--model", model, *BY_HAND, "--json").json
    assert said["precision"] == "fp32"
    assert any(why in note for note in said["notes"])
    asked = cli("plan", "--in", scan, "--model", model, *BY_HAND, "--precision", "bf16", "--strict", "--json")
    assert asked.code != 0


def test_int8_by_name_needs_a_proof_in_its_windows(scan, judged):
    model = judged(0.9)
    verdict = open_model(model).verdicts[0].model_copy(update={"precision": "int8", "network": "0" * 64})
    with_attachments(open_model(model), Path(model), [verdict], {"0" * 64: b"a network"})
    asked = ("openvino", "cpu", "int8", (24, 24, 24), Grounds(lambda: ((0.0, 1.0, 2.0, 3.0, 4.0),), lambda: None))
    with pytest.raises(BackendError, match="int8 is refused"):
        chosen_of(open_model(model), *asked)
    proved_by_a_run(model, scan, "int8", quantiles=((100.0, 101.0, 102.0, 103.0, 104.0),))
    with pytest.raises(BackendError, match=r"of another kind, channel 0: .*; its int8 .* is refused"):
        chosen_of(open_model(model), *asked)
    proved_by_a_run(model, scan, "int8", quantiles=((0.1, 1.0, 2.0, 3.0, 4.0),))
    assert chosen_of(open_model(model), *asked).network == "0" * 64


def test_another_bar_than_was_proved_permits_nothing(scan, judged, tmp_path):
    model = judged(0.9)
    proved_by_a_run(model, scan)
    stricter = open_model(model).verdicts[0].model_copy(update={"thresholds": Thresholds(dice=0.999)})
    with_attachments(open_model(model), Path(model), [stricter], {})
    assert cli("plan", "--in", scan, "--model", model, *BY_HAND, "--json").json["precision"] == "fp32"


@pytest.mark.parametrize("name", ["out.zarr", "out.npy"])
def test_what_was_begun_goes_on_in_its_precision(scan, judged, tmp_path, name, monkeypatch):
    """Parts and resumes do not ask what is known meanwhile, nor on another machine."""
    model, precisions = judged(0.9), []
    for begun in (False, True):
        if begun:
            proved_by_a_run(model, scan)
        out = tmp_path / f"{begun}-{name}"
        run = ("run", "--in", scan, "--model", model, "--out", out, *BY_HAND, "--json")
        first = cli(*run, *(("--part", "1/2") if name == "out.zarr" else ()))
        if begun:
            monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "elsewhere"))
        else:
            proved_by_a_run(model, scan)
        rest = cli(*run, "--resume")
        assert rest.code == 0, rest.err
        assert rest.json["digest"] == first.json["digest"]
        precisions.append(rest.json["precision"])
    assert precisions == ["fp32", "bf16"]


@pytest.mark.slow
def test_what_was_proved_is_known_to_the_next_run_and_a_resume(scan, judged, tmp_path, monkeypatch):
    model, out = judged(0.9), str(tmp_path / "out.zarr")
    first = cli("run", "--in", scan, "--model", model, "--out", out, *AUTO, "--part", "1/2", "--json")
    monkeypatch.setattr("unet_engine.prepare.tiling_settling.proved", lambda *_: pytest.fail("proved again"))
    monkeypatch.setattr("unet_engine.prepare.tiling_speed._nanoseconds", lambda *_: pytest.fail("timed again"))
    again = chosen(cli("plan", "--in", scan, "--model", model, *AUTO, "--json"))
    assert again.window == chosen(first).window
    assert again.proving == 0
    rest = cli("run", "--in", scan, "--model", model, "--out", out, *AUTO, "--resume", "--json")
    assert rest.code == 0, rest.err
    assert rest.json["digest"] == first.json["digest"]


@pytest.mark.slow
def test_where_it_fails_in_all_windows_the_models_own_are_kept(scan, judged, tmp_path):
    """Noise through a network that was not trained: BF16 gives other labels here and there."""
    choice = chosen(cli("plan", "--in", scan, "--model", judged(1.0), *AUTO, "--json"))
    assert choice.window == (16, 16, 16)
    assert "bf16 fails in windows of" in choice.kept
    assert "below 1" in choice.kept


def test_where_proving_would_take_too_much_it_is_said(scan, judged, tmp_path):
    model = judged(0.9)
    choice = chosen(cli("plan", "--in", scan, "--model", model, "--tiling", "auto", "--json"))
    assert choice.window == (16, 16, 16)
    assert "bf16 is not proved in windows of" in choice.kept
    assert "--tiling-budget" in choice.kept
    full = chosen(cli("plan", "--in", scan, "--model", model, "--tiling", "auto", "--precision", "fp32", "--json"))
    assert not full.kept


@pytest.mark.slow
def test_a_precision_that_is_asked_for_is_proved_too(scan, judged, tmp_path):
    choice = chosen(cli("plan", "--in", scan, "--model", judged(0.9), *AUTO, "--precision", "bf16", "--json"))
    assert choice.proof is not None
