"""``--overlap auto``: the cheapest overlap that agrees with 0.5 on the user's own volume, chosen once, kept by whoever
goes on."""

from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.shares import share
from support.untrained import untrained as network
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.base import Setup
from unet_engine.backends.libraries import open_backend
from unet_engine.backends.receptive_field import radius
from unet_engine.model.file import open_model
from unet_engine.prepare import overlap
from unet_engine.prepare.overlap_choice import OverlapChoice

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

LOOSE = 0.96


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A volume of smooth noise and a network whose labels depend a little on where windows end."""
    folder = tmp_path_factory.mktemp("overlap")
    noise = np.random.default_rng(0).normal(size=(40, 48, 44)).astype(np.float32)
    return make_volume(folder / "scan.zarr", noise, chunks=(16, 16, 16)), network(folder)


def choice_in(out):
    return OverlapChoice.model_validate(zarr.open_group(out, mode="r").attrs["unet_engine"]["overlap_choice"])


def planned(scene, **options):
    plan = unet_engine.make_plan(scene[0], model=scene[1], **options)
    return plan.window_range.size


@pytest.fixture(scope="module")
def done(scene, tmp_path_factory):
    """A run with a tolerance that a smaller overlap meets, and what it said."""
    out = str(tmp_path_factory.mktemp("auto") / "out.zarr")
    said = cli(
        "run",
        "--in",
        scene[0],
        "--model",
        scene[1],
        "--out",
        out,
        "--overlap",
        "auto",
        "--overlap-tolerance",
        LOOSE,
        "--json",
    )
    assert said.code == 0, said.err
    return out, said


def test_what_is_measured_is_what_whole_runs_give(scene, done, tmp_path):
    """The figures in the output are those one gets by running the volume with both overlaps and comparing the labels by
    hand."""
    choice = choice_in(done[0])
    assert choice.chosen.overlap < 0.5
    half = unet_engine.run(*scene[:1], model=scene[1], out=str(tmp_path / "half.zarr"))
    reference, found = result_of(half.out), result_of(done[0])
    boxes = [tuple(slice(*map(int, span.split(":"))) for span in text.split(",")) for text in choice.regions]
    a, b = (np.concatenate([labels[box].ravel() for box in boxes]) for labels in (reference, found))
    assert choice.agreement == pytest.approx((a == b).mean(), abs=1e-12)
    for k, dice in enumerate(choice.dice.values()):
        assert dice == pytest.approx(2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()), abs=1e-12)
    assert min(choice.agreement, *choice.dice.values()) >= LOOSE


def test_the_choice_is_the_cheapest_that_passes_and_its_saving_is_the_plans(scene, done):
    choice = choice_in(done[0])
    *failed, passed = choice.trials
    assert passed.passed
    assert passed.candidate == choice.chosen
    assert not any(trial.passed for trial in failed)
    assert all(trial.windows <= passed.windows for trial in failed)
    chosen = {"overlap": choice.chosen.overlap, "blend": choice.chosen.blend}
    assert choice.windows == planned(scene, **chosen) < choice.windows_of_reference == planned(scene, overlap=0.5)


def test_the_bytes_are_those_of_the_overlap_it_names(scene, done, tmp_path):
    choice = choice_in(done[0])
    same = unet_engine.run(
        scene[0], model=scene[1], out=str(tmp_path / "o.zarr"), overlap=choice.chosen.overlap, blend=choice.chosen.blend
    )
    np.testing.assert_array_equal(result_of(same.out), result_of(done[0]))
    assert same.digest == done[1].json["digest"], "auto is not part of what names a run, what it chose is"


def test_the_choice_is_told_and_in_the_json(done):
    choice = choice_in(done[0])
    assert OverlapChoice.model_validate(done[1].json["overlap_choice"]) == choice
    told = " ".join(done[1].err.split())
    assert f"{choice.windows:,} windows instead of {choice.windows_of_reference:,}" in told
    assert f"{choice.agreement:.5f} of the labels agree" in told
    for trial in choice.trials:  # as it goes, since a search on a large network takes minutes
        assert f"{trial.candidate}: {trial.agreement:.5f} of the labels agree on {trial.regions} of them" in told


@pytest.mark.parametrize("also", [["--resume"], ["--part", "1/1"]])
def test_who_goes_on_takes_the_stored_choice_and_searches_no_more(scene, tmp_path, monkeypatch, also):
    """Half of the work in one run, the rest in another, which may not search: the bytes of a run in one go."""
    options = ["--in", scene[0], "--model", scene[1], "--overlap", "auto", "--overlap-tolerance", LOOSE]
    out = str(tmp_path / "out.zarr")
    assert cli("run", *options, "--out", out, "--part", "1/2").code == 0
    monkeypatch.setattr(overlap, "search", lambda *_: pytest.fail("searched anew"))
    rest = cli("run", *options, "--out", out, *also)
    assert rest.code == 0, rest.err
    whole = unet_engine.run(
        scene[0], model=scene[1], out=str(tmp_path / "whole.zarr"), overlap=choice_in(out).chosen.overlap,
        blend=choice_in(out).chosen.blend,
    )  # fmt: skip
    np.testing.assert_array_equal(result_of(out), result_of(whole.out))


def test_another_tolerance_is_refused_on_resume(scene, done):
    said = cli("run", "--in", scene[0], "--model", scene[1], "--out", done[0], "--overlap", "auto", "--resume")
    assert said.code == 9
    assert "--overlap-tolerance 0.96, now 0.999" in said.error


def test_a_region_gives_that_crop_of_the_whole(scene, done, tmp_path):
    part = cli(
        "run", "--in", scene[0], "--model", scene[1], "--out", tmp_path / "roi.zarr", "--overlap", "auto",
        "--overlap-tolerance", LOOSE, "--roi", "3:20,0:17,9:40",
    )  # fmt: skip
    assert part.code == 0, part.err
    np.testing.assert_array_equal(result_of(tmp_path / "roi.zarr"), result_of(done[0])[3:20, 0:17, 9:40])


@pytest.mark.slow
def test_workers_of_a_cluster_all_take_the_same_choice(scene, done, tmp_path):
    said = cli(
        "run", "--in", scene[0], "--model", scene[1], "--out", tmp_path / "w.zarr", "--overlap", "auto",
        "--overlap-tolerance", LOOSE, "--workers", 2, "--dashboard", "none", "--json",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert said.json["overlap_choice"] == done[1].json["overlap_choice"]
    np.testing.assert_array_equal(result_of(tmp_path / "w.zarr"), result_of(done[0]))


def test_where_nothing_agrees_half_is_kept_and_why_is_said(scene, tmp_path):
    said = cli("plan", "--in", scene[0], "--model", scene[1], "--overlap", "auto", "--overlap-tolerance", "1", "--json")
    found = OverlapChoice.model_validate(said.json["overlap_choice"])
    assert found.chosen == found.reference
    assert found.windows == found.windows_of_reference == said.json["windows_planned"]
    assert len(found.trials) >= 3
    assert not any(trial.passed for trial in found.trials)
    assert "overlap 0.5 is kept" in found.line


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Networks with one and two poolings, and one with valid convolutions."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {
        "shallow": {"window": 48},
        "deep": {"window": 64, "depth": 2},
        "valid": {"window": 60, "padding": "valid"},
    }

    class Made(dict):
        """Those that a test asks for."""

        def __missing__(self, name):
            self[name] = network(folder, name=name, base=4, **kinds[name])
            return self[name]

    return Made()


def test_crop_by_the_receptive_field_is_exact(models, tmp_path):
    """A network that sees 9 voxels far in windows of 48: cropped by that, no label depends on the grid, so it is among
    what is tried."""
    assert open_model(models["shallow"]).spec.context == (9, 9, 9)
    noise = np.random.default_rng(0).normal(size=(96, 108, 108)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", noise, chunks=(48, 48, 48))
    crop = {"overlap": 18 / 48, "blend": "crop"}
    outs = [
        unet_engine.run(volume, model=models["shallow"], out=str(tmp_path / f"{r}.zarr"), overlap=r, blend="crop").out
        for r in (18 / 48, 0.5)
    ]
    np.testing.assert_array_equal(*map(result_of, outs))
    said = cli(
        "plan", "--in", volume, "--model", models["shallow"], "--overlap", "auto", "--overlap-tolerance", "1", "--json"
    )
    assert crop in [trial["candidate"] for trial in said.json["overlap_choice"]["trials"]]


# --- the receptive field ---


@pytest.mark.parametrize("name", share(["shallow", "valid", "deep"]))
def test_the_measured_receptive_field_is_the_computed_one(models, name):
    """Or a little less: rectifiers and poolings may let nothing of the very last voxel through."""
    model = open_model(models[name])
    measured = radius(open_backend("openvino", Setup(model, model.spec.window)))
    assert all(0.9 * c <= r <= c for r, c in zip(measured, model.spec.context, strict=True)), measured


def test_a_network_that_sees_its_whole_window_has_no_radius(tmp_path):
    model = open_model(network(tmp_path, window=32, norm="instance"))
    assert radius(open_backend("openvino", Setup(model, (32,) * 3))) is None


# --- bad input ---


def refused(*options, volume, model):
    overlap = [] if "--overlap" in options else ["--overlap", "auto"]
    said = cli("run", "--in", volume, "--model", model, "--out", "no.zarr", *overlap, *options)
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert not Path("no.zarr").exists()
    return said.code, said.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap-tolerance", "0"], "give more than 0"),
        (["--overlap-tolerance", "1.5"], "give at most 1"),
        (["--overlap-tolerance", "nan"], "--overlap-tolerance"),
        (["--blend", "constant"], "leave out --blend"),
        (["--overlap", "some"], "--overlap"),
        (["--overlap", "0.25", "--overlap-tolerance", "0.9"], "--overlap-tolerance is for --overlap auto"),
    ],
)
def test_options_that_make_no_sense(scene, options, message):
    code, error = refused(*options, volume=scene[0], model=scene[1])
    assert code == 2
    assert message in error


def test_a_volume_of_one_window(scene, tmp_path):
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32))
    code, error = refused(volume=volume, model=scene[1])
    assert code == 3
    assert "too small" in error
    assert "--overlap 0.5" in error


def test_a_volume_with_too_few_regions(scene, tmp_path):
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(0).normal(size=(16, 24, 40)).astype(np.float32))
    code, error = refused(volume=volume, model=scene[1])
    assert code == 3
    assert "2 region(s) of 16×16×16" in error


def test_regions_of_one_class(tmp_path):
    """The identity with sigmoid gives 1 wherever the voxel is positive: here everywhere."""
    model = fake_model(tmp_path, activation="sigmoid", context=[2, 2, 2])
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(0).integers(1, 9, (24, 24, 24)).astype(np.uint8))
    code, error = refused(volume=volume, model=model)
    assert code == 4
    assert "class 1 alone" in error


def test_a_network_whose_windows_agree_anyway(models, tmp_path):
    """Valid convolutions alone: the network sees what it loses, so every window gives the same for a voxel."""
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(0).normal(size=(80, 80, 80)).astype(np.float32))
    code, error = refused(volume=volume, model=models["valid"])
    assert code == 2
    assert "use --overlap 0" in error


def test_masked_out_regions_are_not_compared(tmp_path):
    """All that is left by the mask lies in the upper half along z, and so do the regions."""
    model = fake_model(tmp_path, activation="sigmoid", context=[2, 2, 2], empty=[-1.0])
    voxels = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", voxels)
    make_volume(tmp_path / "m.zarr", (np.arange(32) >= 16)[:, None, None].repeat(32, 1).repeat(32, 2).astype(np.uint8))
    said = cli("plan", "--in", volume, "--model", model, "--mask", tmp_path / "m.zarr", "--overlap", "auto", "--json")
    regions = said.json["overlap_choice"]["regions"]
    assert len(regions) >= 4
    assert all(int(text.split(",")[0].split(":")[1]) > 16 for text in regions)


def test_a_device_pipeline_chooses_too_and_writes_the_bytes_of_the_cpu(tmp_path):
    """The network itself is out of reach there, so regions are looked at through the pipeline."""
    noise = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", noise, chunks=(8, 8, 8))
    model = fake_model(tmp_path, activation="sigmoid")
    outs = {device: str(tmp_path / f"{device}.zarr") for device in ("cpu", "simulated")}
    options = {"overlap": "auto", "profile": str(tmp_path / "profile")}
    unet_engine.run(volume, model=model, out=outs["simulated"], device="simulated", **options)
    chosen = choice_in(outs["simulated"]).chosen
    assert chosen.overlap < 0.5
    unet_engine.run(volume, model=model, out=outs["cpu"], device="cpu", overlap=chosen.overlap, blend=chosen.blend)
    np.testing.assert_array_equal(result_of(outs["simulated"]), result_of(outs["cpu"]))
