"""First guesses from coarser pictures: where they lie, against a walk through all voxels; what they are worth; and that
nothing of them is kept."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unet_engine
from support.plans import plans
from support.volumes import fake_model, make_volume, result_of
from unet_engine.api import run_volume
from unet_engine.output.header import Header
from unet_engine.output.layout import Layout
from unet_engine.plan.box import Box
from unet_engine.settings.settings import Settings
from unet_engine.viewing import demand as demands
from unet_engine.viewing import on_demand
from unet_engine.viewing.demand import Blocks
from unet_engine.viewing.on_demand import Closed, OnDemandTeam
from unet_engine.viewing.panes import pane_of
from unet_engine.viewing.sketches import DRAWN, STRIPES, Place, Sketcher, Sketches
from unet_engine.volumes.turn import Turn

CLASSES = {"channels_in": 2, "channels_out": 2, "activation": "softmax"}


@given(plans(), st.data())
def test_a_sketch_is_seen_in_stripes_where_nothing_is_computed_and_nowhere_else(plan, data):
    rank = len(plan.roi.shape)
    order = tuple(data.draw(st.permutations(range(rank))))
    shape = tuple(plan.roi.shape[order.index(a)] for a in range(rank))
    turn = Turn(order, tuple(data.draw(st.booleans()) for _ in shape), shape)
    layout = Layout(plan.names, plan.names, shape, plan.chunk, None, "uint8", (1.0,) * rank, (0.0,) * rank, None, (),
                    turn=turn)  # fmt: skip
    blocks = Blocks(plan, layout)
    written = [b for b in plan.blocks() if not b.write.is_empty]
    done = {b.index for b in written if data.draw(st.booleans())}
    corner = tuple(data.draw(st.integers(0, 9)) for _ in shape)
    sketches = Sketches(blocks, corner, shape, lambda index: index not in done)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    placed = []
    for factor in data.draw(st.lists(st.sampled_from([2, 4, 8]), unique=True, max_size=2)):
        lo = tuple(data.draw(st.integers(0, 4)) for _ in shape)
        place = Place((factor,) * rank, lo)
        labels = rng.integers(1, 200, tuple(data.draw(st.integers(1, 5)) for _ in shape)).astype(np.uint8)
        sketches.put(place, labels)
        placed.append((place, labels))
        assert place in sketches
    factors = tuple(data.draw(st.sampled_from([1, 2])) for _ in shape)
    box = Box.of_shape([-(-n // f) for n, f in zip(shape, factors, strict=True)])
    voxels = np.zeros(box.shape, np.uint8)
    sketches.over(box, factors, voxels)

    expected = np.zeros(box.shape, np.uint8)
    for point in box.points():
        full = tuple(x * f for x, f in zip(point, factors, strict=True))
        seen = turn.seen_box(Box(full, tuple(x + 1 for x in full))).shift(plan.roi.lo)
        if sum(point) % STRIPES >= DRAWN or any(b.index in done and b.write.meets(seen) for b in written):
            continue
        for place, labels in sorted(placed, key=lambda one: -one[0].factors[0]):
            at = tuple((x + c) // f - l for x, c, f, l in zip(full, corner, place.factors, place.lo, strict=True))
            if all(0 <= i < n for i, n in zip(at, labels.shape, strict=True)):
                expected[point] = labels[at]
    np.testing.assert_array_equal(voxels, expected)


class Looking:
    """A viewer that is closed once it was told of something to see."""

    def __init__(self, close_after=1):
        self.shown, self.told, self.close_after = 0, [], close_after

    @contextmanager
    def __call__(self, prepared, demand, previews):
        self.prepared, self.previews, self.demand = prepared, previews, demand
        yield self

    def sight(self):
        return None

    def changed(self):
        self.shown += 1
        if self.shown == self.close_after:
            raise KeyboardInterrupt

    def say(self, text):
        self.told.append(text)

    def seen(self, factors):
        shape = self.prepared.job.layout.shape[-3:]
        voxels = np.full([-(-n // f) for n, f in zip(shape, factors, strict=True)], 9, np.uint8)
        self.previews.over(Box.of_shape(voxels.shape), factors, voxels)
        return voxels


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(demands, "SETTLING", 0.0)
    monkeypatch.setattr(on_demand, "SLOW", 0.0)
    monkeypatch.setattr(on_demand, "PATIENCE", 0.01)


def look(scan, model, out, looking, **options):
    settings = Settings.of(input=scan, model=model, out=str(out), resume=True, **options)
    crew = OnDemandTeam(settings, looking, levels=pane_of(scan).levels)
    try:
        with pytest.raises(Closed):
            run_volume(crew, crew.prepare())
    finally:
        crew.close()


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(
        "unet_engine.prepare.draft.default_block", lambda axes, channels: tuple(min(2, a.count) for a in axes)
    )
    monkeypatch.setattr("unet_engine.plan.sizing.chunk_target", lambda axes: 8)


def coarse_cells(shape, step):
    """Voxels (2, *shape) that are equal in cells of `step`, and what the identity network makes of them."""
    cells = np.random.default_rng(1).normal(size=(2, *(-(-n // s) for n, s in zip(shape, step, strict=True))))
    for axis, s in enumerate(step, 1):
        cells = np.repeat(cells, s, axis)
    voxels = cells[:, : shape[0], : shape[1], : shape[2]].astype(np.float32)
    return voxels, (voxels[1] > voxels[0]).astype(np.uint8)


def oriented(path, voxels):
    """A MetaImage whose z, y and x point to SPL."""
    size = " ".join(str(n) for n in reversed(voxels.shape[1:]))
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = {size}\n"
        "ElementNumberOfChannels = 2\nElementSpacing = 1 1 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
        "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(head.encode() + np.moveaxis(voxels, 0, -1).tobytes())
    return str(path)


@pytest.mark.parametrize(
    ("roi", "spec"),
    [(None, {}), ("8:32,:,16:64", {}), (None, {"orientation": "ARS"}), ("8:32,:,16:64", {"orientation": "SAR"})],
)
def test_before_any_block_all_of_the_volume_is_seen_and_nothing_is_kept(tmp_path, small_blocks, roi, spec):
    shape = (32, 30, 64)
    voxels, labels = coarse_cells(shape, (4, 4, 8))
    scan = oriented(tmp_path / "scan.mha", voxels) if spec else make_volume(tmp_path / "scan.zarr", voxels, axes="czyx")
    looking, out = Looking(), tmp_path / "o.zarr"
    look(scan, fake_model(tmp_path, **CLASSES, **spec), out, looking, **({"roi": roi} if roi else {}))
    if roi:
        labels = labels[8:32, :, 16:64]
    for factors in ((1, 1, 1), (2, 1, 4)):
        seen = looking.seen(factors)
        assert (seen != 9).mean() == pytest.approx(DRAWN / STRIPES, abs=0.02)
        there = labels[tuple(slice(None, None, f) for f in factors)]
        np.testing.assert_array_equal(seen[seen != 9], there[seen != 9])
    assert not list(Header.of(str(out)).marked())
    assert "what is striped is a guess from a coarser picture" in looking.told[-1]


def test_where_sketches_were_shown_the_bytes_are_those_of_one_run(tmp_path, small_blocks):
    voxels, _ = coarse_cells((32, 30, 64), (5, 3, 2))
    scan, model = make_volume(tmp_path / "scan.zarr", voxels, axes="czyx"), fake_model(tmp_path, **CLASSES)

    class Asking(Looking):
        """Looks at all, then at a part; closes it after some blocks."""

        def changed(self):
            self.demand.ask(Box((0, 0, 0), (32, 30, 64)), (2, 2, 2))
            self.demand.ask(Box((8, 8, 8), (24, 24, 24)), (1, 1, 1))
            if self.demand.done == 2:
                raise KeyboardInterrupt

    looking, out = Asking(), tmp_path / "o.zarr"
    look(scan, model, out, looking)
    assert len(looking.previews.sketches._there) == 2
    done = [looking.prepared.job.plan.write_box(index) for index in Header.of(str(out)).marked()]
    assert len(done) == 2
    for box in done:  # what is computed is seen as it is
        assert (looking.seen((1, 1, 1))[box.slices()] == 9).all()
    assert unet_engine.run(scan, model=model, out=str(out), resume=True).complete
    unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"))
    np.testing.assert_array_equal(result_of(out), result_of(tmp_path / "plain.zarr"))


def test_a_sketch_is_as_coarse_as_it_has_to_be_and_no_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    voxels, _ = coarse_cells((32, 32, 64), (4, 4, 4))
    scan = make_volume(tmp_path / "scan.zarr", voxels, axes="czyx")
    looking = Looking()
    look(scan, fake_model(tmp_path, **CLASSES), tmp_path / "o.zarr", looking)
    worker = SimpleNamespace(job=looking.prepared.job)
    sketcher = Sketcher(worker, pane_of(scan).levels)
    whole, middle = Box((0, 0, 0), (32, 32, 64)), (16, 16, 32)
    assert sketcher.place(middle, whole) == Place((4, 4, 8), (0, 0, 0))
    assert sketcher.place(middle, Box((8, 8, 8), (24, 24, 20))) == Place((2, 2, 2), (4, 4, 12))
    assert sketcher.place(middle, Box((8, 8, 8), (16, 16, 16))) is None
    assert sketcher.place((0, 31, 63), Box((0, 0, 0), (16, 32, 64))).lo == (0, 0, 0)
    monkeypatch.setattr("unet_engine.viewing.sketches.PIECE", 2 * 4 * 16**3)
    assert sketcher.place(middle, whole) == Place((2, 2, 2), (4, 4, 12))
    monkeypatch.setattr("unet_engine.viewing.sketches.PIECE", 100)
    assert sketcher.place(middle, whole) is None
