"""``--coarse auto``: background is written where a coarse pass proves that there is nothing else."""

import pickle

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.backends.answered import Answered
from unet_engine.plan.box import Box
from unet_engine.plan.grid import AxisGrid
from unet_engine.prepare import coarse, coarse_sample
from unet_engine.prepare.coarse_choice import MISS, CoarseChoice
from unet_engine.prepare.draft import Draft
from unet_engine.prepare.missed import LOOKS, Region, hopeless
from unet_engine.prepare.survey import survey
from unet_engine.settings.settings import Settings
from unet_engine.volumes.coarse import Coarse

pytestmark = pytest.mark.long

SHAPE = (40, 96, 104)


def blobs(seed=0, count=5, shape=SHAPE):
    """Balls of 4 in −4: what the identity network labels is what is above 0."""
    rng = np.random.default_rng(seed)
    voxels = np.full(shape, -4, np.float32)
    grid = np.indices(shape)
    for _ in range(count):
        middle = [rng.integers(8, n - 8) for n in shape]
        near = sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True)) < 36
        voxels[near] = 4
    return voxels


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coarse")
    return make_volume(folder / "scan.zarr", blobs(), chunks=(16, 16, 16)), fake_model(folder, activation="sigmoid")


AUTO = {"coarse": "auto", "coarse_miss": 0.3, "coarse_budget": 3.0, "overlap": 0.25}
OPTIONS = ("--coarse", "auto", "--coarse-miss", 0.3, "--coarse-budget", 3, "--overlap", 0.25)


@pytest.fixture(scope="module")
def plain(scene, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("plain") / "out.zarr")
    return result_of(unet_engine.run(scene[0], model=scene[1], out=out, overlap=0.25).out)


@pytest.fixture(scope="module")
def done(scene, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("auto") / "out.zarr")
    said = cli("run", "--in", scene[0], "--model", scene[1], "--out", out, *OPTIONS, "--json")
    assert said.code == 0, said.err
    return out, said


def test_what_regions_gave_is_taken_up_and_not_inferred_again(scene, plain, tmp_path, monkeypatch):
    known, knows = [], Answered.knows
    monkeypatch.setattr(Answered, "knows", lambda self, slot: known.append(knows(self, slot)) or known[-1])
    found = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "o.zarr"), **{**AUTO, "blend": "crop"})
    np.testing.assert_array_equal(result_of(found.out), plain)
    choice, taken = choice_in(found.out), sum(known)
    assert choice.left < 1
    assert 0 < taken <= len(choice.regions)
    assert len(known) >= found.windows_inferred + len(choice.regions)


def choice_in(out):
    return CoarseChoice.model_validate(zarr.open_group(out, mode="r").attrs["unet_engine"]["coarse_choice"])


def test_labels_are_those_of_a_run_that_skips_nothing_and_most_is_skipped(scene, done, plain):
    choice = choice_in(done[0])
    assert not choice.kept, choice.line
    assert choice.left < 0.5
    assert choice.bound <= choice.target
    np.testing.assert_array_equal(result_of(done[0]), plain)
    assert plain.any()
    assert done[1].json["windows_skipped"] > done[1].json["windows_inferred"]


def test_it_is_told_with_its_confidence_and_cost(done):
    choice, told = choice_in(done[0]), " ".join(done[1].err.split())
    assert f"at most {choice.bound:.2g} are missed, at 95% confidence, by {choice.proving} regions" in told
    assert done[1].json["coarse_choice"]["bound"] == choice.bound
    assert "mask" not in done[1].json["coarse_choice"]
    assert 0 < choice.share <= 3


def test_voxels_outside_of_what_is_looked_at_are_background(scene, done, tmp_path):
    inside = choice_in(done[0]).inside.inside.copy()
    assert inside.any()
    assert not inside.all()
    cells = choice_in(done[0]).inside
    whole = cells.read(Box.of_shape(SHAPE))
    assert not result_of(done[0])[~whole].any()
    box = Box((3, 7, 9), (30, 60, 77))
    np.testing.assert_array_equal(cells.read(box), whole[box.slices()])
    assert cells.may_hold(box) == whole[box.slices()].any()
    assert len(pickle.dumps(cells)) < len(cells.packed) + 200


@pytest.mark.parametrize("also", share([["--resume"], ["--part", "1/1"]]))
def test_who_goes_on_takes_what_was_found_and_looks_no_more(scene, done, tmp_path, monkeypatch, also):
    options = ["--in", scene[0], "--model", scene[1], *OPTIONS]
    out = str(tmp_path / "out.zarr")
    assert cli("run", *options, "--out", out, "--part", "1/2").code == 0
    monkeypatch.setattr(coarse, "search", lambda *_: pytest.fail("looked anew"))
    rest = cli("run", *options, "--out", out, *also)
    assert rest.code == 0, rest.err
    np.testing.assert_array_equal(result_of(out), result_of(done[0]))
    other = cli(
        "run", *options[:4], "--coarse", "auto", "--coarse-miss", "0.1", "--overlap", 0.25, "--out", out, "--resume"
    )
    assert other.code == 9, other.err
    assert "--coarse-miss" in other.error


def test_another_rate_or_none_is_another_run(scene, done):
    digests = {unet_engine.make_plan(scene[0], model=scene[1], **o).digest for o in (AUTO, {"overlap": 0.25})}
    assert len(digests) == 2
    assert done[1].json["digest"] in digests


def test_a_region_gives_that_crop_of_the_whole(scene, done, tmp_path):
    part = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "r.zarr"), roi="3:20,0:57,9:90", **AUTO)
    np.testing.assert_array_equal(result_of(part.out), result_of(done[0])[3:20, 0:57, 9:90])


@pytest.mark.slow
def test_workers_of_a_cluster_give_the_same_bytes(scene, done, tmp_path):
    out = str(tmp_path / "w.zarr")
    unet_engine.run(scene[0], model=scene[1], out=out, workers=2, dashboard="none", **AUTO)
    np.testing.assert_array_equal(result_of(out), result_of(done[0]))


def test_a_device_pipeline_gives_the_same_bytes(scene, done, tmp_path):
    out = str(tmp_path / "d.zarr")
    unet_engine.run(scene[0], model=scene[1], out=out, device="simulated", **AUTO)
    np.testing.assert_array_equal(result_of(out), result_of(done[0]))


@pytest.mark.slow
def test_with_a_mask_both_count(scene, done, tmp_path):
    inside = np.zeros(SHAPE, np.uint8)
    inside[:, :60] = 1
    mask = make_volume(tmp_path / "m.zarr", inside)
    result = unet_engine.run(scene[0], model=scene[1], out=str(tmp_path / "o.zarr"), mask=mask, **AUTO)
    np.testing.assert_array_equal(result_of(result.out), result_of(done[0]) * inside)


def test_foreground_that_the_coarse_pass_does_not_see_is_not_skipped(tmp_path):
    """Single voxels drown in the mean of what lies around them: too much would be missed, so nothing is."""
    rng = np.random.default_rng(0)
    voxels = np.full(SHAPE, -4, np.float32)
    voxels[rng.random(SHAPE) < 0.002] = 4
    voxels[blobs(count=1) > 0] = 4
    scan, model = make_volume(tmp_path / "s.zarr", voxels), fake_model(tmp_path, activation="sigmoid")
    said = cli("run", "--in", scan, "--model", model, "--out", tmp_path / "o.zarr", *OPTIONS, "--json")
    assert said.code == 0, said.err
    np.testing.assert_array_equal(result_of(str(tmp_path / "o.zarr")), voxels > 0)


def test_where_nothing_is_proved_nothing_is_skipped_and_strict_refuses(scene, plain, tmp_path):
    options = ["--in", scene[0], "--model", scene[1], "--overlap", 0.25, "--coarse", "auto", "--coarse-budget", 3]
    said = cli("run", *options, "--out", tmp_path / "o.zarr", "--json")
    assert said.code == 0, said.err
    choice = CoarseChoice.model_validate(said.json["coarse_choice"])
    assert "might be missed at 95% confidence" in choice.kept
    assert said.json["digest"] == unet_engine.make_plan(scene[0], model=scene[1], overlap=0.25).digest
    np.testing.assert_array_equal(result_of(str(tmp_path / "o.zarr")), plain)
    strict = cli("run", *options, "--out", tmp_path / "s.zarr", "--strict")
    assert strict.code == 6
    assert "--coarse-budget" in strict.error


NO_WINDOWS = np.zeros((2, 2), np.uint16)


class Drawn(coarse_sample.Sample):
    """Regions whose cells are known."""

    def __init__(self, regions, windows=NO_WINDOWS):
        super().__init__(None, None, regions, None, (), 0, windows)

    def take(self, count):
        self.found += self.boxes[len(self.found) : len(self.found) + count]


def drawn(count, cells=30, missed=0, score=200):
    """Regions of cells that score `score`, of which each has so many that score 1."""
    scores = np.array([1] * missed + [score] * (cells - missed), np.int64)
    return Drawn([Region(np.full(cells, 7, np.int64), scores)] * count)


def test_no_more_regions_are_computed_than_prove_it():
    sample = drawn(1000)
    threshold, rated = coarse_sample.proved(sample, 0.001, 30, 1.0, lambda _: None)
    assert threshold == 200
    assert rated.bound == 0.001
    assert LOOKS[0].needed(0.001) <= 30 * len(sample.found) < LOOKS[0].needed(0.001) + 30 * 2 * coarse_sample.FEWEST


def test_what_the_coarse_pass_expects_decides_how_many_are_computed_at_a_time_and_not_what_is_proved():
    for likely in (0, 1, 100):
        sample = drawn(1000)
        assert coarse_sample.proved(sample, 0.001, likely, 1.0, lambda _: None)[1].bound == 0.001
        assert len(sample.found) <= 2 * LOOKS[0].needed(0.001) / 30


def test_where_the_first_look_proves_nothing_more_are_computed():
    sample = Drawn([Region(np.full(30, 7, np.int64), np.full(30, s, np.int64)) for s in [0, *[200] * 999]])
    rated = coarse_sample.proved(sample, 0.01, 30, 1.0, lambda _: None)[1]
    assert rated.bound > 0.01, "a region that is missed as a whole says that there are more of these"
    assert len(sample.found) * 30 >= LOOKS[1].needed(0.01)
    few = drawn(30)
    assert coarse_sample.proved(few, 0.001, 30, 1.0, lambda _: None)[1].bound > 0.001
    assert len(few.found) == 30, "all that the budget allows"


def test_what_the_coarse_pass_does_not_see_at_all_is_given_up():
    sample = Drawn([Region(np.full(30, 7, np.int64), np.r_[np.zeros(10, np.int64), np.full(20, 200)])] * 1000)
    assert coarse_sample.proved(sample, 0.001, 30, 1.0, lambda _: None)[1].bound > 0.001
    assert len(sample.found) == coarse_sample.LEAST
    assert not hopeless(drawn(8, missed=1).boxes, 0.03)


def test_a_threshold_that_spares_more_than_it_costs_to_prove_is_waited_for():
    """One cell that is missed keeps the first look from leaving out half of the windows."""
    voxels, sure = np.full(510, 7, np.int64), np.full(510, 200)
    regions = [Region(voxels, np.r_[sure[1:], 100]), *[Region(voxels, sure)] * 999]
    scores = np.array([[150] * 50, [250] * 50], np.uint16)
    found = []
    for cost in (0.001, 1000.0):
        sample = Drawn(regions, scores)
        found.append(coarse_sample.proved(sample, 0.001, 500, cost, lambda _: None)[0])
    assert found == [200, 100]


def test_a_window_scores_what_the_best_of_its_cells_does():
    scores = np.arange(12, dtype=np.uint16).reshape(3, 4)
    best = coarse_sample.best(scores, [[(0, 8), (8, 20)], [(0, 9), (9, 16), (16, 32)]], (8, 8))
    np.testing.assert_array_equal(best, [[1, 1, 3], [9, 9, 11]])


@pytest.mark.parametrize("blend", ["crop", "gaussian"])
def test_what_is_computed_anyway_is_kept(blend):
    """Cells all of whose windows are inferred: those of windows that are needed, and these need no others."""
    axes, cell = [AxisGrid(100, 32, 24, 0, blend), AxisGrid(70, 32, 20, 0, blend)], (8, 4)
    scores = np.random.default_rng(0).integers(0, 100, (13, 18)).astype(np.uint16)
    spans = [[axis.support(k) for k in range(axis.count)] for axis in axes]
    windows = coarse_sample.best(scores, spans, cell)
    for threshold in (93, 97, 99):
        kept = coarse_sample.closed(windows >= threshold, axes, cell)
        assert kept.shape == scores.shape
        assert not (~kept & (scores >= threshold)).any()
        assert kept.sum() > (scores >= threshold).sum()
        np.testing.assert_array_equal(coarse_sample.best(kept, spans, cell), windows >= threshold)


def test_as_many_regions_are_computed_at_a_time_as_go_through_a_network_at_once():
    assert {coarse_sample._next(m, 3, 100, 500) % coarse_sample.FEWEST for m in range(100)} == {0}


def test_where_foreground_is_sure_next_to_a_cell_its_own_score_counts():
    alone = np.zeros((5, 5), np.uint8)
    alone[2, 2], alone[2, 3] = 255, 40
    scores = coarse._ranked(alone)
    assert scores[2, 2] == 510
    assert scores[2, 3] == 295
    assert scores[1, 1] == 255
    assert scores[2, 4] == 40
    assert scores[0, 0] == 0


def test_a_look_that_would_cost_too_much_is_not_begun(scene):
    said = cli("plan", "--in", scene[0], "--model", scene[1], "--coarse", "auto", "--coarse-budget", "0.01", "--json")
    assert "of the run, and 1% are allowed; see --coarse-budget" in said.json["coarse_choice"]["kept"]


@pytest.mark.slow
def test_poses_cost_the_run_as_much_as_the_look(scene):
    options = ["--in", scene[0], "--model", scene[1], *OPTIONS[:-4], "--coarse-budget", 0.9, "--overlap", 0.25]
    one, eight = (cli("plan", *options, *tta, "--json").json["coarse_choice"] for tta in ([], ["--tta", "mirror:zyx"]))
    assert len(eight["regions"]) >= len(one["regions"]) >= 8
    assert eight["share"] <= 0.9


def test_regions_of_huge_volumes_are_drawn_from_everywhere():
    for count in (1000, 2**24, 2**40):
        drawn = coarse_sample.drawn(count)
        assert len(np.unique(drawn)) == len(drawn) == min(count, coarse_sample.DRAWN)
        assert 0 <= drawn.min() <= drawn.max() < count
        assert 0.4 < drawn[:256].mean() / count < 0.6


def test_a_volume_without_foreground_tells_nothing(tmp_path):
    scan = make_volume(tmp_path / "s.zarr", np.full(SHAPE, -4, np.float32))
    said = cli("plan", "--in", scan, "--model", fake_model(tmp_path, activation="sigmoid"), *OPTIONS, "--json")
    assert "no region that was computed has foreground" in said.json["coarse_choice"]["kept"]


def test_a_network_of_planes_over_a_volume(tmp_path):
    voxels = blobs()
    scan, model = make_volume(tmp_path / "s.zarr", voxels), fake_model(tmp_path, axes="yx", activation="sigmoid")
    result = unet_engine.run(scan, model=model, out=str(tmp_path / "o.zarr"), **AUTO)
    np.testing.assert_array_equal(result_of(result.out), voxels > 0)
    assert choice_in(result.out).cell[0] == 1
    assert result.windows_skipped > result.windows_inferred


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coarse", "auto", "--output", "logits"], "--coarse auto proves labels"),
        (["--coarse", "auto", "--outside", "3"], "leave out --outside"),
        (["--coarse-miss", "0.1"], "--coarse-miss is for --coarse auto"),
        (["--coarse-budget", "0.1"], "--coarse-budget is for --coarse auto"),
        (["--coarse", "auto", "--coarse-miss", "0"], "--coarse-miss"),
        (["--coarse", "yes"], "--coarse"),
    ],
)
def test_options_that_make_no_sense(scene, options, message):
    said = cli("run", "--in", scene[0], "--model", scene[1], "--out", "no.zarr", *options)
    assert said.code == 2
    assert message in said.error


@pytest.mark.parametrize(("activation", "empty"), share([("sigmoid", [-4.0]), ("softmax", [4.0, -4.0])]))
def test_a_model_that_says_what_nothing_gives_finds_its_background_by_it(tmp_path, activation, empty):
    """The first channel is what there is, negated: background is where it wins."""
    voxels = blobs()[None] if len(empty) == 1 else np.stack([-blobs(), blobs()])
    scan = make_volume(tmp_path / "s.zarr", voxels, axes="czyx", chunks=(1, 16, 16, 16))
    model = fake_model(
        tmp_path, activation=activation, empty=empty, channels_in=len(empty), channels_out=len(empty),
        background=-9.0, classes=["nothing", "ball"],
    )  # fmt: skip
    said = cli("run", "--in", scan, "--model", model, "--out", tmp_path / "o.zarr", *OPTIONS, "--json")
    assert said.code == 0, said.err
    choice = choice_in(str(tmp_path / "o.zarr"))
    assert choice.background == "nothing"
    assert not choice.kept
    found, balls = result_of(str(tmp_path / "o.zarr")) != 0, blobs() > 0
    assert not (found & ~balls).any()
    assert found.sum() >= (1 - choice.target) * balls.sum()


def test_as_many_regions_may_be_drawn_as_a_sparse_volume_in_3d_needs():
    """Windows of 64³ that share 16 have 48³ voxels of their own; one cell of twenty has foreground."""
    cells = (48 // (coarse.CELL * coarse.FACTOR)) ** 3 * 0.05
    assert coarse_sample.MOST_REGIONS * cells > 2 * LOOKS[-1].needed(MISS)


def test_windows_of_the_coarse_pass_fit_it(tmp_path):
    """128 voxels in windows of 64 that share 8 take three along an axis, the last moved back; of 72, two."""
    scan = make_volume(tmp_path / "s.zarr", np.zeros((512, 512), np.float32), chunks=(512, 512))
    model = fake_model(
        tmp_path, axes="yx", window=(64, 64), window_min=(16, 16), window_step=(8, 8), activation="sigmoid"
    )
    found = survey(Settings(input=scan, model=model, out=str(tmp_path / "o.zarr"), coarse="auto"))
    tiling = coarse._tiling(Draft(found, None, None, ""), Coarse(found.volume, (4, 4)))
    assert tiling.window == (72, 72)
    assert coarse._tiling(Draft(found, None, None, ""), Coarse(found.volume, (8, 8))).window == (64, 64)
