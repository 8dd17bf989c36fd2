"""``--tiling``: windows spread evenly, named by hand or chosen by proof."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.shares import share
from support.untrained import untrained
from support.volumes import fake_model, make_volume, result_of
from unet_engine.prepare import tiling, tiling_larger, tiling_speed
from unet_engine.prepare.tiling_choice import Point, TilingChoice, frontier

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.usefixtures("two_cores")


@pytest.fixture
def plain(tmp_path):
    voxels = np.random.default_rng(0).normal(size=(20, 26, 30)).astype(np.float32)
    return make_volume(tmp_path / "scan.zarr", voxels), fake_model(tmp_path, activation="sigmoid")


# --- named by hand ---


def test_a_named_tiling_is_planned_as_it_says_and_is_part_of_the_identity(plain):
    plan = unet_engine.make_plan(plain[0], model=plain[1], tiling="8,12,16:4,4,4:crop")
    assert [[axis.start(k) for k in range(axis.count)] for axis in plan.axes] == [
        [0, 4, 8, 12], [0, 8, 14], [0, 8, 14],
    ]  # fmt: skip
    assert plan.identity["window"] == [8, 12, 16]
    assert plan.identity["shared"] == [4, 4, 4]
    others = [
        unet_engine.make_plan(plain[0], model=plain[1], **options).digest
        for options in ({}, {"tiling": "8,12,16:3,4,4:crop"}, {"tiling": "8,12,16:4,4,4:gaussian"})
    ]
    assert len({plan.digest, *others}) == 4


def test_parts_and_regions_of_a_named_tiling_give_the_bytes_of_the_whole(plain, tmp_path):
    options = {"model": plain[1], "tiling": "8,12,16:3,5,4:gaussian", "output": "logits"}
    whole = result_of(unet_engine.run(plain[0], out=str(tmp_path / "whole.zarr"), **options).out)
    region = unet_engine.run(plain[0], out=str(tmp_path / "roi.zarr"), roi="3:17,2:20,9:30", **options)
    np.testing.assert_array_equal(result_of(region.out), whole[..., 3:17, 2:20, 9:30])
    for part in ("2/3", "1/3", "3/3"):
        unet_engine.run(plain[0], out=str(tmp_path / "parts.zarr"), part=part, **options)
    np.testing.assert_array_equal(result_of(str(tmp_path / "parts.zarr")), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiling", "8,8,8"], "give window, voxels shared and blend"),
        (["--tiling", "8,8,8:2,2:crop"], "3 sizes and 2 that are shared"),
        (["--tiling", "8,8,8:8,2,2:crop"], "let them share less"),
        (["--tiling", "8,8,8:2,2,2:monai"], "give window, voxels shared and blend"),
        (["--tiling", "9,8,8:2,2,2:crop"], "takes 4 + k*4 voxels along z, not 9"),
        (["--tiling", "8,8,8:2,2,2:crop", "--overlap", "0.25"], "leave out --window, --overlap and --blend"),
        (["--tiling", "8,8,8:2,2,2:crop", "--window", "8,8,8"], "leave out --window, --overlap and --blend"),
        (["--tiling", "8,8,8:2,2,2:crop", "--blend", "crop"], "leave out --window, --overlap and --blend"),
    ],
)
def test_tilings_that_make_no_sense(plain, options, message):
    said = cli("run", "--in", plain[0], "--model", plain[1], "--out", "no.zarr", *options)
    assert said.code in (2, 5)
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert message in said.error
    assert not Path("no.zarr").exists()


def test_windows_that_lose_voxels_cannot_share_them(tmp_path):
    model = fake_model(tmp_path, margin=[1, 1, 1], activation="sigmoid")
    volume = make_volume(tmp_path / "v.zarr", np.ones((9, 9, 20), np.uint8))
    said = cli("plan", "--in", volume, "--model", model, "--tiling", "8,8,8:2,2,6:crop")
    assert said.code == 2
    assert "gives 6 voxels along x of windows of 8" in said.error


# --- chosen ---


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Smooth noise, and an untrained network that sees 9 voxels far in windows of 16: labels hang on where they end."""
    folder = tmp_path_factory.mktemp("tiling")
    noise = np.random.default_rng(0).normal(size=(48, 56, 60)).astype(np.float32)
    return make_volume(folder / "scan.zarr", noise, chunks=(16, 16, 16)), untrained(folder)


AUTO = {"tiling": "auto", "tiling_budget": 50}
AUTO_OPTIONS = ("--tiling", "auto", "--tiling-budget", 50)


@pytest.fixture(scope="module")
def done(scene, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("auto") / "out.zarr")
    said = cli(
        "run", "--in", scene[0], "--model", scene[1], "--out", out, "--tiling", "auto", "--tiling-budget", 50, "--json"
    )
    assert said.code == 0, said.err
    return out, said


def choice_in(out):
    return TilingChoice.model_validate(zarr.open_group(out, mode="r").attrs["unet_engine"]["tiling_choice"])


def named(choice):
    window, shared = (",".join(map(str, sizes)) for sizes in (choice.window, choice.shared))
    return f"{window}:{shared}:{choice.blend}"


def test_the_choice_is_cheaper_and_no_worse_than_the_models_own_on_the_whole_volume(scene, done, tmp_path):
    """Against the volume in one window, which the search never saw."""
    choice = choice_in(done[0])
    assert not choice.kept, choice.line
    assert choice.work < choice.work_of_default
    whole = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "w.zarr"), tiling="48,56,60:0,0,0:crop")
    half = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "h.zarr"))
    truth, ours, theirs = result_of(whole.out), result_of(done[0]), result_of(half.out)
    assert (ours == truth).mean() >= (theirs == truth).mean() - 1e-3
    assert choice.agreement == pytest.approx((ours == truth).mean(), abs=0.01)
    assert choice.learnt.bar_agreement == pytest.approx((theirs == truth).mean(), abs=0.01)


def test_the_work_it_promises_is_the_plans(scene, done):
    choice = choice_in(done[0])
    for how, work in ((named(choice), choice.work), (None, choice.work_of_default)):
        plan = unet_engine.make_plan(scene[0], model=scene[1], **({"tiling": how} if how else {}))
        assert plan.window_range.size * np.prod(plan.window_shape) / np.prod((48, 56, 60)) == pytest.approx(work)


def test_the_bytes_and_the_digest_are_those_of_the_tiling_it_names(scene, done, tmp_path):
    same = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "o.zarr"), tiling=named(choice_in(done[0])))
    np.testing.assert_array_equal(result_of(same.out), result_of(done[0]))
    assert same.digest == done[1].json["digest"]


def test_a_tiling_that_is_offered_several_times_is_told_once():
    said = {"shared": (0, 0, 8), "agreement": 0.99, "least_dice": 0.9, "passed": True}
    cheap, taken = Point(window=(8, 8, 8), work=1.1, **said), Point(window=(8, 8, 16), work=1.2, **said)
    assert frontier([taken, cheap, taken, taken], taken) == (cheap, taken)


def test_what_was_learnt_is_told_with_its_cost_and_frontier(done):
    choice = choice_in(done[0])
    assert TilingChoice.model_validate(done[1].json["tiling_choice"]) == choice
    told = " ".join(done[1].err.split())
    assert f"compute {choice.work:.2f} voxels for one instead of {choice.work_of_default:.2f}" in told
    assert f"looking took {choice.learnt.share:.1%} of such a run" in told
    works = [point.work for point in choice.frontier]
    assert works == sorted(works)
    assert sum("taken" in line for line in choice.table) == 1
    assert f"{choice.table[0].split()[0]} █" in told


def test_the_next_volume_of_the_kind_is_not_looked_at(scene, done, tmp_path, monkeypatch):
    """Of another shape: windows are fitted to it by what was learnt."""
    monkeypatch.setattr(tiling._Trier, "learn", lambda _: pytest.fail("looked again"))
    noise = np.random.default_rng(1).normal(size=(40, 90, 60)).astype(np.float32)
    other = make_volume(tmp_path / "other.zarr", noise, chunks=(16, 16, 16))
    said = cli("plan", "--in", other, "--model", scene[1], "--tiling", "auto", "--tiling-budget", 50, "--json")
    assert said.code == 0, said.err
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert not choice.searched
    assert choice.learnt == choice_in(done[0]).learnt
    assert "known from data of its kind" in choice.line


def test_what_was_learnt_with_more_is_taken_and_more_is_only_spent_if_asked(scene, done, monkeypatch):
    """Looking may have been allowed once: the next run need not allow it again."""
    monkeypatch.setattr(tiling._Trier, "learn", lambda _: pytest.fail("looked again"))
    plan = unet_engine.make_plan(scene[0], model=scene[1], tiling="auto")
    assert plan.digest == done[1].json["digest"]
    monkeypatch.setattr(tiling._Trier, "learn", _look)
    with pytest.raises(_LookedError):
        unet_engine.make_plan(scene[0], model=scene[1], tiling="auto", tiling_budget=51)


class _LookedError(Exception):
    pass


def _look(_):
    raise _LookedError


def test_data_of_another_kind_are_looked_at(scene, done, tmp_path, monkeypatch):
    monkeypatch.setattr(tiling._Trier, "learn", _look)
    noise = 9 + np.random.default_rng(1).normal(size=(48, 56, 60)).astype(np.float32)
    other = make_volume(tmp_path / "other.zarr", noise, chunks=(16, 16, 16))
    with pytest.raises(_LookedError):
        unet_engine.make_plan(other, model=scene[1], **AUTO)


@pytest.mark.parametrize("also", share([["--resume"], ["--part", "1/1"]]))
def test_who_goes_on_takes_the_stored_choice_and_searches_no_more(scene, done, tmp_path, monkeypatch, also):
    options = ["--in", scene[0], "--model", scene[1], "--tiling", "auto", "--tiling-budget", 50]
    out = str(tmp_path / "out.zarr")
    assert cli("run", *options, "--out", out, "--part", "1/2").code == 0
    monkeypatch.setattr(tiling, "search", lambda *_: pytest.fail("searched anew"))
    rest = cli("run", *options, "--out", out, *also)
    assert rest.code == 0, rest.err
    np.testing.assert_array_equal(result_of(out), result_of(done[0]))
    other = cli("run", *options, "--out", out, "--resume", "--tolerance", "0.9")
    assert other.code == 9
    assert "another --tolerance" in other.error


def test_a_region_gives_that_crop_of_the_whole(scene, done, tmp_path):
    part = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "r.zarr"), roi="3:20,0:17,9:40", **AUTO)
    np.testing.assert_array_equal(result_of(part.out), result_of(done[0])[3:20, 0:17, 9:40])


@pytest.mark.slow
def test_workers_of_a_cluster_take_the_same_choice(scene, done, tmp_path):
    out = str(tmp_path / "w.zarr")
    unet_engine.run(scene[0], model=scene[1], out=out, workers=2, dashboard="none", **AUTO)
    assert choice_in(out).window == choice_in(done[0]).window
    np.testing.assert_array_equal(result_of(out), result_of(done[0]))


def test_a_search_that_would_cost_too_much_is_not_begun(scene, tmp_path, monkeypatch):
    """Of a network whose graph tells nothing, either."""
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    model = untrained(tmp_path, norm="instance")
    said = cli("plan", "--in", scene[0], "--model", model, "--tiling", "auto", "--json")
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert "of the run, and 3% are allowed; see --tiling-budget" in choice.kept
    assert said.json["windows_planned"] == unet_engine.make_plan(scene[0], model=model).window_range.size
    strict = cli("plan", "--in", scene[0], "--model", model, "--tiling", "auto", "--strict")
    assert strict.code == 6
    assert "--tiling-budget" in strict.error


def test_what_the_graph_tells_costs_nothing_and_gives_the_labels_of_one_window(scene, tmp_path, monkeypatch):
    """On a volume that is too small to look at: every voxel has all its context."""
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    out = str(tmp_path / "out.zarr")
    said = cli("run", "--in", scene[0], "--model", scene[1], "--out", out, "--tiling", "auto", "--strict", "--json")
    assert said.code == 0, said.err
    choice = choice_in(out)
    assert not choice.kept
    assert choice.learnt is None
    assert choice.work < choice.work_of_default / 2
    assert "all the context that the network sees" in choice.line
    whole = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "w.zarr"), tiling="48,56,60:0,0,0:crop")
    np.testing.assert_array_equal(result_of(out), result_of(whole.out))


def test_the_search_stays_within_its_budget(scene, tmp_path, monkeypatch):
    for budget in (5, 2):
        monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / str(budget)))
        said = cli(
            "plan", "--in", scene[0], "--model", scene[1], "--tiling", "auto", "--tiling-budget", budget, "--json"
        )
        choice = TilingChoice.model_validate(said.json["tiling_choice"])
        assert choice.learnt.share <= budget


def test_nothing_reaches_a_bar_of_one(scene):
    said = cli("plan", "--in", scene[0], "--model", scene[1], "--tiling", "auto", "--tiling-budget", 50,
               "--tolerance", 1, "--json")  # fmt: skip
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    if choice.kept:
        assert "surely reaches the bar" in choice.kept
    else:  # a margin of what the network sees is exact
        assert choice.agreement == 1


def test_labels_decide_where_they_are_given(scene, tmp_path):
    """Labels that are what windows of 16 give at overlap 0.5: nothing else is as good."""
    half = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "h.zarr"))
    said = cli("plan", "--in", scene[0], "--model", scene[1], "--tiling", "auto", "--tiling-budget", 50,
               "--truth", half.out + "/0", "--json")  # fmt: skip
    assert said.code == 0, said.err
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert choice.learnt.truth
    assert choice.learnt.yardstick is None
    assert choice.learnt.bar_agreement == 1
    assert all(point.agreement < 1 for point in choice.frontier)


def test_larger_windows_than_were_looked_at_are_judged_by_labels_as_they_would_be_run(scene, tmp_path, monkeypatch):
    """Labels that are what one window over all gives: what was looked at holds up to twice 32³ voxels. A voxel takes as
    long in all windows."""
    monkeypatch.setattr(tiling_speed, "_nanoseconds", lambda *_: 1.0)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))  # which knows what windows took before
    whole = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "w.zarr"), tiling="48,56,60:0,0,0:crop")
    said = cli("plan", "--in", scene[0], "--model", scene[1], *AUTO_OPTIONS, "--truth", whole.out + "/0", "--json")
    assert said.code == 0, said.err
    assert "larger than those that were looked at, are judged by the labels" in said.err
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert choice.learnt.most == 2 * 32**3
    assert prod(choice.window) > choice.learnt.most
    assert choice.agreement > choice.learnt.bar_agreement


@pytest.mark.slow
def test_larger_windows_that_labels_speak_against_are_not_taken(scene, tmp_path, monkeypatch):
    """Network and labels are alike in windows of up to 32, and beyond that the labels are others."""
    whole = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "w.zarr"), tiling="48,56,60:0,0,0:crop")
    judged = tiling_larger.labels_of
    monkeypatch.setattr(tiling_larger, "labels_of", lambda *given: 1 - judged(*given))
    said = cli("plan", "--in", scene[0], "--model", scene[1], *AUTO_OPTIONS, "--truth", whole.out + "/0", "--json")
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert prod(choice.window) <= choice.learnt.most


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((48, 56, 59), np.uint8), "has the shape (48, 56, 59)"),
        (np.full((48, 56, 60), 2, np.uint8), "the network gives 0 to 1"),
        (np.zeros((48, 56, 60), np.float32), "give whole numbers"),
    ],
)
def test_labels_that_do_not_fit(scene, tmp_path, array, message):
    truth = make_volume(tmp_path / "t.zarr", array)
    said = cli(
        "plan", "--in", scene[0], "--model", scene[1], "--tiling", "auto", "--tiling-budget", 50, "--truth", truth
    )
    assert said.code == 3
    assert message in said.error


@pytest.mark.slow
def test_a_network_whose_statistics_follow_its_window_has_a_weaker_yardstick(tmp_path):
    noise = np.random.default_rng(0).normal(size=(40, 56, 60)).astype(np.float32)
    volume = make_volume(tmp_path / "v.zarr", noise, chunks=(16, 16, 16))
    said = cli("plan", "--in", volume, "--model", untrained(tmp_path, norm="instance"), "--tiling", "auto",
               "--tiling-budget", 50, "--tolerance", 0.5, "--json")  # fmt: skip
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert choice.learnt.weaker
    assert "less than sure, see --truth" in choice.line


@pytest.mark.slow
def test_outside_of_a_mask_nothing_is_compared(scene, tmp_path):
    """Only a part of the volume is meant, and what is written elsewhere is the background."""
    inside = np.zeros((48, 56, 60), np.uint8)
    inside[:, :, 8:52] = 1
    mask = make_volume(tmp_path / "m.zarr", inside)
    said = cli("plan", "--in", scene[0], "--model", scene[1], "--mask", mask, "--tiling", "auto",
               "--tiling-budget", 50, "--tolerance", 0.9, "--json")  # fmt: skip
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert choice.learnt.bar_agreement > 0.9


def test_a_device_pipeline_chooses_too(tmp_path):
    """The identity network: everything agrees, so the fewest voxels are taken."""
    noise = np.random.default_rng(0).normal(size=(24, 40, 40)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", noise)
    model = fake_model(tmp_path, activation="sigmoid", context=[2, 2, 2])
    plans = [unet_engine.make_plan(volume, model=model, device=device, **AUTO) for device in ("simulated", "cpu")]
    assert plans[0].identity["shared"] == plans[1].identity["shared"] == [0, 0, 0]


def test_a_network_of_planes_over_a_volume(tmp_path):
    """The first and the last plane too: regions lie in single planes."""
    noise = np.random.default_rng(0).normal(size=(3, 60, 60)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", noise)
    model = fake_model(tmp_path, axes="yx", activation="sigmoid", context=[2, 2])
    plan = unet_engine.make_plan(volume, model=model, **AUTO)
    assert plan.identity["shared"] == [0, 0]
    assert plan.window_range.shape[0] == 3


def test_a_network_that_loses_voxels_at_each_side(tmp_path):
    noise = np.random.default_rng(0).normal(size=(30, 44, 44)).astype(np.float32)
    volume = make_volume(tmp_path / "scan.zarr", noise)
    model = fake_model(tmp_path, margin=[1, 1, 1], activation="sigmoid")  # nothing tells how far it sees
    said = cli("plan", "--in", volume, "--model", model, "--tiling", "auto", "--tiling-budget", 50, "--threads", 1,
               "--json")  # fmt: skip
    assert said.code == 0, said.err
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert choice.shared == (0, 0, 0)
    assert choice.agreement == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tiling", "auto", "--overlap", "auto"], "leave out --overlap and --blend"),
        (["--tiling", "auto", "--blend", "crop"], "leave out --overlap and --blend"),
        (["--tolerance", "0.9"], "--tolerance is for --tiling auto"),
        (["--truth", "x.zarr"], "--truth is for --tiling auto"),
        (["--tiling", "auto", "--tiling-budget", "0"], "--tiling-budget"),
        (["--tiling", "auto", "--tolerance", "1.5"], "--tolerance"),
    ],
)
def test_options_that_make_no_sense(scene, options, message):
    said = cli("run", "--in", scene[0], "--model", scene[1], "--out", "no.zarr", *options)
    assert said.code == 2
    assert message in said.error
    assert not Path("no.zarr").exists()
