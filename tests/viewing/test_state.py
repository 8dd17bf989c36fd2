"""The state of the viewer: where one looks, which way up, and back."""

import itertools

import numpy as np
import pytest

from support.volumes import make_volume
from unet_engine.viewing import state
from unet_engine.viewing.panes import pane_of, together

VOXELS = np.random.default_rng(0).integers(1, 200, (20, 22, 24), np.uint8)


@pytest.fixture
def pane(tmp_path):
    return pane_of(
        make_volume(tmp_path / "v.zarr", VOXELS, ome="0.5", axes="zyx", scale=(2.0, 1.0, 1.0), unit="micrometer")
    )


def test_one_looks_at_the_middle_of_all_of_it_in_its_own_units(pane):
    first = state.first([pane])
    assert list(first["dimensions"]) == ["x", "y", "z"]
    assert first["dimensions"]["z"] == [pytest.approx(2e-6), "m"]
    assert first["position"] == [12.5, 11.5, 10.5]
    assert first["layout"] == "4panel"
    assert not first["prefetch"]
    assert first["crossSectionScale"] == pytest.approx(24 / state.PIXELS)


def test_of_a_large_volume_without_levels_one_sees_a_part_and_of_one_with_levels_all(pane):
    class Large:
        def __init__(self, coarsest):
            self.spacing, self.known, self.place, self.volume = (1.0,) * 3, False, pane.place, self
            self.shape, self.spatial, self.levels, self.coarsest = (10240,) * 3, "zyx", self, coarsest

    assert state.first([Large(128)])["crossSectionScale"] == 4
    assert state.first([Large(128 * 64**3)])["crossSectionScale"] == pytest.approx(10240 / state.PIXELS)


def test_a_single_plane_is_shown_as_one(tmp_path):
    single = pane_of(make_volume(tmp_path / "one.zarr", VOXELS[:1]))
    assert state.first([single])["layout"] == "xy"


LYING = [
    "".join(names)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for names in itertools.product(*axes)
]  # fmt: skip


@pytest.mark.parametrize("named", LYING)
def test_front_and_head_of_a_body_are_up_however_its_voxels_lie(named):
    """named: where voxels' z, y and x point. A plane across the body has its back down and its feet behind; the picture
    of depth is seen from the front."""
    for down, away, found in (("P", "I", state._turned(named, "P", "I")), ("I", "P", state._turned(named, "I", "P"))):
        turn = state._rotation(found)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(turn) == pytest.approx(1)
        for screen, wanted in ((1, down), (2, away)):
            axis = int(np.argmax(np.abs(turn[:, screen])))
            pointing = named[2 - axis] if turn[axis, screen] > 0 else state._BACK.get(named[2 - axis])
            assert pointing == wanted


def shown(pane, **changed):
    return {**state.first([pane]), "position": [3.5, 4.25, 5.5], **changed}


IDENTITY = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0))


@pytest.mark.parametrize(
    ("layout", "planes"),
    [("4panel", {0, 1, 2}), ("xy", {0}), ("xz-3d", {1}), ({"type": "yz"}, {2}), ("3d", set()), (None, set())],
)
def test_planes_that_are_shown(pane, layout, planes):
    sight = state.sight(shown(pane, layout=layout), pane, IDENTITY)
    assert sight.at == pytest.approx((5.5, 4.25, 3.5))
    assert set(sight.planes) == planes


def test_planes_of_turned_views(pane):
    flipped = state.sight(shown(pane, layout="xy", crossSectionOrientation=[1, 0, 0, 0]), pane, IDENTITY)
    assert flipped.planes == (0,)
    half = 0.5**0.5
    tipped = state.sight(shown(pane, layout="xy", crossSectionOrientation=[half, 0, 0, half]), pane, IDENTITY)
    assert tipped.planes == (1,)
    oblique = state.sight(shown(pane, layout="xy", crossSectionOrientation=[0.3, 0, 0, 0.9539]), pane, IDENTITY)
    assert oblique.planes == ()


def test_where_people_look_is_told_in_voxels_of_the_pane_that_is_asked(pane):
    matrix = ((2.0, 0, 0, 1.0), (0, 2.0, 0, -3.0), (0, 0, 1.0, 4.0))
    for middle in [(0.0, 0.0, 0.0), (3.0, 5.0, 7.0)]:
        at = np.asarray(matrix)[:, :3] @ middle + np.asarray(matrix)[:, 3] + 0.5
        sight = state.sight(shown(pane, position=list(at[::-1])), pane, matrix)
        assert sight.at == pytest.approx(np.array(middle) + 0.5)


def test_a_state_that_says_nothing_is_no_sight(pane):
    for changed in ({"position": None}, {"position": [1.0]}, {"dimensions": {}}, {"position": "x"}):
        assert state.sight(shown(pane, **changed), pane, IDENTITY) is None


def test_a_picture_in_colours_and_numbers_in_grey(tmp_path):
    rgb = pane_of(make_volume(tmp_path / "rgb.zarr", np.stack([VOXELS[0]] * 3), axes="cyx"))
    assert "emitRGB" in state.shader(rgb)
    assert state.layer(rgb, "u", together([rgb])[0])["type"] == "image"
    grey = pane_of(make_volume(tmp_path / "g.zarr", VOXELS.astype(np.float32)))
    low, high = grey.contrast
    assert f"range=[{low:.9g}, {high:.9g}]" in state.shader(grey)


def test_names_of_labels():
    said = state.properties({1: "cell", 7: "wall"})
    assert said["inline"]["ids"] == ["1", "7"]
    assert said["inline"]["properties"][0]["values"] == ["cell", "wall"]
