"""Resolutions that are stored, and those that are made of them."""

import numpy as np
import pytest
import zarr

from support.volumes import make_volume
from unet_engine.errors import InputError
from unet_engine.plan.box import Box
from unet_engine.viewing import levels as module
from unet_engine.viewing.levels import Levels
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick


def opened(path, **options):
    return Levels.of(path, open_volume(path, None, Pick(0)), Pick(0), **options)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 250, (21, 18, 33), np.uint8)


def means(voxels, factors):
    shape = [-(-n // f) for n, f in zip(voxels.shape, factors, strict=True)]
    out = np.empty(shape)
    for index in np.ndindex(*shape):
        cell = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        out[index] = voxels[cell].mean(dtype=np.float64)
    return out


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 2, 2), (4, 2, 8)])
@pytest.mark.parametrize("part", [module.PART, 200])
def test_a_voxel_is_the_mean_or_the_first_of_those_it_stands_for(tmp_path, voxels, factors, part, monkeypatch):
    monkeypatch.setattr(module, "PART", part)
    levels = opened(make_volume(tmp_path / "s.zarr", voxels))
    whole = Box.of_shape([-(-n // f) for n, f in zip(voxels.shape, factors, strict=True)])
    part = Box(tuple(n // 3 for n in whole.hi), tuple(-(-n * 3 // 4) for n in whole.hi))
    expected = means(voxels, factors)
    for box in (whole, part):
        np.testing.assert_allclose(levels.read(box, factors, mean=True)[0], expected[box.slices()], atol=0.501)
        first = voxels[tuple(slice(None, None, f) for f in factors)]
        np.testing.assert_array_equal(levels.read(box, factors, mean=False)[0], first[box.slices()])


def pyramid(tmp_path, voxels):
    """Whose coarser level holds other numbers, so that one sees what was read."""
    path = make_volume(tmp_path / "p.zarr", voxels, ome="0.5", axes="zyx")
    group = zarr.open_group(path, mode="r+")
    coarse = np.full((21, 9, 17), 251, np.uint8)
    group.create_array("1", data=coarse, chunks=(8, 8, 8), dimension_names=list("zyx"))
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"].append(
        {"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0, 2.0]}]}
    )
    group.attrs["ome"] = ome
    return path


def test_coarser_pieces_are_read_of_the_coarser_level(tmp_path, voxels):
    levels = opened(pyramid(tmp_path, voxels))
    assert [level.factors for level in levels.stored] == [(1, 1, 1), (1, 2, 2)]
    assert (levels.read(Box((0, 0, 0), (5, 4, 5)), (1, 2, 2), mean=True) == 251).all()
    assert (levels.read(Box((0, 0, 0), (5, 2, 2)), (4, 4, 4), mean=False) == 251).all()
    full = levels.read(Box((0, 0, 0), (5, 9, 16)), (4, 2, 1), mean=False)
    np.testing.assert_array_equal(full[0], voxels[::4, ::2][:5, :, :16])


def test_what_is_not_stored_is_not_read(tmp_path, monkeypatch):
    path = str(tmp_path / "e.zarr")
    array = zarr.create_array(path, shape=(64, 64, 64), chunks=(8, 8, 8), dtype="uint8", fill_value=3)
    array[:8, :8, :8] = 7
    levels = opened(path)
    read = []
    volume = type(levels.full)
    true = volume.read
    monkeypatch.setattr(volume, "read", lambda self, box, *a: read.append(box) or true(self, box, *a))
    monkeypatch.setattr(module, "PART", 512)
    found = levels.read(Box((0, 0, 0), (16, 16, 16)), (4, 4, 4), mean=True)
    assert found[0, 0, 0, 0] == 7
    assert (found[0, 2:] == 3).all()
    assert sum(box.size for box in read) <= 2 * 8**3


def test_large_chunks_are_decoded_once_and_those_that_are_written_meanwhile_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ANSWER", 100)
    voxels = np.arange(16**3, dtype=np.uint16).reshape(16, 16, 16)
    path = make_volume(tmp_path / "c.zarr", voxels)
    for changing in (False, True):
        levels = opened(path, changing=changing)
        read, volume = [], type(levels.full)
        true = volume.read
        with monkeypatch.context() as patch:
            patch.setattr(volume, "read", lambda self, box, *a, r=read, t=true: r.append(box) or t(self, box, *a))
            for lo in (0, 3, 6):
                box = Box((lo, lo, lo), (lo + 9, lo + 4, lo + 2))
                np.testing.assert_array_equal(levels.read(box, (1, 1, 1), mean=True)[0], voxels[box.slices()])
        assert (len(read) == len(set(read)) and all(b.shape == (8, 8, 8) for b in read)) == (not changing)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_whoever_scrolls_through_chunks_decodes_each_once(tmp_path, axis, monkeypatch):
    voxels = np.arange(24 * 20 * 28, dtype=np.uint16).reshape(24, 20, 28)
    levels = opened(make_volume(tmp_path / "c.zarr", voxels, chunks=(8, 8, 8)))
    read, volume = [], type(levels.full)
    true = volume.read
    monkeypatch.setattr(volume, "read", lambda self, box, *a: read.append(box) or true(self, box, *a))
    for at in range(voxels.shape[axis]):
        lo, hi = [1, 1, 1], [n - 1 for n in voxels.shape]
        lo[axis], hi[axis] = at, at + 1
        box = Box(tuple(lo), tuple(hi))
        np.testing.assert_array_equal(levels.read(box, (1, 1, 1), mean=True)[0], voxels[box.slices()])
    assert len(read) == -(-voxels.shape[axis] // 8)
    assert sum(box.size for box in read) == voxels.size


def test_a_chunk_that_cannot_be_read_is_asked_for_again(tmp_path, monkeypatch):
    levels = opened(make_volume(tmp_path / "c.zarr", np.ones((16, 16, 16), np.uint8), chunks=(8, 8, 8)))
    volume, fails = type(levels.full), [InputError("gone"), None]
    true = volume.read

    def read(self, box, *more):
        if error := fails.pop(0):
            raise error
        return true(self, box, *more)

    monkeypatch.setattr(volume, "read", read)
    box = Box((3, 0, 0), (4, 16, 16))
    with pytest.raises(InputError, match="gone"):
        levels.read(box, (1, 1, 1), mean=True)
    assert (levels.read(box, (1, 1, 1), mean=True) == 1).all()


def test_a_terabyte_of_which_little_is_stored_gives_its_pieces_at_once(tmp_path):
    """No walk through chunks: what is looked at is what is asked for."""
    path = str(tmp_path / "t.zarr")
    array = zarr.create_array(path, shape=(10240, 10240, 10240), chunks=(64, 64, 64), dtype="uint8")
    array[5056:5184, 5056:5184, 5056:5184] = 9
    levels = opened(path)
    box = Box((5088,) * 3, (5152,) * 3)
    assert (levels.read(box, (1, 1, 1), mean=True) == 9).all()
    assert levels.coarsest >= 64


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "f4", "?"])
def test_means_of_the_largest_values_are_exact(tmp_path, dtype):
    """They are added in as small a type as holds them."""
    kind = np.dtype(dtype)
    most = (
        [True]
        if kind.kind == "b"
        else [np.finfo(kind).max / 2**13]
        if kind.kind == "f"
        else [np.iinfo(kind).min, np.iinfo(kind).max]
    )
    for value in most:
        for factors in ((4, 8, 8), (2, 2, 4), (16, 16, 16), (1, 1, 3)):
            levels = opened(make_volume(tmp_path / f"{value}{factors}.zarr", np.full((17, 16, 18), value, kind)))
            box = Box.of_shape([-(-n // f) for n, f in zip((17, 16, 18), factors, strict=True)])
            assert (levels.read(box, factors, mean=True) == np.array(value, kind)).all()
