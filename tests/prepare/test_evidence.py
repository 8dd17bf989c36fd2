"""Outputs of real windows that cannot be what the spec says: told, and an error under --strict. What may be chance is
not."""

import json
import shutil

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.backends.base import Backend, Setup, Trial
from unet_engine.backends.libraries import open_on_device
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.prepare.evidence import Outputs, contradiction, cut_off
from unet_engine.prepare.looking import Look
from unet_engine.volumes import windows
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.normalize import Scaling

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 4, (3, 16, 16, 16)).astype(np.float32)
SIGMOID = 1 / (1 + np.exp(-LOGITS))
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(0)


def spec_of(channels, activation, **more):
    return ModelSpec(
        name="n", axes="zyx", channels_in=1, channels_out=channels, activation=activation, window=(16, 16, 16),
        window_min=(16, 16, 16), window_step=(16, 16, 16), margin=(0, 0, 0), **more,
    )  # fmt: skip


def said(activation, *outputs, labels=True):
    seen = Outputs()
    for output in outputs:
        seen.look(output)
    return contradiction(seen, spec_of(len(outputs[0]), activation), labels=labels)


REFUTED = {
    "sigmoid of one": ("sigmoid", SIGMOID[:1], "probabilities"),
    "a number of one": ("none", SIGMOID[:1], "probabilities"),
    "sigmoid where nothing is": ("sigmoid", SIGMOID[:1] * 0.1, "probabilities"),
    "softmax of softmax": ("softmax", SOFTMAX, "probabilities"),
    "softmax near a third": ("softmax", SOFTMAX * 0.01 + 0.33, "probabilities"),
    "softmax in bfloat16": ("softmax", SOFTMAX.astype(np.float16), "probabilities"),
    "softmax of sigmoids": ("softmax", SIGMOID, "probabilities_each"),
    "sigmoid of sigmoids": ("sigmoid", SIGMOID, "probabilities_each"),
    "sigmoid of softmax": ("sigmoid", SOFTMAX, "probabilities"),
    "sigmoid of LogSoftmax": ("sigmoid", np.log(SOFTMAX), "softmax"),
    "logits of one": ("probabilities", LOGITS[:1], "sigmoid"),
    "logits of classes": ("probabilities", LOGITS, "softmax or sigmoid"),
    "logits of channels": ("probabilities_each", LOGITS, "softmax or sigmoid"),
    "255 times": ("probabilities", SOFTMAX * 255, "softmax or sigmoid"),
    "channels of their own": ("probabilities", SIGMOID, "probabilities_each"),
    "classes": ("probabilities_each", SOFTMAX, "probabilities"),
}


@pytest.mark.parametrize("case", REFUTED)
def test_outputs_that_the_spec_contradicts(case):
    activation, outputs, right = REFUTED[case]
    assert said(activation, outputs.astype(outputs.dtype, copy=False)).endswith(f"use --activation {right}")


HOLDS = {
    "logits of one": ("sigmoid", LOGITS[:1]),
    "logits of classes": ("softmax", LOGITS),
    "logarithms of probabilities": ("softmax", np.log(SOFTMAX)),
    "probabilities of one": ("probabilities", SIGMOID[:1]),
    "probabilities of classes": ("probabilities", SOFTMAX),
    "probabilities of channels": ("probabilities_each", SIGMOID),
    "rounded probabilities": ("probabilities", (SOFTMAX * 1.004 - 0.002).astype(np.float16)),
    "untrained, by chance within 0 and 1": ("sigmoid", 0.4 + LOGITS[:1] / 100),
    "untrained classes": ("softmax", 0.5 + LOGITS / 100),
    "labels of two classes": ("none", np.rint(SIGMOID[:1])),
    "the largest of numbers": ("none", SOFTMAX),
    "few voxels": ("sigmoid", SIGMOID[:1, :4, :4, :4]),
}


@pytest.mark.parametrize("case", HOLDS)
def test_outputs_that_the_spec_does_not_contradict(case):
    assert said(*HOLDS[case]) == ""


def test_an_image_may_lie_within_0_and_1():
    assert said("none", SIGMOID[:1], labels=False) == ""


def test_one_window_of_two_settles_it():
    assert said("sigmoid", SIGMOID[:1], LOGITS[:1]) == ""
    assert said("probabilities", SIGMOID[:1], LOGITS[:1]) != ""


def test_nothing_finite_and_nothing_at_all():
    broken = LOGITS.copy()
    broken[1, 2, 3] = np.nan
    assert said("softmax", LOGITS, broken).startswith("16 outputs are NaN or infinite; check the weights")
    same = np.broadcast_to(np.float32([1, 2, 3]).reshape(3, 1, 1, 1), LOGITS.shape)
    assert "the same for every voxel" in said("softmax", same, same)
    assert "the same for every voxel" not in said("softmax", same, same + 1)
    assert "gives 1 for every voxel" in said("sigmoid", np.ones((1, 16, 16, 16), np.float32))


# --- in a run ---


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Mostly 0, and z-scores in two places."""
    array = np.zeros((40, 40, 64), np.float32)
    array[:8, 24:32, 44:60] = np.random.default_rng(2).normal(0, 1, (8, 8, 16))
    array[20:36, 8:24, 4:20] = np.random.default_rng(1).normal(0, 1, (16, 16, 16))
    return make_volume(tmp_path_factory.mktemp("scan") / "scan.zarr", array, chunks=(8, 8, 8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network of probabilities that its operators do not show, said to give logits: as TorchScript and ``.pt2``."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)

    class Wave(torch.nn.Module):
        def forward(self, x):
            return (torch.sin(x) + 1) / 2

    convolution = torch.nn.Conv3d(1, 1, 3, padding=1)
    torch.nn.init.normal_(convolution.weight)
    network = torch.nn.Sequential(convolution, Wave()).eval()
    extra = {METADATA_KEY: spec_of(1, "sigmoid").model_dump_json()}
    example = torch.zeros(1, 1, 16, 16, 16)
    torch.jit.save(torch.jit.trace(network, example), str(folder / "net.pt"), _extra_files=extra)
    torch.export.save(torch.export.export(network, (example,)), folder / "net.pt2", extra_files=extra)
    return folder


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_what_no_operator_shows_is_seen_in_the_outputs(tmp_path, scan, files, name):
    """Every label would be 1."""
    out = tmp_path / "o.zarr"
    asked = ["run", "--in", scan, "--model", files / name, "--trust", "--out", out, "--overwrite"]
    told = cli(*asked)
    assert told.code == 0, told.err
    assert "sigmoid would be applied to what are probabilities already; use --activation probabilities" in told.err
    refused = cli(*asked, "--strict")
    assert (refused.code, "outputs lie between" in refused.error) == (6, True)
    right = cli(*asked, "--strict", "--activation", "probabilities")
    assert right.code == 0, right.err
    assert 0 < zarr.open_array(out / "0", mode="r")[...].mean() < 1


@pytest.mark.parametrize("case", ["seen", "skipped", "elsewhere"])
def test_of_the_next_volume_windows_are_seen_that_are_inferred_anyway(tmp_path, scan, files, monkeypatch, case):
    """What was not inferred after all, or lies outside of the region, is inferred to be looked at."""
    looks = []
    look_at = Backend.look_at
    monkeypatch.setattr(Backend, "look_at", lambda self, trial: (looks.append(1), look_at(self, trial)))
    if case == "skipped":
        monkeypatch.setattr(Look, "among", lambda self, plan: {(99, 99, 99)})
    roi = ("--roi", "24:40,24:40,48:64") if case == "elsewhere" else ()
    shutil.copytree(scan, tmp_path / "again.zarr")
    asked = ["run", "--in", scan, tmp_path / "again.zarr", "--model", files / "net.pt", "--trust", *roi]
    told = cli(*asked, "--out", tmp_path / "{stem}-o.zarr", "--results", tmp_path / "results.jsonl")
    assert told.code == 0, told.err
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [sum("sigmoid would be applied" in note for note in one["notes"]) for one in results] == [1, 1]
    assert len(looks) == (case != "seen")
    refused = cli(*asked, "--out", tmp_path / "{stem}-s.zarr", "--strict", "--keep-going")
    assert refused.code == 11


def test_the_windows_are_where_the_image_is(scan):
    volume = open_volume(scan)
    found = windows.richest(volume, (16, 16, 16), 2)
    assert len(found) == 2
    assert all(volume.read(box).std() > 0.2 for box in found)
    assert all(lo % 8 == 0 for box in found for lo in box.lo)
    assert windows.richest(open_volume(scan), (64, 64, 64), 2)[0].shape == (40, 40, 64)
    assert windows.richest(volume, (24, 24), 2)[0].shape == (1, 24, 24)


def test_a_volume_of_one_value_shows_nothing(tmp_path):
    assert windows.richest(open_volume(make_volume(tmp_path / "v.zarr", np.full((20, 20, 20), 7))), (8, 8, 8), 2) == []


def test_a_device_shows_the_same_without_memory_of_its_own(tmp_path):
    """Two windows in a batch of three, in and out again."""
    setup = Setup(open_model(fake_model(tmp_path, channels_out=2)), (8, 8, 8), "simulated", batch=3)
    network = open_on_device("fake", setup)
    given, taken, seen = RNG.random((2, 1, 8, 8, 8)).astype(np.float32), network.taken, []
    network.warm_up(Trial(lambda window: list(given), lambda output: seen.append(output.copy())))
    assert network.taken == taken
    np.testing.assert_array_equal(seen, np.repeat(given, 2, 1))
    network.close()


def test_windows_are_normalised(scan):
    volume = open_volume(scan)
    (box,) = windows.richest(volume, (16, 16, 16), 1)
    cut = windows.cut(volume, Scaling((1.0,), (0.5,)), box, (16, 16, 16))
    np.testing.assert_allclose(cut, (volume.read(box) - 1) * 0.5)


# --- numbers written as what cannot hold them ---


@pytest.mark.parametrize(("values", "cut"), [(LOGITS, True), (SIGMOID, False), (SIGMOID * 1.01, False)])
def test_numbers_that_probabilities_cut_off_are_told(values, cut):
    seen = Outputs()
    seen.look(values)
    assert ("cut off" in cut_off(seen, spec_of(len(values), "none"))) == cut
    assert not cut_off(seen, spec_of(len(values), "softmax"))


def test_a_run_tells_what_probabilities_cut_off(tmp_path, scan, tiny_onnx):
    asked = [
        "run", "--in", scan, "--model", tiny_onnx, "--out", tmp_path / "o.zarr", "--output", "probabilities",
        "--activation", "none", "--normalize", "range:0,0.1", "--overwrite",
    ]  # fmt: skip
    told = cli(*asked)
    assert (told.code, "cut off in probabilities; use --output logits" in told.err) == (0, True), told.err
    assert cli(*asked, "--strict").code == 6
