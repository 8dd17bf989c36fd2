"""The table of objects is what counting voxel by voxel gives, in the world's coordinates."""

import csv
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.execution.hands import Here
from unet_engine.plan.box import Box
from unet_engine.postprocess.base import Boxes
from unet_engine.postprocess.runs import Runs
from unet_engine.postprocess.source import Source
from unet_engine.postprocess.table import Table, added, merged, table

MULTISCALES = {"ome": "0.5", "axes": "zyx", "scale": (2.0, 0.5, 0.25), "translation": (10.0, -3.0, 7.0)}


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(labels, image, spacing, translation):
    """Of each number what a person would count."""
    found = {}
    for number in np.unique(labels[labels > 0]).tolist():
        at = np.argwhere(labels == number)
        world = at * spacing + translation
        found[number] = {
            "voxels": len(at),
            "centroid": world.mean(0)[::-1],
            "min": (world.min(0) - np.abs(spacing) / 2)[::-1],
            "max": (world.max(0) + np.abs(spacing) / 2)[::-1],
            "box": np.stack([at.min(0), at.max(0) + 1], 1).reshape(-1),
            "mean": image[labels == number].mean(),
        }
    return found


@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([2, 3]), kind=st.sampled_from(["u1", "i2", "f4"]))
@settings(max_examples=25, deadline=None)
def test_sums_of_boxes_come_to_those_of_the_whole(seed, n, kind, tmp_path_factory):
    rng = np.random.default_rng(seed)
    shape, block = tuple(rng.integers(1, 9, n)), tuple(rng.integers(1, 5, n))
    labels = rng.integers(0, 4, shape).astype("u4") * rng.integers(1, 2**30)
    image = rng.integers(0, 100, shape).astype(kind)
    folder = tmp_path_factory.mktemp("table")
    one = Source.of(make_volume(folder / "l.zarr", labels))
    other = Source.of(make_volume(folder / "i.zarr", image))
    work = Table(one, Boxes(shape, block), other, (0,) * n)
    sums = merged(list(work.reduce([(index, work.look(index, box)) for index, box in work.boxes])))
    expected = by_hand(labels, image.astype(np.float64), np.ones(n), np.zeros(n))
    assert sums["id"].tolist() == list(expected)
    for i, facts in enumerate(expected.values()):
        assert sums["voxels"][i] == facts["voxels"]
        np.testing.assert_array_equal(np.stack([sums["lo"][i], sums["hi"][i]], 1).reshape(-1), facts["box"])
        np.testing.assert_allclose(sums["sum"][i][::-1] / facts["voxels"], facts["centroid"])
        np.testing.assert_allclose(sums["image"][i, 0] / facts["voxels"], facts["mean"])


def small(tmp_path):
    rng = np.random.default_rng(5)
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[0:3, 1:4, 2:7], labels[4:6, 5:7, 0:3], labels[4, 0, 7] = 1, 2, 1
    image = rng.integers(0, 1000, labels.shape).astype(np.uint16)
    return labels, image, make_volume(tmp_path / "l.zarr", labels, chunks=(2, 3, 4), unit="micrometer", **MULTISCALES)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_in_units_and_world_coordinates(tmp_path, ending):
    labels, image, path = small(tmp_path)
    scan = make_volume(tmp_path / "scan.zarr", image)
    out = tmp_path / f"t.{ending}"
    said = cli("table", path, out, "--intensity", scan, "--json")
    assert (said.code, said.json["objects"]) == (0, 2), said.err
    if ending == "csv":
        found = rows(out)
    else:
        from pyarrow import parquet

        found = parquet.read_table(out).to_pylist()
    expected = by_hand(labels, image, np.array([2, 0.5, 0.25]), np.array([10.0, -3, 7]))
    assert [int(row["id"]) for row in found] == [1, 2]
    for row, facts in zip(found, expected.values(), strict=True):
        assert int(row["voxels"]) == facts["voxels"]
        assert float(row["volume"]) == facts["voxels"] * 0.25
        assert row["unit"] == "micrometer"
        for i, a in enumerate("xyz"):
            assert float(row[f"centroid_{a}"]) == pytest.approx(facts["centroid"][i])
            assert float(row[f"min_{a}"]) == pytest.approx(facts["min"][i])
            assert float(row[f"max_{a}"]) == pytest.approx(facts["max"][i])
        assert [int(row[f"voxel_{a}{e}"]) for a in "zyx" for e in "01"] == facts["box"].tolist()
        assert float(row["mean_intensity"]) == pytest.approx(facts["mean"])


def test_objects_of_a_turned_scan_lie_where_its_header_says(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels, _, _ = small(tmp_path)
    affine = np.array([[0, -2.0, 0.3, 5], [1.5, 0, 0, -7], [0, 0.4, 3, 11], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "l.nii")
    assert cli("table", tmp_path / "l.nii", tmp_path / "t.csv").code == 0
    for row, number in zip(rows(tmp_path / "t.csv"), (1, 2), strict=True):
        ijk = np.argwhere(labels.transpose(2, 1, 0) == number)
        centre = nibabel.affines.apply_affine(affine, ijk.mean(0))
        corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
        ends = np.stack([ijk.min(0), ijk.max(0)])
        box = np.array([[ends[i, 0], ends[j, 1], ends[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        world = nibabel.affines.apply_affine(affine, (box[:, None] + corners[None]).reshape(-1, 3))
        np.testing.assert_allclose([float(row[f"centroid_{a}"]) for a in "xyz"], centre, rtol=1e-5)
        np.testing.assert_allclose([float(row[f"min_{a}"]) for a in "xyz"], world.min(0), rtol=1e-5)
        np.testing.assert_allclose([float(row[f"max_{a}"]) for a in "xyz"], world.max(0), rtol=1e-5)
        assert float(row["volume"]) == pytest.approx(len(ijk) * abs(np.linalg.det(affine[:3, :3])), rel=1e-5)


def test_sums_of_large_numbers_are_exact(tmp_path):
    labels = np.ones((4, 4), np.uint8)
    image = np.full((4, 4), 2**31 - 1, np.int32)
    image[0, 0] = 2**31 - 17  # lost in single precision
    work = Table(Source.of(make_volume(tmp_path / "l", labels)), Boxes((4, 4), (2, 2)),
                 Source.of(make_volume(tmp_path / "i", image)), (0, 0))  # fmt: skip
    sums = merged(list(work.reduce([(index, work.look(index, box)) for index, box in work.boxes])))
    assert sums["image"][0, 0] == image.astype(object).sum()
    assert work.look((0, 0), Box((0, 0), (4, 4)))["sum"].tolist() == [[24, 24]]


def test_a_table_that_was_killed_goes_on(tmp_path, monkeypatch):
    _, image, path = small(tmp_path)
    monkeypatch.setattr("unet_engine.postprocess.table.VOXELS", 64)
    scan = make_volume(tmp_path / "scan.zarr", image)
    table(Source.of(path), str(tmp_path / "whole.csv"), Here(), image=Source.of(scan))
    looks = []

    class Dying(Here):
        def each(self, do, items):
            for item in items:
                if len(looks) == 3:
                    raise KeyboardInterrupt
                looks.append(item)
                do(item)

    with pytest.raises(KeyboardInterrupt):
        table(Source.of(path), str(tmp_path / "t.csv"), Dying(), image=Source.of(scan))
    assert not (tmp_path / "t.csv").exists()
    again = []

    class Counting(Here):
        def each(self, do, items):
            items = list(items)
            again.extend(items)
            super().each(do, items)

    table(Source.of(path), str(tmp_path / "t.csv"), Counting(), image=Source.of(scan))
    assert len(again) > 0
    assert not {index for index, _ in looks} & {index for index, _ in again}
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.zarr", "scan.zarr", "t.csv", "whole.csv"]


def test_a_chunk_that_changed_between_two_attempts_is_looked_at_again(tmp_path):
    _, _, path = small(tmp_path)
    stored = zarr.open_group(path, mode="r+")["0"]

    class Dying(Here):
        def each(self, do, items):
            super().each(do, list(items)[:-1])
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_engine.postprocess.table.VOXELS", 64)
        with pytest.raises(KeyboardInterrupt):
            table(Source.of(path), str(tmp_path / "t.csv"), Dying())
        assert (tmp_path / ".t.csv.unet-engine").is_dir()
        source = Source.of(path)
        stored[0:2, 0:3, 0:4] = 9  # where no sample of the fingerprint was
        table(source, str(tmp_path / "t.csv"), Here())
    assert [int(row["voxels"]) for row in rows(tmp_path / "t.csv")] == [38, 12, 24]


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ({"nodata": -99}, [[10, 10], [7, np.nan]]),
        ({"nodatavals": [-99, None]}, [[10, 10], [7, -99]]),
        ({}, [[-44.5, 10], [-46, -99]]),
    ],
)
def test_means_are_over_what_was_measured(tmp_path, said, means):
    labels = np.repeat(np.array([1, 2], np.uint8), 32).reshape(2, 4, 8)
    image = np.stack([np.where(labels == 1, 10, 7), np.where(labels == 1, 10, -99)]).astype("i2")
    image[0, :, :2] = -99
    make_volume(tmp_path / "i.zarr", image, axes="czyx", attributes=said)
    path = make_volume(tmp_path / "l.zarr", labels)
    assert cli("table", path, tmp_path / "t.csv", "--intensity", tmp_path / "i.zarr").code == 0
    found = [[float(row[f"mean_intensity_{c}"]) for c in (0, 1)] for row in rows(tmp_path / "t.csv")]
    np.testing.assert_array_equal(found, means)


def test_means_leave_out_what_the_run_was_told_and_what_alpha_says(tmp_path):
    image = np.full((2, 4, 8), 10, "i2")
    image[:, :2], image[:, 3] = -99, 6
    path = make_volume(tmp_path / "l.zarr", np.ones((2, 4, 8), np.uint8), ome="0.5", axes="zyx")
    scan = make_volume(tmp_path / "i.zarr", image)
    header = {"output": "labels", "complete": True, "input": scan, "outside": {"nodata": ["-99"]}}
    zarr.open_group(path, mode="r+").attrs["unet_engine"] = header
    assert cli("table", path, tmp_path / "t.csv").code == 0
    assert float(rows(tmp_path / "t.csv")[0]["mean_intensity"]) == 8
    alpha = np.stack([image, np.where(image == 6, 0, 255)])
    seen = make_volume(tmp_path / "a.zarr", alpha, axes="czyx", attributes={"color_interp": ["gray", "alpha"]})
    assert cli("table", path, tmp_path / "t.csv", "--intensity", seen, "--nodata", "none", "--overwrite").code == 0
    assert float(rows(tmp_path / "t.csv")[0]["mean_intensity"]) == pytest.approx((-99 * 2 + 10) / 3)


@pytest.mark.parametrize("name", ["o.zarr", "o.nii.gz"])
def test_the_image_lies_as_the_run_was_told(tmp_path, name):
    """Of a cube nothing but its axes tells how it lies: intensities were those of other voxels."""
    image = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    np.save(tmp_path / "i.npy", image)
    model, out = fake_model(tmp_path, activation="sigmoid"), tmp_path / name
    said = cli(
        "run", "--in", tmp_path / "i.npy", "--model", model, "--out", out, "--axes", "yxz", "--normalize", "none"
    )
    assert said.code == 0, said.err
    for number, more in enumerate(([], ["--intensity", tmp_path / "i.npy"])):
        assert cli("table", out, tmp_path / f"{number}.csv", *more).code == 0
        found = float(rows(tmp_path / f"{number}.csv")[0]["mean_intensity"])
        assert found == pytest.approx(image[image > 0].mean(), rel=1e-5)


@pytest.mark.parametrize("axes", ["xyz", "xy"])
def test_what_fits_either_way_has_to_say_how_it_lies(tmp_path, axes):
    """Of a cube that is stored as x, y, z the mask, or another image, was taken as z, y, x; of a square as y, x."""
    image = np.random.default_rng(0).normal(size=(8,) * len(axes)).astype(np.float32)
    np.save(tmp_path / "m.npy", (image > 1).astype(np.uint8))
    scan = make_volume(tmp_path / "s.zarr", image + 9, axes=axes)
    model = fake_model(tmp_path, axes=axes[::-1], activation="sigmoid")
    options = ["--in", scan, "--model", model, "--out", tmp_path / "o.zarr", "--normalize", "none", "--mask"]
    said = cli("run", *options, tmp_path / "m.npy")
    assert (said.code, f"--axes {axes}" in said.error) == (3, True), said.err
    assert cli("convert", tmp_path / "m.npy", tmp_path / "m.zarr", "--axes", axes).code == 0
    assert cli("run", *options, tmp_path / "m.zarr").code == 0
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "o.zarr" / "0")[...], image > 1)
    said = cli("table", tmp_path / "o.zarr", tmp_path / "t.csv", "--intensity", tmp_path / "m.npy")
    assert (said.code, "--intensity" in said.error) == (3, True), said.err


def test_an_image_of_another_grid_is_refused(tmp_path):
    _, image, path = small(tmp_path)
    scan = make_volume(tmp_path / "scan.zarr", image[:, :-1])
    said = cli("table", path, tmp_path / "t.csv", "--intensity", scan)
    assert said.code == 3
    assert "6×6×8" in said.error
    said = cli("table", path, tmp_path / "t.txt")
    assert said.code == 2
    assert ".csv, .parquet" in said.error


def test_a_table_that_is_there_stays(tmp_path):
    _, _, path = small(tmp_path)
    (tmp_path / "t.csv").write_text("mine")
    said = cli("table", path, tmp_path / "t.csv")
    assert (said.code, (tmp_path / "t.csv").read_text()) == (8, "mine")
    assert cli("table", path, tmp_path / "t.csv", "--overwrite").code == 0
    assert len(rows(tmp_path / "t.csv")) == 2


def test_classes_come_from_components(tmp_path):
    _, _, path = small(tmp_path)
    group = zarr.open_group(path, mode="r+")
    group.attrs["unet_engine"] = {"output": "labels", "classes": ["ground", "cell", "axon"], "complete": True}
    assert cli("components", path, tmp_path / "o.zarr", "--durable", "no").code == 0
    assert cli("table", tmp_path / "o.zarr", tmp_path / "t.csv").code == 0
    found = [(row["id"], row["class"], row["class_name"], row["voxels"]) for row in rows(tmp_path / "t.csv")]
    assert found == [("1", "1", "cell", "45"), ("2", "1", "cell", "1"), ("3", "2", "axon", "12")]
    assert cli("table", path, tmp_path / "classes.csv").code == 0
    assert [row["class_name"] for row in rows(tmp_path / "classes.csv")] == ["cell", "axon"]


@given(
    seed=st.integers(0, 2**32 - 1), room=st.sampled_from([1, 200, 3000, 2**30]), most=st.sampled_from([3, 40, 2**60])
)
@settings(max_examples=40, deadline=None)
def test_rows_are_joined_the_same_in_any_memory(seed, room, most, tmp_path_factory):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(rng.integers(1, 12)):
        ids = np.unique(rng.integers(1, most, rng.integers(0, 30), np.uint64))
        found.append({"id": ids, "image": rng.normal(0, 1e6, (len(ids), 2)), "lo": rng.integers(0, 9, (len(ids), 3))})
    pieces = [added(rows) for rows in Runs.of(tmp_path_factory.mktemp("runs") / "runs", room, found)]
    ends = [number for piece in pieces if len(piece["id"]) for number in (piece["id"][0], piece["id"][-1])]
    assert ends == sorted(ends)
    whole = merged(found)
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), values)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_is_the_same_file_in_any_memory(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("unet_engine.postprocess.table.VOXELS", 64)
    monkeypatch.setattr("unet_engine.postprocess.table_files.ROWS", 7)
    labels = np.random.default_rng(3).integers(0, 60, (16, 9, 8), np.uint8)
    source = Source.of(make_volume(tmp_path / "l.zarr", labels, chunks=(4, 4, 4)))
    for memory in (1, 2**30):
        table(source, str(tmp_path / f"{memory}.{ending}"), Here(), memory=memory)
    assert (tmp_path / f"1.{ending}").read_bytes() == (tmp_path / f"{2**30}.{ending}").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
