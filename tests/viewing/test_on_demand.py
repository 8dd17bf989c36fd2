"""Blocks that are computed because somebody looks are those of any run: same bytes, counted as done, the rest left."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest

import unet_engine
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.api import run_volume
from unet_engine.errors import OutputError
from unet_engine.output.header import Header, read_header
from unet_engine.plan.box import Box
from unet_engine.settings.settings import Settings
from unet_engine.viewing import demand as demands
from unet_engine.viewing import on_demand
from unet_engine.viewing.demand import Sight
from unet_engine.viewing.on_demand import Closed, OnDemandTeam

CLASSES = {"channels_in": 2, "channels_out": 2, "activation": "softmax"}
WHOLE = Box((0, 0, 0), (40, 36, 44))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(demands, "SETTLING", 0.0)
    monkeypatch.setattr(on_demand, "PATIENCE", 0.01)


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(1).normal(size=(2, *WHOLE.hi)).astype(np.float32)
    return make_volume(tmp_path / "scan.zarr", voxels, axes="czyx")


class Looking:
    """A viewer whose user asks for some pieces and closes it after so many blocks."""

    def __init__(self, asked, close_after=None, at=None):
        self.asked, self.close_after, self.at = asked, close_after, at
        self.told, self.computed, self.previews = [], 0, None

    @contextmanager
    def __call__(self, prepared, demand, previews):
        self.prepared, self.demand, self.previews = prepared, demand, previews
        demand.look(self.sight())
        for box in self.asked:
            demand.ask(box, (1,) * box.ndim)
        if demand.next(0) is None:
            raise KeyboardInterrupt
        yield self

    def sight(self):
        return self.at

    def changed(self):
        self.seen = self.previews.over

    def say(self, text):
        self.told.append(text)
        self.computed = self.demand.done
        if self.computed == self.close_after or (self.computed and self.demand.next(0) is None):
            raise KeyboardInterrupt


def settings(scan, model, out, **options):
    # a tenth of the memory there is would be blocks of many windows
    return Settings.of(input=scan, model=model, out=str(out), resume=True, **options)


def look(scan, model, out, looking, **options):
    crew = OnDemandTeam(settings(scan, model, out, **options), looking)
    try:
        run_volume(crew, crew.prepare())
    except Closed as closed:
        return closed
    finally:
        crew.close()
    return None


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of two windows a side, of which small volumes have many."""
    monkeypatch.setattr(
        "unet_engine.prepare.draft.default_block", lambda axes, channels: tuple(min(2, a.count) for a in axes)
    )
    monkeypatch.setattr("unet_engine.plan.sizing.chunk_target", lambda axes: 8)


@pytest.mark.parametrize(
    "options",
    share(
        [{"roi": "3:37,5:30,0:41"}, {"output": "probabilities"}, {}, {"blend": "crop"}, {"tta": "mirror:zyx"}], quick=2
    ),
)
def test_what_was_looked_at_and_what_a_resume_does_are_the_bytes_of_one_run(tmp_path, scan, small_blocks, options):
    model = fake_model(tmp_path, **CLASSES)
    plain = unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"), **options)
    looking = Looking([Box((0, 0, 0), (12, 12, 12)), Box((20, 14, 24), (24, 25, 30))])
    out = tmp_path / "looked.zarr"
    closed = look(scan, model, out, looking, **options)
    assert closed is not None
    assert 0 < closed.there < closed.of == plain.blocks_planned
    marked = set(Header.of(str(out)).marked())
    assert len(marked) == closed.there
    assert not read_header(str(out))["complete"]
    done = unet_engine.run(scan, model=model, out=str(out), resume=True, **options)
    assert done.complete
    assert done.blocks_written == closed.of - closed.there
    expected = result_of(tmp_path / "plain.zarr")
    assert (expected > 0).mean() > 0.2  # which blocks that are missing would not be
    np.testing.assert_array_equal(result_of(out), expected)
    for name in ["identity", "digest"]:
        assert read_header(str(out))[name] == read_header(str(tmp_path / "plain.zarr"))[name]


@pytest.mark.parametrize("options", [{"grid": "scan"}, {"grid": "model"}, {"grid": "scan", "output": "probabilities"}])
def test_a_volume_at_another_spacing_is_looked_at_on_either_grid(tmp_path, small_blocks, options):
    """Coarser along two axes than the network's, finer along one: what was asked for is there, and a resume does the
    rest to the bytes of one run."""
    shape, new = (20, 27, 24), (13, 18, 33)
    voxels = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
    scan = make_volume(tmp_path / "scan.zarr", voxels, axes="czyx", ome="0.5", unit="millimeter", scale=(1.0,) * 4)
    spacing = [a / b for a, b in zip(shape, new, strict=True)]
    resampling = {"image": 3, "output": 1, "apart": "never"}
    model = fake_model(tmp_path, **CLASSES, spacing=spacing, spacing_unit="millimeter", resampling=resampling)
    plain = unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"), **options)
    expected = result_of(tmp_path / "plain.zarr")
    place = tuple(slice(n // 2, n // 2 + 3) for n in expected.shape[-3:])
    looking = Looking([Box(tuple(s.start for s in place), tuple(s.stop for s in place))])
    out = tmp_path / "looked.zarr"
    closed = look(scan, model, out, looking, **options)
    assert 0 < closed.there < closed.of == plain.blocks_planned
    np.testing.assert_array_equal(result_of(out)[(..., *place)], expected[(..., *place)])
    assert np.unique(expected[(..., *place)]).size > 1  # which blocks that are missing would not be
    done = unet_engine.run(scan, model=model, out=str(out), resume=True, **options)
    assert done.blocks_written == closed.of - closed.there
    np.testing.assert_array_equal(result_of(out), expected)


def test_exactly_the_blocks_that_are_looked_at_are_computed(tmp_path, scan, small_blocks):
    asked = Box((20, 14, 24), (24, 25, 30))
    looking = Looking([asked], at=Sight((22.0, 20.0, 26.0), (0,)))
    out = tmp_path / "looked.zarr"
    look(scan, fake_model(tmp_path, **CLASSES), out, looking)
    plan = looking.prepared.job.plan
    expected = {b.index for b in plan.blocks() if b.write.meets(asked) and b.write.lo[0] <= 22 < b.write.hi[0]}
    assert set(Header.of(str(out)).marked()) == expected
    assert looking.told[-1] == f"{len(expected)} of {plan.block_count} blocks are computed"


def test_a_viewer_goes_on_with_what_another_one_left_and_the_last_block_completes_it(tmp_path, scan, small_blocks):
    model = fake_model(tmp_path, **CLASSES)
    out = tmp_path / "looked.zarr"
    first = look(scan, model, out, Looking([WHOLE], close_after=3))
    assert first.there == 3
    again = Looking([WHOLE])
    assert look(scan, model, out, again) is None
    assert again.computed == first.of - 3
    assert read_header(str(out))["complete"]
    unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"))
    np.testing.assert_array_equal(result_of(out), result_of(tmp_path / "plain.zarr"))


def test_a_second_viewer_or_a_run_beside_one_is_refused_and_breaks_nothing(tmp_path, scan, small_blocks):
    model = fake_model(tmp_path, **CLASSES)
    out = tmp_path / "looked.zarr"
    refused = []

    class Busy(Looking):
        def changed(self):
            super().changed()
            for attempt in (
                lambda: look(scan, model, out, Looking([WHOLE], close_after=1)),
                lambda: unet_engine.run(scan, model=model, out=str(out), resume=True),
            ):
                with pytest.raises(OutputError, match="being written by another run"):
                    attempt()
                refused.append(1)

    look(scan, model, out, Busy([WHOLE], close_after=2))
    assert len(refused) >= 2
    assert unet_engine.run(scan, model=model, out=str(out), resume=True).complete
    unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"))
    np.testing.assert_array_equal(result_of(out), result_of(tmp_path / "plain.zarr"))


def test_a_window_is_shown_before_its_block_is_done_and_not_after(tmp_path, scan, small_blocks, monkeypatch):
    monkeypatch.setattr(on_demand, "SLOW", 0.0)
    out = tmp_path / "looked.zarr"
    seen = []

    class Watching(Looking):
        def changed(self):
            super().changed()
            voxels = np.full(WHOLE.shape, 9, np.uint8)
            self.previews.over(WHOLE, (1, 1, 1), voxels)
            coarse = np.full((20, 18, 22), 9, np.uint8)
            self.previews.over(Box((0, 0, 0), (20, 18, 22)), (2, 2, 2), coarse)
            np.testing.assert_array_equal(coarse, voxels[::2, ::2, ::2])
            seen.append(voxels)

    look(scan, fake_model(tmp_path, **CLASSES), out, Watching([WHOLE], close_after=2, at=Sight((20.0, 18.0, 22.0))))
    before, after = seen[0], seen[1]
    there = before != 9
    assert 0 < there.sum() <= 8**3
    assert (after == 9).all()
    assert set(np.unique(before[there])) == {0, 1}


def test_while_the_viewer_loads_the_window_in_the_middle_is_inferred_once_and_none_is_kept(
    tmp_path, scan, small_blocks, monkeypatch
):
    monkeypatch.setattr(on_demand, "SLOW", 0.0)
    out, shown = tmp_path / "looked.zarr", []

    class Loading(Looking):
        """Nobody has asked when the first window is there; it lies where people look."""

        def changed(self):
            super().changed()
            shown.append(self.demand.done)
            if len(shown) == 1:
                assert not list(Header.of(str(out)).marked())
                voxels = np.full(WHOLE.shape, 9, np.uint8)
                self.previews.over(WHOLE, (1, 1, 1), voxels)
                assert voxels[20, 18, 22] in (0, 1)
                self.demand.ask(WHOLE, (1, 1, 1))

    class Asking(Loading):
        @contextmanager
        def __call__(self, prepared, demand, previews):
            self.prepared, self.demand, self.previews = prepared, demand, previews
            demand.look(self.sight())
            yield self

    look(scan, fake_model(tmp_path, **CLASSES), out, Asking([], close_after=1, at=Sight((20.0, 18.0, 22.0), (0, 1, 2))))
    assert shown == [0]  # the block that came next was the one that was shown, and was not inferred for show again


def test_an_idle_viewer_does_not_count_as_hung(tmp_path, scan):
    crew = OnDemandTeam(settings(scan, fake_model(tmp_path, **CLASSES), tmp_path / "o.zarr"), Looking([]))
    assert crew._moved() != crew._moved()


def test_a_column_of_one_block_is_what_a_resume_would_do(tmp_path, scan, small_blocks):
    """Whatever order blocks are asked for in, each is complete by itself."""
    model = fake_model(tmp_path, **CLASSES)
    unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"))
    expected = result_of(tmp_path / "plain.zarr")
    for number, (z, x) in enumerate(itertools.product((0, 39), (0, 43))):
        out = tmp_path / f"{number}.zarr"
        looking = Looking([Box((z, 0, x), (z + 1, 1, x + 1))])
        look(scan, model, out, looking)
        (index,) = Header.of(str(out)).marked()
        place = looking.prepared.job.plan.write_box(index).slices()
        np.testing.assert_array_equal(result_of(out)[place], expected[place])
