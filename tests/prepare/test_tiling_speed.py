"""``--tiling auto`` takes what is fastest: what a voxel takes in windows of other sizes is timed beside the model's
own."""

import numpy as np
import pytest

from support.command_line import cli
from support.untrained import untrained
from support.volumes import make_volume, result_of
from unet_engine.prepare import tiling_speed
from unet_engine.prepare.tiling_choice import Point, TilingChoice
from unet_engine.prepare.tiling_speed import APART, Race, Speeds

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.usefixtures("two_cores")

OWN = (16, 16, 16)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    noise = np.random.default_rng(0).normal(size=(32, 40, 48)).astype(np.float32)
    return make_volume(folder / "scan.zarr", noise, chunks=(16, 16, 16)), untrained(folder)


@pytest.fixture(autouse=True)
def nothing_known(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def took(monkeypatch):
    """A function of the window that says how long a voxel takes in it, and the windows that were timed, in turn."""
    order = []

    def pretend(nanoseconds):
        def measured(host, _):
            order.append(tuple(host.setup.window))
            return nanoseconds(tuple(host.setup.window))

        monkeypatch.setattr(tiling_speed, "_nanoseconds", measured)
        return order

    return pretend


def plan(scene, *options, budget=400, code=0):
    said = cli("plan", "--in", scene[0], "--model", scene[1], "--tiling", "auto", "--tiling-budget", budget,
               "--tolerance", 0.5, "--json", *options)  # fmt: skip
    assert said.code == code, said.err
    return said, said.json and TilingChoice.model_validate(said.json["tiling_choice"])


def test_what_takes_longer_than_the_models_own_tiling_is_never_taken(scene, took):
    """However few voxels it computes; and that is no fallback."""
    took(lambda window: 1.0 if window == OWN else 1000.0)
    said, choice = plan(scene, "--threads", 1, "--strict")
    assert choice.window == OWN
    if choice.kept:  # else windows of that size that share less
        assert choice.settled
        assert "are next, and take" in choice.kept
        assert choice.kept in " ".join(said.json["notes"])


def test_the_models_own_windows_are_timed_in_turn_with_each(scene, took):
    order = took(lambda _: 1.0)
    _, choice = plan(scene)
    assert choice.timed[0].window == OWN
    assert set(order) == {entry.window for entry in choice.timed}
    assert order[::2] == [OWN] * (len(order) // 2)
    assert OWN not in order[1::2]
    assert all(entry.beside == 1.0 for entry in choice.timed)


def test_a_size_that_is_slow_is_not_taken(scene, took, tmp_path, monkeypatch):
    took(lambda _: 1.0)
    _, first = plan(scene)
    assert f"in {first.lasts:.2f} of the time" in first.line
    assert first.lasts < 0.5
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "other"))
    took(lambda window: 3.0 if window == first.window else 1.0)
    _, second = plan(scene)
    assert second.window != first.window
    assert second.settled if second.kept else second.lasts < 1


def test_what_was_timed_is_known_to_the_next_and_timed_again_beside_other_windows(scene, took):
    order = took(lambda _: 1.0)
    _, first = plan(scene)
    count = len(order)
    _, again = plan(scene)
    assert len(order) == count
    assert again.timed == first.timed
    assert again.window == first.window


def test_without_the_means_to_time_what_computes_far_less_is_taken_alone(scene, took):
    """Nothing is timed for so little; windows that compute a sixth are taken all the same."""
    order = took(lambda _: pytest.fail("timed"))
    _, choice = plan(scene, budget=0.001)
    assert order == []
    assert choice.lasts is None
    assert choice.kept or choice.work * APART < choice.work_of_default


def test_where_little_would_be_spared_it_is_timed_or_left(tmp_path, took):
    """Two windows for three: 1.33 instead of 2 voxels for one, by what the graph tells."""
    model = untrained(tmp_path, window=32)
    noise = np.random.default_rng(0).normal(size=(32, 32, 48)).astype(np.float32)
    scene = make_volume(tmp_path / "scan.zarr", noise, chunks=(16, 16, 16)), model
    took(lambda _: pytest.fail("timed"))
    _, choice = plan(scene, "--threads", 1, "--memory", "4GiB", "--strict", budget=0.001)
    if choice.kept:
        assert choice.settled
        assert "--tiling-budget" in choice.kept or "computes less" in choice.kept
    else:
        assert choice.work * APART < choice.work_of_default


def test_windows_are_really_timed(scene, tmp_path):
    out = str(tmp_path / "out.zarr")
    said = cli("run", "--in", scene[0], "--model", scene[1], "--out", out, "--tiling", "auto", "--tiling-budget", 400,
               "--json")  # fmt: skip
    choice = TilingChoice.model_validate(said.json["tiling_choice"])
    assert len(choice.timed) >= 2
    assert all(entry.nanoseconds > 0 and entry.beside > 0 for entry in choice.timed)
    assert choice.proving > 0
    assert result_of(out).shape == (32, 40, 48)


def test_what_was_timed_for_others_does_not_change_the_choice_for_a_volume(scene, took):
    """For want of budget nothing is timed; then another run times all, and the first one is repeated."""
    took(lambda window: 1.0 if window == OWN else 1000.0)
    _, first = plan(scene, budget=0.001)
    assert first.timed == ()
    _, other = plan(scene)
    assert other.timed
    assert other.window != first.window
    _, again = plan(scene, budget=0.001)
    assert again.window == first.window
    assert again.timed == ()


# --- alone ---


def point(window, lasts):
    return Point(window=window, shared=(0,) * len(window), work=lasts, agreement=1.0, least_dice=1.0, passed=True)


def test_time_is_work_by_speed():
    fast, few, unknown = point((8,), 2.0), point((16,), 1.5), point((32,), 1.2)
    speeds = Speeds({(8,): 0.5, (16,): 1.0})
    assert speeds.ranked([unknown, few, fast], own=2.0) == [fast, few, unknown]
    assert speeds.ranked([few], own=1.5) == []
    assert speeds.ranked([unknown], own=1.2 * APART) == []


def test_rounds_follow_the_budget_and_cost_is_what_is_computed():
    race = Race((4, 4), 2, {}, None, None)
    assert race.cost((8, 8), 3) == 4 * 2 * (64 + 16)
    for budget, rounds in ((1e9, 3), (race.cost((8, 8), 2), 2), (0, 1)):
        assert race.rounds([(8, 8)], budget) == rounds
