"""Which image, level, time point and channels are meant, in commands beside run; and masks over time."""

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume, open_meant, result_of
from unet_engine.commands.bench import command as bench
from unet_engine.errors import InputError, SettingsError
from unet_engine.model.shipped import shipped_model
from unet_engine.volumes.pick import ANYTHING, Meant

SCAN = np.random.default_rng(1).random((3, 2, 40, 40)).astype("f4")
MEANT = Meant("B", 1, 2, "1")


@pytest.fixture
def collection(tmp_path):
    """Two images with two levels, three time points and two channels each."""
    root = zarr.create_group(tmp_path / "all.zarr", zarr_format=3)
    root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    root.create_group("OME").attrs["ome"] = {"version": "0.5", "series": ["A", "B"]}
    for number, name in enumerate("AB"):
        image = root.create_group(name)
        for level in (0, 1):
            image.create_array(str(level), data=number + SCAN[:, :, :: 1 + level, :: 1 + level])
        image.attrs["ome"] = {"version": "0.5", "multiscales": [{
            "axes": [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"},
                     *({"name": a, "type": "space"} for a in "yx")],
            "datasets": [{"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 1 + k, 1 + k]}]}
                         for k in (0, 1)]}]}  # fmt: skip
    return str(tmp_path / "all.zarr")


def test_all_of_it(collection):
    volume = open_meant(collection, None, MEANT)
    assert (volume.shape, volume.channels) == ((20, 20), 1)
    assert MEANT.options == ("--image", "B", "--level", "1", "--timepoint", "2", "--input-channels", "1")
    assert ANYTHING.options == ()
    with pytest.raises(InputError, match="name one"):
        open_meant(collection, None, ANYTHING)


def test_bench_measures_and_offers_what_is_meant(collection, tmp_path):
    model = fake_model(tmp_path, axes="yx", channels_in=1, channels_out=1, window=(8, 8))
    subject = bench.own_subject(bench.Request(model, collection, meant=MEANT), lambda _: None)
    assert subject.volume.shape == (20, 20)
    assert " ".join(MEANT.options) in " ".join(subject.options)
    with pytest.raises(SettingsError, match="--image"):
        bench.bench(bench.Request(meant=MEANT), lambda _: None)


def test_quantize_calibrates_on_what_is_meant(collection):
    model = str(shipped_model("cells_2d.onnx"))
    few = ("--windows", 2, "--held-out", 2, "--window", "16,16")
    told = cli("quantize", model, "--calibrate", collection, *few)
    assert (told.code, "name one" in told.err) == (3, True)
    told = cli("quantize", model, "--calibrate", collection, *few, "--image", "B", "--level", 7, "--timepoint", 0)
    assert (told.code, "--level 7" in told.err) == (3, True)
    told = cli(
        "quantize", model, "--calibrate", collection, *few, "--image", "B", "--timepoint", 0, "--input-channels", "9"
    )
    assert (told.code, "--input-channels" in told.err) == (3, True)


def test_a_mask_over_time_is_taken_at_the_time_of_the_scan(tmp_path):
    scan, mask = (np.zeros((2, 8, 8, 8), t) for t in ("f4", "u1"))
    scan[:] = 1
    mask[0, :4], mask[1, 4:] = 1, 1
    volume = make_volume(tmp_path / "scan.zarr", scan, ome="0.5", axes="tzyx", chunks=(1, 8, 8, 8))
    over = make_volume(tmp_path / "mask.zarr", mask, ome="0.5", axes="tzyx", chunks=(1, 8, 8, 8))
    model = fake_model(tmp_path)
    for time in (0, 1):
        out = unet_engine.run(
            volume,
            model=model,
            mask=over,
            timepoint=time,
            output="logits",
            outside="7",
            out=str(tmp_path / f"{time}.zarr"),
        ).out
        np.testing.assert_array_equal(result_of(out)[0], np.where(mask[time], 1, 7))
