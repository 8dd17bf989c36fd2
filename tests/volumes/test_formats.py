"""A format is a class and a line in a list: whoever reads a volume asks its protocol alone, whatever the format."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import DataError
from unet_engine.plan.box import Box
from unet_engine.profiling.stages import READ_DECODE, Stages
from unet_engine.volumes import formats, samples
from unet_engine.volumes.axes import checked_axes
from unet_engine.volumes.base import StoredVolume
from unet_engine.volumes.formats import open_volume

RNG = np.random.default_rng(2)


@dataclass(frozen=True, eq=False, kw_only=True)
class NpyVolume(StoredVolume):
    values: np.ndarray

    def stored(self, selection):
        return self.values[selection]


class NpyFormat:
    def recognises(self, path):
        return path.endswith(".npy")

    def open(self, path, axes):
        values = np.load(path, mmap_mode="r")
        return NpyVolume(
            path=path,
            axes=checked_axes(path, values.shape, values.dtype, axes),
            stored_shape=values.shape,
            stored_chunks=tuple(min(8, n) for n in values.shape),
            stored_dtype=values.dtype,
            values=values,
        )


@pytest.fixture
def npy(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", [NpyFormat(), *formats.FORMATS])


def stored_twice(folder, array):
    """The same voxels as (.npy, .zarr)."""
    np.save(folder / "scan.npy", array)
    return str(folder / "scan.npy"), make_volume(folder / "scan.zarr", array)


def files(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in Path(out, "0").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((20, 22, 24), "uint8", {}),
        ((9, 30, 2, 17), ">i2", {"axes": "zycx", "output": "probabilities"}),
        ((20, 22, 24), "float32", {"normalize": "zscore", "roi": "0:12,2:22,4:"}),
    ],
)
def test_a_run_on_another_format_gives_the_bytes_of_zarr(npy, tmp_path, shape, dtype, options):
    channels = 2 if "axes" in options else 1
    model = fake_model(
        tmp_path, channels_in=channels, channels_out=channels, activation="sigmoid", empty=[0.0] * channels
    )
    paths = stored_twice(tmp_path, RNG.integers(0, 99, shape).astype(dtype))
    results = [
        unet_engine.run(path, model=model, out=str(tmp_path / f"{kind}.zarr"), blend="gaussian", **options)
        for kind, path in zip(("npy", "zarr"), paths, strict=True)
    ]
    assert files(tmp_path / "npy.zarr") == files(tmp_path / "zarr.zarr")
    assert results[0].digest == results[1].digest
    assert results[0].voxels > 0


def test_it_serves_as_a_mask_too(npy, tmp_path):
    _, volume = stored_twice(tmp_path, RNG.integers(1, 99, (20, 22, 24), np.uint8))
    (tmp_path / "mask").mkdir()
    masks = stored_twice(tmp_path / "mask", RNG.integers(0, 2, (20, 22, 24), np.uint8))
    model = fake_model(tmp_path, empty=[0.0])
    for name, mask in zip(("a.zarr", "b.zarr"), masks, strict=True):
        unet_engine.run(volume, model=model, mask=mask, out=str(tmp_path / name), output="logits")
    assert files(tmp_path / "a.zarr") == files(tmp_path / "b.zarr")


def test_every_command_takes_it(npy, tmp_path):
    path, _ = stored_twice(tmp_path, RNG.integers(0, 99, (20, 22, 24), np.uint8))
    told = cli("info", path, "--json").json
    assert {**told, "volume": None} == {
        "volume": None, "axes": "zyx", "shape": [20, 22, 24], "dtype": "uint8", "chunks": [8, 8, 8],
        "bytes": 20 * 22 * 24, "channels": 1, "spacing": None, "unit": None,
        "sampled_range": [0, 98], "sampled_mean": pytest.approx(49, abs=1),
    }  # fmt: skip
    planned = cli("plan", "--in", path, "--model", fake_model(tmp_path))
    assert planned.code == 0, planned.err
    assert "20×22×24 uint8" in planned.out


def test_times_of_a_format_that_does_not_tell_them_apart(npy, tmp_path):
    path, _ = stored_twice(tmp_path, np.ones((8, 8, 8)))
    recorder = Stages()
    open_volume(path).read(Box.of_shape((8, 8, 8)), recorder)
    assert [stage for stage, ns in enumerate(recorder.track().ns) if ns] == [READ_DECODE]


def test_what_cannot_be_read_is_named_by_its_chunk(npy, tmp_path, monkeypatch):
    path, _ = stored_twice(tmp_path, np.ones((8, 20, 8)))
    real = NpyVolume.stored

    def broken(self, selection):
        if selection[1].stop > 16:
            raise OSError("bad sector")
        return real(self, selection)

    monkeypatch.setattr(NpyVolume, "stored", broken)
    with pytest.raises(DataError, match=r"chunk z=0 y=2 x=0 \(voxels .*\) cannot be read: bad sector; restore it"):
        open_volume(path).read(Box.of_shape((8, 20, 8)))


def counted(shape, dtype):
    return (np.arange(np.prod(shape)) * 7919 % 251).reshape(shape).astype(dtype)


@pytest.mark.parametrize(
    ("array", "options", "fingerprint"),
    [
        (counted((20, 30, 40), "uint8"), {}, "0861199b6139a9a0"),
        (counted((120, 130, 140), ">i2"), {"zarr_format": 2, "chunks": (32, 40, 48), "order": "F"}, "1d8d621d494136b4"),
        (counted((40, 2, 30), "float32"), {"axes": "ycx"}, "348391d0166fa029"),
    ],
)
def test_a_fingerprint_is_the_same_in_every_version(tmp_path, array, options, fingerprint):
    """Outputs and verdicts keep it: one that changed would refuse to resume them."""
    volume = open_volume(make_volume(tmp_path / "v.zarr", array, **options))
    assert samples.fingerprint(volume) == fingerprint


def test_samples_are_read_once_and_go_with_the_volume(npy, tmp_path, monkeypatch):
    path, _ = stored_twice(tmp_path, np.ones((8, 20, 8)))
    volume, read = open_volume(path), []
    real = NpyVolume.read
    monkeypatch.setattr(NpyVolume, "read", lambda self, box: read.append(box) or real(self, box))
    assert samples.values(volume) is samples.values(volume)
    assert len(list(samples.boxes(volume))) == 3
    assert sum(box.size for box in read) == 8 * 20 * 8
    del volume
    assert all(v.path != path for v in samples._READ)
