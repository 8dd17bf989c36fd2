"""All time points of a volume by one command, into a bucket: what they are on a disk, and whatever stops on the way, a
resume ends in the same."""

import numpy as np
import pytest

import unet_engine
from support.images import series
from support.s3 import keys, laboratory, upload
from support.volumes import fake_model
from unet_engine.batches import times as module
from unet_engine.errors import InputError, OutputError, ResumeError
from unet_engine.plan.box import Box
from unet_engine.storage import patience
from unet_engine.volumes.formats import open_stored
from unet_engine.volumes.pick import Pick

OUT = "s3://lab/out/o.zarr"


@pytest.fixture
def lab(monkeypatch, tmp_path):
    with laboratory(monkeypatch, tmp_path) as found:
        yield found


@pytest.fixture
def case(tmp_path):
    return series(tmp_path / "scan.zarr"), fake_model(tmp_path, channels_in=2, channels_out=2, activation="softmax")


def run(case, out=OUT, **options):
    return unet_engine.run(case[0], model=case[1], out=out and str(out), blend="crop", timepoint="1:3", **options)


def voxels(path):
    volume = open_stored(str(path))
    return np.stack([volume.picked(Pick(t)).read(Box.of_shape(volume.shape))[0] for t in range(volume.timepoints)])


@pytest.mark.slow
def test_they_are_those_of_a_disk(lab, tmp_path, case):
    proxy, client = lab
    here = run(case, tmp_path / "o.zarr", pyramid=True, levels=2)
    proxy.fault = lambda number, method, path: ("503", "lost", "cut")[number % 3] if number % 5 == 0 else None
    result = run(case, pyramid=True, levels=2)
    proxy.fault = lambda *_: None
    assert (result.out, result.windows_inferred) == (OUT, here.windows_inferred)
    files = {
        str(p.relative_to(tmp_path / "o.zarr")): p.read_bytes() for p in (tmp_path / "o.zarr").rglob("*") if p.is_file()
    }
    assert set(keys(client)) == {f"out/o.zarr/{name}" for name in files}
    for name, data in files.items():
        if "/c/" in name:
            assert client.get_object(Bucket="lab", Key=f"out/o.zarr/{name}")["Body"].read() == data, name
    volume, other = open_stored(OUT), open_stored(here.out)
    assert (volume.axes, volume.spacing, volume.timepoints) == (other.axes, other.spacing, other.timepoints)
    assert run(case, pyramid=True, levels=2, resume=True).already_complete


@pytest.mark.slow
def test_what_is_there_is_kept_or_replaced_as_on_a_disk(lab, tmp_path, case):
    run(case)
    with pytest.raises(OutputError, match="--overwrite"):
        run(case)
    with pytest.raises(ResumeError, match="other settings"):
        run(case, resume=True, overlap=0.25)
    run(case, overwrite=True, overlap=0.25)
    np.testing.assert_array_equal(voxels(OUT), voxels(run(case, tmp_path / "o.zarr", overlap=0.25).out))


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [True, False])
def test_whatever_moment_it_stops_a_resume_ends_in_the_same(lab, tmp_path, case, monkeypatch, replaced):
    """From some request on nothing is answered any more, while time points are put together."""
    proxy, client = lab
    whole = voxels(run(case, tmp_path / "whole.zarr").out)
    if replaced:
        run(case, overlap=0.25)
        earlier = voxels(OUT)
    assemble, steps = module._assemble, [0]
    overwrite, states = replaced, set()

    def stopped(*given, **named):
        left = iter(range(steps[0]))
        proxy.fault = lambda _, method, __: (
            "drop" if method in ("PUT", "DELETE", "POST") and next(left, None) is None else None
        )
        monkeypatch.setenv(patience.SECONDS, "0")
        try:
            assemble(*given, **named)
        finally:
            proxy.fault = lambda *_: None
            monkeypatch.setenv(patience.SECONDS, "5")

    monkeypatch.setattr(module, "_assemble", stopped)
    while True:
        steps[0] += 12 if replaced else 3  # a new one takes few requests
        try:
            run(case, overwrite=overwrite, resume=not overwrite and steps[0] > (12 if replaced else 3))
            break
        except OutputError:
            overwrite = False  # what was begun is resumed
        try:
            found = voxels(OUT)
        except InputError:
            states.add("none")
        else:
            same = [np.array_equal(found, one) for one in ([earlier, whole] if replaced else [whole])]
            assert any(same)
            states.add("some")
    assert "none" in states
    np.testing.assert_array_equal(voxels(OUT), whole)
    assert all(key.startswith("out/o.zarr/") for key in keys(client))
    assert run(case, resume=True).already_complete


@pytest.mark.slow
def test_into_an_image_in_a_bucket(lab, tmp_path, case):
    _, client = lab
    upload(client, tmp_path / "scan.zarr", "scan.zarr")
    here = run(case, None, into="cells")
    there = run(("s3://lab/scan.zarr", case[1]), None, into="cells")
    assert there.out == "s3://lab/scan.zarr/labels/cells"
    np.testing.assert_array_equal(voxels(there.out), voxels(here.out))
    assert all(key.startswith("scan.zarr/") for key in keys(client))
    assert run(("s3://lab/scan.zarr", case[1]), None, into="cells", resume=True).already_complete
