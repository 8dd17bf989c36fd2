"""Statistics of every voxel: the same as NumPy's of the whole array, of any type, however the array is stored."""

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_engine.errors import DataError, SettingsError
from unet_engine.model.normalization import Normalization
from unet_engine.plan.box import Box
from unet_engine.volumes import pieces, samples
from unet_engine.volumes.formats import open_volume
from unet_engine.volumes.keys import Keys
from unet_engine.volumes.normalize import scaling

WAYS = (
    "zscore:whole", "minmax:whole", "percentile:1,99,whole", "percentile:0.5,99.5,clip,whole", "zscore:clip=2%:90%,whole",
    "zscore:clip=-20:60,whole", "zscore:foreground,whole", "zscore:foreground=3,eps=0.001,whole", "minmax:together,whole",
    "zscore:together,whole", "zscore:clip=5%:90%,clip_of=all,whole", "minmax:together,clip=5%:90%,clip_of=each,whole",
    "zscore:together,clip=5%:90%,clip_of=each,whole", "percentile:2,98,clip=5%:80%,measured_of=clipped,whole",
    "zscore:clip=5%:100%,clip=-1:60,measured_of=raw,whole", "zscore:whole;percentile:2,98,whole",
)  # fmt: skip
TYPES = ("bool", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "float16", "float32", "float64")


def _volume(tmp_path, values, chunks=(1, 5, 7, 6)):
    path = tmp_path / "v.zarr"
    array = zarr.create_array(
        str(path), shape=values.shape, dtype=values.dtype, chunks=chunks, dimension_names=[*"czyx"], overwrite=True
    )
    array[...] = values
    return open_volume(str(path))


def _values(dtype, shape=(2, 13, 17, 11)):
    random = np.random.default_rng(5)
    values = np.where(random.random(shape) < 0.3, 0, random.normal(20, 30, shape))
    if dtype == "bool":
        return values > 10
    info = None if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    return (values if info is None else np.clip(values, info.min, info.max)).astype(dtype)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TYPES)
def test_as_numpy_has_it_of_the_whole_array(tmp_path, monkeypatch, way, dtype):
    if dtype == "bool" and ("clip" in way or "foreground" in way):
        pytest.skip("nothing is left of it")
    monkeypatch.setattr(pieces, "PIECE", 300)  # many pieces
    values = _values(dtype)
    normalization = Normalization.parse(way)
    found = samples.scaling_of(_volume(tmp_path, values), normalization)
    wanted = scaling(normalization, list(values.astype(np.float64)))
    np.testing.assert_allclose(found.shift, wanted.shift, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.scale, wanted.scale, rtol=1e-9)
    np.testing.assert_allclose(found.clip or 0, wanted.clip or 0, rtol=1e-9, atol=1e-9)
    assert (found.void, found.voids) == (wanted.void, wanted.voids)


def test_a_large_volume_is_measured_and_not_sampled(tmp_path, monkeypatch):
    """A bright corner that no sample meets counts."""
    monkeypatch.setattr(samples, "SAMPLES", 2)
    monkeypatch.setattr(samples, "SAMPLE_VOXELS", 64)
    values = np.zeros((1, 40, 40, 40), np.int16)
    values[0, :8, :8, :8] = 1000
    values[0, 20:] = 3
    volume = _volume(tmp_path, values, (1, 8, 8, 8))
    assert samples.scaling_of(volume, Normalization.parse("zscore:whole")).shift == (values.mean(),)
    assert samples.scaling_of(volume, Normalization.parse("minmax:whole")).scale == (1 / 1000,)
    assert samples.values(volume)[0].max() < 1000


def test_what_was_not_measured_or_is_not_finite_is_left_out(tmp_path):
    values = _values("float32")
    values[0, 3] = np.nan
    values[1, 0, 0, 0] = np.inf
    values[:, 5] = -9999
    found = samples.scaling_of(
        _volume(tmp_path, values).with_missing(((-9999.0,),) * 2), Normalization.parse("zscore:whole")
    )
    for channel, mean, scale in zip(values.astype(np.float64), found.shift, found.scale, strict=True):
        kept = channel[np.isfinite(channel) & (channel != -9999)]
        np.testing.assert_allclose((mean, 1 / scale), (kept.mean(), kept.std()), rtol=1e-9)


def test_a_channel_without_foreground_is_named(tmp_path):
    values = _values("int16")
    values[1] = 0
    with pytest.raises(DataError, match=r"channel 1 of .*no voxel of the foreground.*use range:LOW,HIGH"):
        samples.scaling_of(_volume(tmp_path, values), Normalization.parse("zscore:foreground,whole"))


def test_whole_is_said_of_what_is_measured():
    assert str(Normalization.parse("percentile:1,99,whole")) == "percentile:1,99,whole"
    assert "whole" not in Normalization.parse("zscore").model_dump()
    with pytest.raises(SettingsError, match="whole is said of what is measured"):
        Normalization.parse("range:0,255,whole")


@pytest.mark.hypothesis
@settings(deadline=None)
@given(st.sampled_from(TYPES[1:]), st.data())
def test_keys_lie_as_values_do(dtype, data):
    kind = np.dtype(dtype).kind
    drawn = (
        st.floats(allow_nan=False, width=8 * np.dtype(dtype).itemsize)
        if kind == "f"
        else st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    )
    values = np.sort(np.array(data.draw(st.lists(drawn, min_size=1, max_size=20)), dtype))
    keys = Keys(np.dtype(dtype))
    found = keys.of(values)
    assert (found[1:] >= found[:-1]).all()
    assert [keys.value(int(key)) for key in found] == [float(v) for v in values]


def test_pieces_are_the_box(tmp_path):
    volume = _volume(tmp_path, _values("uint8"))
    seen = np.zeros(volume.shape, int)
    box = Box((2, 0, 3), (12, 16, 11))
    for tile in pieces.pieces(volume, box):
        seen[tile.slices()] += 1
    assert seen[box.slices()].min() == seen.max() == 1
    assert seen.sum() == box.size
