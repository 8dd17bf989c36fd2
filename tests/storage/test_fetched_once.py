"""Chunks behind a network are fetched once: as the plan counts, and as a proxy in front of the server measures."""

import asyncio
import collections
import itertools
from math import prod

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.s3 import faulty, upload
from support.shares import share
from support.volumes import fake_model, make_volume, result_of
from unet_engine.plan.box import Box
from unet_engine.plan.fetching import Fetching
from unet_engine.storage.kept import CACHE, NEVER, Kept
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick

pytestmark = pytest.mark.long

IMAGE = np.random.default_rng(8).integers(1, 2**16, (44, 40, 36), dtype=np.uint16)
CHUNK = (12, 10, 12)


@pytest.fixture(params=share(["shards", "chunks"]))
def stored(request, tmp_path):
    path = tmp_path / "scan.zarr"
    if request.param == "shards":
        make_volume(str(path), IMAGE, chunks=CHUNK, shards=tuple(2 * c for c in CHUNK))
    else:
        make_volume(str(path), IMAGE, chunks=CHUNK)
    return request.param, path


def fetches(proxy):
    """How often each chunk, or part of a shard, was fetched."""
    return collections.Counter((one.path, one.span) for one in proxy.gets("/c/"))


def test_each_chunk_is_fetched_once_with_a_cache_and_as_often_as_the_plan_says_without(monkeypatch, tmp_path, stored):
    _, local = stored
    with faulty(monkeypatch) as (proxy, client):
        upload(client, local, "scan.zarr")
        model = fake_model(tmp_path)
        arguments = ("--in", "s3://lab/scan.zarr", "--model", model, "--output", "logits", "--json")
        planned = cli("plan", *arguments)
        assert planned.code == 0, planned.err
        assert planned.json["fetch_factor"] == 1.0
        assert planned.json["bytes_kept"] <= 2**30
        results = {}
        for cache in ("1GiB", "0"):
            monkeypatch.setenv(CACHE, cache)
            proxy.seen.clear()
            said = cli("run", *arguments, "--out", tmp_path / f"{cache}.zarr")
            assert said.code == 0, said.err
            assert said.json["blocks_planned"] > 8, "blocks that share chunks along every axis"
            results[cache] = fetches(proxy)
        once = results["1GiB"]
        assert sum(once.values()) <= 1.05 * len(once)
        assert set(once) == set(results["0"])
        often = sum(results["0"].values()) / len(once)
        bare = cli("plan", *arguments)
        assert bare.json["bytes_kept"] < planned.json["bytes_kept"]
        assert often <= bare.json["fetch_factor"] + 0.01 <= 1.3
        here = cli("run", "--in", local, "--model", model, "--output", "logits", "--out", tmp_path / "here.zarr")
        assert here.code == 0, here.err
        for cache in results:
            assert (
                result_of(str(tmp_path / f"{cache}.zarr")).tobytes() == result_of(str(tmp_path / "here.zarr")).tobytes()
            )


@pytest.mark.parametrize(
    ("shape", "window", "tubes", "layers"),
    [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (((192, 192), 16, [1, 3], 1.06), ((208,) * 3, 16, [1, 2, 2], 1.19))
    ],
)
def test_tube_by_tube_chunks_are_fetched_as_often_as_the_plan_says(monkeypatch, tmp_path, shape, window, tubes, layers):
    """Where little may be kept. The bytes are those of blocks that come layer by layer, of a local volume."""
    image = np.random.default_rng(9).integers(1, 2**8, shape, dtype=np.uint8)
    local, axes = tmp_path / "scan.zarr", "zyx"[-len(shape) :]
    make_volume(str(local), image, axes=axes, chunks=(16,) * len(shape), compressors=None)
    model = fake_model(tmp_path, axes=axes, window=(window,) * len(shape))
    arguments = ("--model", model, "--overlap", "0.5", "--json")
    with faulty(monkeypatch) as (proxy, client):
        upload(client, local, "scan.zarr")
        monkeypatch.setenv(CACHE, "0")
        monkeypatch.setattr("unet_engine.storage.kept.BEFORE", 0)
        planned = cli("plan", "--in", "s3://lab/scan.zarr", *arguments).json
        assert planned["tubes"] == tubes
        samples = fetches(proxy).total()  # nothing is kept of them
        proxy.seen.clear()
        said = cli("run", "--in", "s3://lab/scan.zarr", *arguments, "--out", tmp_path / "there.zarr")
        assert said.code == 0, said.err
        often = (fetches(proxy).total() - samples) / prod(n // 16 for n in shape)
        assert often == pytest.approx(planned["fetch_factor"], abs=0.001)
        monkeypatch.setattr("unet_engine.prepare.prepare.in_tubes", lambda _, plan, *__: plan)
        assert cli("plan", "--in", "s3://lab/scan.zarr", *arguments).json["fetch_factor"] > layers
    here = cli("run", "--in", local, *arguments, "--out", tmp_path / "here.zarr")
    assert here.code == 0, here.err
    assert result_of(tmp_path / "there.zarr").tobytes() == result_of(tmp_path / "here.zarr").tobytes()


def run_uncached(monkeypatch, tmp_path, local, model, chunks):
    """How often each of so many chunks is fetched in a run without a cache, but for samples, and as the plan says."""
    with faulty(monkeypatch) as (proxy, client):
        upload(client, local, "scan.zarr")
        monkeypatch.setenv(CACHE, "0")
        monkeypatch.setattr("unet_engine.storage.kept.BEFORE", 0)
        arguments = ("--in", "s3://lab/scan.zarr", "--model", model, "--json")
        planned = cli("plan", *arguments)
        assert planned.code == 0, planned.err
        samples = fetches(proxy).total()
        proxy.seen.clear()
        said = cli("run", *arguments, "--out", tmp_path / "o.zarr")
        assert said.code == 0, said.err
        return (fetches(proxy).total() - samples) / chunks, planned.json["fetch_factor"]


def test_a_volume_of_another_spacing_is_fetched_as_often_as_the_plan_says(monkeypatch, tmp_path):
    """What later blocks read of its chunks is counted on its own grid."""
    image, local = np.random.default_rng(3).integers(1, 2**8, (180, 180), dtype=np.uint8), tmp_path / "scan.zarr"
    make_volume(
        str(local), image, axes="yx", ome="0.5", scale=(1, 1), unit="millimeter", chunks=(15, 15), compressors=None
    )
    how = {"spacing": (1.25, 1.25), "spacing_unit": "millimeter", "resampling": {"image": 1, "output": 1}}
    model = fake_model(tmp_path, axes="yx", window=(16, 16), **how)
    often, planned = run_uncached(monkeypatch, tmp_path, local, model, 12**2)
    assert often == pytest.approx(planned, abs=0.001)
    assert often < 1.3


@pytest.mark.slow
def test_a_box_off_the_borders_of_chunks_is_fetched_as_often_as_the_plan_says(monkeypatch, tmp_path):
    """As is read of what is not 0: chunks that lie across its sides are read by the blocks of the box."""
    image = np.zeros((180, 180), np.uint8)
    image[22:157, 40:172] = np.random.default_rng(3).integers(1, 2**8, (135, 132), dtype=np.uint8)
    local = tmp_path / "scan.zarr"
    make_volume(str(local), image, axes="yx", chunks=(15, 15), compressors=None)
    model = fake_model(tmp_path, axes="yx", window=(32, 32), crop=0.0)
    often, planned = run_uncached(monkeypatch, tmp_path, local, model, 10 * 10)  # of rows 1 to 10, columns 2 to 11
    assert often == pytest.approx(planned, abs=0.001)
    assert often > 1.01, "else nothing is read again"


@pytest.mark.parametrize("shape", [(5, 6), pytest.param((4, 3, 5), marks=pytest.mark.slow)])
def test_what_has_to_be_kept_is_enough(shape):
    """Against a plain list of what blocks read, one after the other."""
    rng = np.random.default_rng(3)
    for _ in range(10):
        spans = []
        for n in shape:
            edges = np.sort(rng.choice(range(1, 4 * n), n - 1, replace=False)).tolist()
            lows, highs = [0, *edges], [*edges, 4 * n]
            wider = rng.integers(0, 3, 2)
            spans.append(tuple((max(0, l - int(wider[0])), min(4 * n, h + int(wider[1])))
                               for l, h in zip(lows, highs, strict=True)))  # fmt: skip
        fetching = Fetching(tuple(spans), tuple(range(len(shape))))
        reads = [
            {tuple(int(i) + l for i, (l, _) in zip(c, box, strict=True)) for c in np.ndindex(*(h - l for l, h in box))}
            for box in ([spans[a][i] for a, i in enumerate(index)] for index in np.ndindex(*shape))
        ]  # fmt: skip
        uses = collections.Counter(chunk for read in reads for chunk in read)
        assert all(fetching.uses(chunk) == n for chunk, n in uses.items())
        left, kept, most = dict(uses), set(), 0
        for read in reads:
            kept |= read
            most = max(most, len(kept))
            for chunk in read:
                left[chunk] -= 1
            kept = {chunk for chunk in kept if left[chunk]}
        assert most <= fetching.wanted(1)
        assert fetching.factor(fetching.wanted(1), 1) == 1
        assert fetching.factor(0, 1) == pytest.approx(sum(uses.values()) / len(uses))
        for factor in (1.1, 1.3, 1.7):
            assert fetching.factor(fetching.enough(1, factor), 1) <= factor + 1e-9
            assert fetched(fetching, reads, fetching.enough(1, factor)) / len(uses) <= factor


def fetched(fetching, reads, most):
    """Chunks that a store is asked for which keeps `most` of them, what is needed last going first."""
    kept, often, fetches = {}, collections.Counter(), 0
    for read in reads:
        for chunk in sorted(read):
            fetches += chunk not in kept
            often[chunk] += 1
            last = often[chunk] == fetching.uses(chunk)
            kept[chunk] = 2**62 if last else fetching.due(chunk, often[chunk])
            if len(kept) > most:
                del kept[max(kept, key=kept.get)]
        kept = {chunk: due for chunk, due in kept.items() if due < 2**62}
    return fetches


class _TenBytes:
    """A store of every key of one letter."""

    read_only = True

    async def get(self, key, prototype, byte_range=None):
        return key.encode() * 10


def test_a_store_keeps_what_is_needed_next():
    store = Kept(_TenBytes())
    store.most = 30
    store.expect({"a": 5, "b": 9, "c": 7, "d": 6, "e": NEVER})
    for key in "abcde":
        asyncio.run(store.get(key, None))
    before = store.fetched
    for key in "acd":
        asyncio.run(store.get(key, None))
    assert store.fetched == before, "b is needed last, and e never"
    asyncio.run(store.get("b", None))
    assert store.fetched == before + 1


def test_what_was_to_be_read_by_now_and_was_not_goes_first():
    """As another worker read it: else the seams of a share would fill what is kept."""
    store = Kept(_TenBytes())
    store.most = 30
    store.expect({"a": 3, "b": 9, "c": 7}, now=1)
    for key in "abc":
        asyncio.run(store.get(key, None))
    store.expect({"d": 8}, now=4)
    asyncio.run(store.get("d", None))
    before = store.fetched
    for key in "bcd":
        asyncio.run(store.get(key, None))
    assert store.fetched == before, "a is what went"


def test_which_block_is_read_is_known_by_the_chunks_that_no_other_reads():
    """Chunk 2 is read by three blocks, of which another worker had the second."""
    fetching = Fetching((((0, 3), (2, 4), (2, 5)),), (0,), columns=((0,) * 3,), blocks=((0, 1, 2),)).only(0, [True] * 3)
    left = {}
    assert fetching.now([(0,), (1,), (2,)], left) == 0
    assert fetching.now([(2,), (3,), (4,)], {(2,): 2, (3,): 2}) == 2


def test_what_is_asked_for_twice_at_once_is_fetched_once():
    class Store:
        read_only = True

        async def get(self, key, prototype, byte_range=None):
            await asyncio.sleep(0)
            return key.encode()

    store = Kept(Store())

    async def twice():
        return await asyncio.gather(*(store.get("a", None) for _ in range(3)), store.get("b", None))

    assert asyncio.run(twice()) == [b"a", b"a", b"a", b"b"]
    assert store.fetched == 2


def test_columns_come_one_after_the_other():
    """Two along the fastest axis, whose rows share a chunk: due in the order in which they are read, and no layer of all
    columns has to be kept."""
    rows, columns = ((0, 2), (1, 4), (3, 6), (5, 8)), (0, 0, 1, 1)
    slow = ((0, 2), (1, 3))
    fetching = Fetching((slow, rows), (0, 1), ((0, 0), columns))
    blocks = [(z, x) for column in ((0, 1), (2, 3)) for z in (0, 1) for x in column]
    found = collections.defaultdict(list)
    for number, (z, x) in enumerate(blocks):
        for chunk in itertools.product(range(*slow[z]), range(*rows[x])):
            found[chunk].append(number)
    moments = sorted({fetching.due(chunk, n) for chunk in found for n in range(fetching.uses(chunk))})
    for chunk, numbers in found.items():
        assert [moments.index(fetching.due(chunk, n)) for n in range(fetching.uses(chunk))] == numbers
    whole = Fetching((slow, rows), (0, 1))
    assert fetching.wanted(1) < whole.wanted(1)
    assert whole.factor(whole.wanted(1), 1) == 1
    assert fetching.factor(fetching.wanted(1), 1) == 9 / 8, "chunk 3 is read by both"


def test_when_a_chunk_is_read_is_the_number_of_a_block():
    spans = (((0, 2), (1, 4)), ((0, 3), (2, 5), (4, 6)))
    for order in ((0, 1), (1, 0)):
        fetching = Fetching(spans, order)
        places = itertools.product(*(range(len(spans[a])) for a in order))
        found = collections.defaultdict(list)
        for number, place in enumerate(places):
            rows = dict(zip(order, place, strict=True))
            for chunk in itertools.product(*(range(*spans[a][rows[a]]) for a in (0, 1))):
                found[chunk].append(number)
        for chunk, numbers in found.items():
            assert [fetching.due(chunk, n) for n in range(fetching.uses(chunk))] == numbers


BANDS = {name: np.random.default_rng(21).integers(0, 4000, (60, 72), np.uint16) for name in ("B02", "B03", "B04")}


def scene(path):
    root = zarr.create_group(str(path), zarr_format=3)
    coordinates = {"y": 5e6 - 10 * np.arange(60.0), "x": 6e5 + 10 * np.arange(72.0)}
    for name, values in (BANDS | coordinates).items():
        names = [name] if name in coordinates else ["y", "x"]
        root.create_array(name, data=values, chunks=(16,) * values.ndim, dimension_names=names)
    return path


def test_bands_that_are_not_asked_for_are_not_fetched(monkeypatch, tmp_path):
    with faulty(monkeypatch) as (proxy, client):
        upload(client, scene(tmp_path / "scene.zarr"), "scene.zarr")
        volume = open_volume("s3://lab/scene.zarr", None, Pick(channels=("B04", "B02")))
        assert (volume.spacing, volume.translation) == ((-10, 10), (5e6, 6e5))
        volume.keep(2**20, None)
        for box in (Box((0, 0), (40, 72)), Box((30, 0), (60, 72))):
            np.testing.assert_array_equal(volume.read(box), [BANDS[name][box.slices()] for name in ("B04", "B02")])
        seen = collections.Counter(one.path for one in proxy.gets("/c/") if "/B0" in one.path)
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * 4 * 5
    assert not any("B03" in path for path in seen)


@pytest.mark.slow
def test_a_run_of_some_bands_fetches_each_of_their_chunks_once(monkeypatch, tmp_path):
    """Bands in arrays of their own: those alone that are asked for."""
    local = scene(tmp_path / "scene.zarr")
    model = fake_model(tmp_path, axes="yx", channels_in=2, channels_out=2)
    with faulty(monkeypatch) as (proxy, client):
        upload(client, local, "scene.zarr")
        said = ("--model", model, "--output", "logits", "--input-channels", "B04,B02", "--normalize", "none")
        planned = cli("plan", "--in", "s3://lab/scene.zarr", *said, "--json")
        assert planned.code == 0, planned.err
        assert planned.json["fetch_factor"] == 1.0
        proxy.seen.clear()
        ran = cli("run", "--in", "s3://lab/scene.zarr", *said, "--out", tmp_path / "o.zarr")
        assert ran.code == 0, ran.err
        seen = collections.Counter(one.path for one in proxy.gets("/c/") if "/B0" in one.path)
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * 4 * 5
    assert not any("B03" in path for path in seen)
    here = cli("run", "--in", local, *said, "--out", tmp_path / "here.zarr")
    assert here.code == 0, here.err
    assert result_of(str(tmp_path / "o.zarr")).tobytes() == result_of(str(tmp_path / "here.zarr")).tobytes()
    np.testing.assert_allclose(result_of(str(tmp_path / "o.zarr")), [BANDS["B04"], BANDS["B02"]], atol=1e-2)
