"""``--tiling auto`` in a precision that was proved for windows of one size alone."""

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.untrained import untrained
from support.volumes import make_volume, result_of
from unet_engine.backends.libraries import library
from unet_engine.model.file import open_model
from unet_engine.model.verdict import Calibration, Figures, Thresholds, Verdict
from unet_engine.model.writing import with_attachments
from unet_engine.prepare.tiling_choice import TilingChoice

pytestmark = pytest.mark.long

pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    noise = np.random.default_rng(0).normal(size=(48, 56, 60)).astype(np.float32)
    return make_volume(tmp_path_factory.mktemp("scan") / "scan.zarr", noise, chunks=(16, 16, 16))


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))


def judged(folder, dice):
    """A network with a verdict that BF16 passed in its own windows, asked for that Dice."""
    if "BF16" not in library("openvino", "cpu").upper():
        pytest.skip("this processor does not compute in bf16")
    path = untrained(folder)
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


def test_other_windows_are_proved_before_they_are_taken(scan, tmp_path):
    model, out = judged(tmp_path, 0.9), str(tmp_path / "out.zarr")
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


@pytest.mark.slow
def test_what_was_proved_is_known_to_the_next_run_and_a_resume(scan, tmp_path, monkeypatch):
    model, out = judged(tmp_path, 0.9), str(tmp_path / "out.zarr")
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
def test_where_it_fails_in_all_windows_the_models_own_are_kept(scan, tmp_path):
    """Noise through a network that was not trained: BF16 gives other labels here and there."""
    choice = chosen(cli("plan", "--in", scan, "--model", judged(tmp_path, 1.0), *AUTO, "--json"))
    assert choice.window == (16, 16, 16)
    assert "bf16 fails in windows of" in choice.kept
    assert "below 1" in choice.kept


def test_where_proving_would_take_too_much_it_is_said(scan, tmp_path):
    model = judged(tmp_path, 0.9)
    choice = chosen(cli("plan", "--in", scan, "--model", model, "--tiling", "auto", "--json"))
    assert choice.window == (16, 16, 16)
    assert "bf16 is not proved in windows of" in choice.kept
    assert "--tiling-budget" in choice.kept
    full = chosen(cli("plan", "--in", scan, "--model", model, "--tiling", "auto", "--precision", "fp32", "--json"))
    assert not full.kept


@pytest.mark.slow
def test_a_precision_that_is_asked_for_is_proved_too(scan, tmp_path):
    choice = chosen(cli("plan", "--in", scan, "--model", judged(tmp_path, 0.9), *AUTO, "--precision", "bf16", "--json"))
    assert choice.proof is not None
