"""Small volumes are unpacked once, whoever reads them."""

import numpy as np
import pytest
import zarr

import unet_engine
from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.pick import Pick
from unet_engine.volumes.zarr_volume import ZarrVolume

VOXELS = np.random.default_rng(0).integers(0, 1000, (2, 40, 36, 30), dtype=np.uint16)
SMALL, PART = Box((3, 5, 7), (20, 9, 30)), Box((1, 1, 1), (3, 3, 3))


@pytest.fixture
def stored(tmp_path):
    zarr.create_array(tmp_path / "scan.zarr", data=VOXELS, chunks=(1, 16, 16, 16), dimension_names=list("czyx"))
    return str(tmp_path / "scan.zarr")


@pytest.fixture
def unpacked(monkeypatch):
    """What was read of stored arrays."""
    seen, numbers = [], ZarrVolume._numbers
    monkeypatch.setattr(ZarrVolume, "_numbers", lambda self, part: (seen.append(part), numbers(self, part))[1])
    return seen


def test_it_is_unpacked_once_and_reads_the_same(stored, unpacked):
    volume, plain = open_volume(stored, None), open_volume(stored, None)
    volume.hold(VOXELS.nbytes)
    wanted = [plain.read(box) for box in (SMALL, PART, Box.of_shape(volume.shape))]
    unpacked.clear()
    found = [volume.read(box) for box in (SMALL, PART, Box.of_shape(volume.shape))]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert len(unpacked) == 1
    assert volume.held_bytes == VOXELS.nbytes
    assert np.array_equal(volume.picked(Pick(channels=(1,))).read(SMALL), wanted[0][1:])
    assert len(unpacked) == 1  # what is picked of it is of the same array


def test_who_reads_may_write_to_what_it_is_given(stored):
    volume = open_volume(stored, None)
    volume.hold(VOXELS.nbytes)
    volume.read(Box.of_shape(volume.shape))[...] = 0
    assert np.array_equal(volume.read(Box.of_shape(volume.shape)), VOXELS)


def test_a_larger_one_is_read_by_its_blocks_and_what_is_let_go_of_too(stored, unpacked):
    volume = open_volume(stored, None)
    volume.hold(VOXELS.nbytes - 1)
    assert volume.held_bytes == 0
    volume.hold(VOXELS.nbytes)
    volume.read(PART)
    volume.hold(0)
    volume.read(PART)
    assert [part[1].stop for part in unpacked] == [40, 3]


def test_of_a_damaged_chunk_only_who_reads_it_hears(stored, tmp_path):
    (tmp_path / "scan.zarr" / "c" / "1" / "2" / "2" / "1").write_bytes(b"?" * 40)
    volume = open_volume(stored, None)
    volume.hold(VOXELS.nbytes)
    assert np.array_equal(volume.read(PART)[0], VOXELS[0, 1:3, 1:3, 1:3])
    assert volume.held_bytes == 0
    with pytest.raises(DataError, match="chunk z=2 y=2 x=1"):
        volume.read(Box((33, 33, 17), (34, 34, 18)))


def test_a_run_unpacks_a_small_volume_once(tmp_path, unpacked, model):
    voxels = VOXELS[0]
    zarr.create_array(tmp_path / "in.zarr", data=voxels, chunks=(8, 8, 8))
    unet_engine.run(str(tmp_path / "in.zarr"), model=model, out=str(tmp_path / "out.zarr"), overlap=0.25)
    assert len(unpacked) == 1
