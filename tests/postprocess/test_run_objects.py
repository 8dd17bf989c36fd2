"""Runs that end in objects: the numbers of what is connected in the labels that the same run would give."""

import json

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.objects import numbered
from support.outputs import chunks
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import OutputError, ResumeError, SettingsError
from unet_engine.execution import hands
from unet_engine.output.header import written_outside

OPTIONS = {"blend": "crop"}


@pytest.fixture
def case(tmp_path):
    """A volume of two channels, a network whose labels are which is larger, and these labels."""
    from scipy import ndimage

    rng = np.random.default_rng(4)
    scan = np.stack([ndimage.gaussian_filter(rng.random((20, 24, 28)), 1.5) for _ in range(3)])
    scan[0] += 0.01
    volume = make_volume(
        tmp_path / "scan.zarr", scan.astype("f4"), ome="0.5", axes="czyx", chunks=(1, 8, 8, 8), scale=(1, 2, 0.5, 0.5),
        unit="micrometer",
    )  # fmt: skip
    model = fake_model(tmp_path, channels_in=3, channels_out=3, activation="softmax", classes=["none", "a", "b"])
    labels = result_of(unet_engine.run(volume, model=model, out=str(tmp_path / "labels.zarr"), **OPTIONS).out)
    assert len(np.unique(labels)) == 3
    return volume, model, labels


def left(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_objects_in_place_of_labels(tmp_path, case):
    volume, model, labels = case
    out = tmp_path / "o.zarr"
    said = cli("run", "--in", volume, "--model", model, "--out", out, "--blend", "crop", "--components",
               "--connectivity", "26", "--min-size", "4", "--fill-holes", "--largest", "9", "--json")  # fmt: skip
    assert said.code == 0, said.err
    expected, kinds = numbered(labels, 26, min_size=4, fill_holes=True, largest=9)
    np.testing.assert_array_equal(result_of(out), expected)
    assert said.json["objects"] == len(kinds) - 1
    assert left(tmp_path) == []
    header = zarr.open_group(out).attrs["unet_engine"]
    assert (header["output"], header["classes"], header["input"]) == ("objects", ["none", "a", "b"], volume)
    assert header["model"]["name"] == "id"
    again = cli("run", "--in", volume, "--model", model, "--out", out, "--blend", "crop", "--components",
                "--connectivity", "26", "--min-size", "4", "--fill-holes", "--largest", "9", "--resume")  # fmt: skip
    assert (again.code, "already complete" in again.err) == (0, True)
    assert cli("table", out, tmp_path / "t.csv").code == 0
    rows = (tmp_path / "t.csv").read_text().splitlines()
    assert len(rows) == len(kinds)
    assert "mean_intensity_0" in rows[0]


def test_of_a_region(tmp_path, case):
    volume, model, labels = case
    roi = "3:17,5:20,2:23"
    out = unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"), components=True, roi=roi, **OPTIONS).out
    part = labels[3:17, 5:20, 2:23]
    expected, _ = numbered(part, 6)
    np.testing.assert_array_equal(result_of(out), expected)
    said = cli("table", out, tmp_path / "t.csv")
    assert said.code == 0, said.err
    scan = zarr.open_group(volume)["0"][1, 3:17, 5:20, 2:23]
    row = dict(zip(*[line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines()[:2]], strict=True))
    assert float(row["mean_intensity_1"]) == pytest.approx(scan[expected == 1].mean(dtype=np.float64))
    z = np.argwhere(expected == 1)[:, 0].mean()
    assert float(row["centroid_z"]) == pytest.approx((z + 3) * 2)


def test_what_is_written_outside_is_no_object(tmp_path, case):
    """255 tells what was not measured from all classes, in `run --components` and in labels that are read again."""
    volume, model, labels = case
    inside = np.ones(labels.shape, np.uint8)
    inside[:6, :9] = 0
    options = {**OPTIONS, "mask": make_volume(tmp_path / "mask.zarr", inside), "outside": "255"}
    expected, kinds = numbered(labels * inside, 6)
    out = unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"), components=True, **options).out
    np.testing.assert_array_equal(result_of(out), expected)
    assert written_outside(zarr.open_group(out).attrs["unet_engine"], labels=True) == ()  # 255 may be an object
    before = unet_engine.run(volume, model=model, out=str(tmp_path / "l.zarr"), **options).out
    assert cli("components", before, tmp_path / "again.zarr").code == 0
    np.testing.assert_array_equal(result_of(tmp_path / "again.zarr"), expected)
    assert cli("components", before, tmp_path / "all.zarr", "--nodata", "none").code == 0
    assert result_of(tmp_path / "all.zarr").max() == len(kinds)


def test_a_run_killed_while_it_numbers_goes_on(tmp_path, case, monkeypatch):
    volume, model, labels = case
    options = {"model": model, "out": str(tmp_path / "o.zarr"), "components": True, **OPTIONS}
    rounds = []

    def each(self, do, items):
        rounds.append(do)
        if len(rounds) == 2:
            raise KeyboardInterrupt
        for item in items:
            do(item)

    with monkeypatch.context() as patch:
        patch.setattr(hands.Here, "each", each)
        with pytest.raises(KeyboardInterrupt):
            unet_engine.run(volume, **options)
    assert left(tmp_path) == [".o.zarr.unet-engine-labels"]
    with pytest.raises(OutputError, match="--resume"):
        unet_engine.run(volume, **options)
    with pytest.raises(ResumeError, match="components"):
        unet_engine.run(volume, **options, min_size=3, resume=True)
    result = unet_engine.run(volume, **options, resume=True)
    assert result.windows_inferred == 0
    np.testing.assert_array_equal(result_of(result.out), numbered(labels, 6)[0])
    assert left(tmp_path) == []


def test_overwriting_replaces_what_was_there(tmp_path, case):
    volume, model, labels = case
    options = {"model": model, "out": str(tmp_path / "o.zarr"), "components": True, **OPTIONS}
    unet_engine.run(volume, **options)
    with pytest.raises(OutputError, match="--overwrite"):
        unet_engine.run(volume, **options)
    with pytest.raises(ResumeError, match="another run"):
        unet_engine.run(volume, **options, min_size=5, resume=True)
    unet_engine.run(volume, **options, min_size=5, overwrite=True)
    np.testing.assert_array_equal(result_of(tmp_path / "o.zarr"), numbered(labels, 6, min_size=5)[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thing").write_text("kept")
    with pytest.raises(OutputError, match="not an output"):
        unet_engine.run(volume, **{**options, "out": str(tmp_path / "mine")}, overwrite=True)
    assert (tmp_path / "mine" / "thing").read_text() == "kept"


def test_as_a_file_of_another_format(tmp_path, case):
    nibabel = pytest.importorskip("nibabel")
    volume, model, labels = case
    out = tmp_path / "o.nii.gz"
    options = {"model": model, "out": str(out), "components": True, **OPTIONS}
    unet_engine.run(volume, **options)
    found = np.asarray(nibabel.load(out).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(found, numbered(labels, 6)[0])
    assert left(tmp_path) == []
    assert any("already complete" in note for note in unet_engine.run(volume, **options, resume=True).notes)


@pytest.mark.slow
def test_workers_give_the_same_bytes(tmp_path, case):
    pytest.importorskip("distributed")
    volume, model, _ = case
    options = {"model": model, "components": True, **OPTIONS}
    alone = unet_engine.run(volume, out=str(tmp_path / "a.zarr"), **options)
    crowd = unet_engine.run(volume, out=str(tmp_path / "b.zarr"), workers=2, **options)
    assert chunks(alone.out) == chunks(crowd.out)


@pytest.mark.parametrize("name", ["b.zarr", "b.npy"])
def test_parts_end_in_the_same_objects_and_the_last_one_numbers_them(tmp_path, case, name):
    volume, model, _ = case
    options = {"model": model, "components": True, "min_size": 3, **OPTIONS}
    whole = unet_engine.run(volume, out=str(tmp_path / "a.zarr"), **options)
    parts = {i: {"out": str(tmp_path / name), "part": f"{i}/3", **options} for i in (1, 2, 3)}
    assert not any(unet_engine.run(volume, **parts[i]).complete for i in (2, 1))
    assert not (tmp_path / name).exists()
    last = unet_engine.run(volume, **parts[3])
    assert (last.complete, last.objects) == (True, whole.objects)
    found = result_of(last.out) if name == "b.zarr" else np.load(tmp_path / name)
    np.testing.assert_array_equal(found, result_of(whole.out))
    assert left(tmp_path) == []
    assert unet_engine.run(volume, **parts[1]).complete


def test_of_two_parts_that_end_at_once_one_numbers_and_the_other_waits(tmp_path, case, monkeypatch):
    from unet_engine.execution import objects

    volume, model, _ = case
    options = {"model": model, "components": True, "out": str(tmp_path / "o.zarr"), **OPTIONS}
    components = objects.components

    def faster(*given, **named):
        components(*given, **named)
        raise OutputError("it is being written by another process")

    monkeypatch.setattr(objects, "components", faster)
    unet_engine.run(volume, part="1/2", **options)
    done = unet_engine.run(volume, part="2/2", **options)
    assert done.complete
    assert done.objects == result_of(done.out).max()
    monkeypatch.setattr(objects, "PATIENCE", 0.0)

    def slower(*given, **named):
        raise OutputError("no room")

    monkeypatch.setattr(objects, "components", slower)
    with pytest.raises(OutputError, match="no room"):
        unet_engine.run(volume, part="1/1", **{**options, "out": str(tmp_path / "p.zarr")})


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"min_size": 3}, "--components"), ({"components": True, "output": "probabilities"}, "labels"),
        ({"components": True, "connectivity": 8}, "6, 18, 26"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path, case, options, word):
    volume, model, _ = case
    with pytest.raises(SettingsError, match=word):
        unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"), **options)
    assert not (tmp_path / "o.zarr").exists()
    assert json.dumps(left(tmp_path)) == "[]"
