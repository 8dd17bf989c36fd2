"""Components are those of SciPy, numbered by their first voxel, whatever boxes, workers and deaths there were."""

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from support.command_line import cli
from support.objects import numbered
from support.outputs import chunks
from support.volumes import make_volume, result_of
from unet_engine.errors import DataError, OutputError, PlanError, ResumeError, SettingsError
from unet_engine.postprocess import components as module
from unet_engine.postprocess.components import components, rules_of
from unet_engine.postprocess.source import Source
from unet_engine.postprocess.target import Wish


class InOrder:
    """A crew of one, in whatever order, that dies after so many boxes."""

    def __init__(self, seed=0, dies=None):
        self._random, self._left = np.random.default_rng(seed), dies

    def each(self, do, items):
        items = list(items)
        for at in self._random.permutation(len(items)):
            if self._left is not None:
                if not self._left:
                    raise KeyboardInterrupt
                self._left -= 1
            do(items[at])


def found(labels, folder, *, chunk=None, voxels=10**6, crew=None, wish=None, dtype=None, **rules):
    """The numbers in `folder`/out.zarr. voxels: of a block"""
    path = Path(folder) / "labels.zarr"
    if not path.exists():
        make_volume(path, labels, chunks=chunk or labels.shape)
    source = Source.of(str(path))
    wish = wish or Wish(f"{folder}/out.zarr", durable=False)
    made = rules_of(labels.ndim, rules.pop("connectivity", None), **rules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "VOXELS", voxels)
        facts = components(source, made, wish, crew or InOrder(), memory=2**30, dtype=dtype)
    return result_of(facts["out"]), facts


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "LEAST_CHUNK", 1)


@st.composite
def cases(draw):
    n = draw(st.sampled_from([2, 3]))
    shape = draw(st.tuples(*[st.integers(1, 9)] * n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = (rng.random(shape) < draw(st.sampled_from([0.2, 0.5, 0.8]))) * rng.integers(1, 3, shape)
    return {
        "labels": labels.astype(draw(st.sampled_from(["u1", "u2", "i4", "u8"]))),
        "chunk": draw(st.tuples(*[st.integers(1, 5)] * n)),
        "voxels": draw(st.integers(1, 300)),
        "connectivity": draw(st.sampled_from([4, 8] if n == 2 else [6, 18, 26])),
        "min_size": draw(st.integers(1, 4)),
        "fill_holes": draw(st.booleans()),
        "largest": draw(st.sampled_from([None, 1, 2])),
        "crew": InOrder(draw(st.integers(0, 99))),
    }


@given(cases())
@settings(max_examples=24, deadline=None)
def test_objects_are_those_of_scipy(case):
    labels = case["labels"]
    rules = {key: case[key] for key in ("connectivity", "min_size", "fill_holes", "largest")}
    with TemporaryDirectory() as folder:
        actual, facts = found(**case, folder=folder)
        expected, kinds = numbered(labels, **rules)
        np.testing.assert_array_equal(actual, expected)
        assert zarr.open_array(f"{folder}/out.zarr/objects/class")[...].tolist() == kinds
        assert facts["objects"] == len(kinds) - 1


def blobs(shape=(24, 20, 28), seed=0):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.random(shape), 1.2)
    return (np.digitize(noise, np.quantile(noise, [0.5, 0.8]))).astype(np.uint8)


def test_every_death_at_every_box_leaves_the_same_bytes(tmp_path):
    labels = blobs()
    options = {"chunk": (8, 8, 8), "voxels": 8**3 * 2, "fill_holes": True}
    found(labels, tmp_path / "whole", **options)
    whole = chunks(tmp_path / "whole" / "out.zarr")
    for place in (tmp_path / "killed",):
        for attempt in itertools.count():
            wish = Wish(f"{place}/out.zarr", resume=attempt > 0, durable=False)
            try:
                found(labels, place, wish=wish, crew=InOrder(attempt, dies=4), **options)
            except KeyboardInterrupt:
                continue
            break
        assert attempt > 5
        assert chunks(place / "out.zarr") == whole
        assert not (place / "out.zarr" / "0" / ".journal").exists()


def test_a_death_on_a_remote_store(tmp_path):
    pytest.importorskip("fsspec")
    labels, where = blobs(), f"memory://{tmp_path.name}/out.zarr"
    options = {"chunk": (8, 8, 8), "voxels": 8**3 * 2}
    with pytest.raises(KeyboardInterrupt):
        found(labels, tmp_path, wish=Wish(where), crew=InOrder(dies=25), **options)
    crew = InOrder()
    source = Source.of(str(tmp_path / "labels.zarr"))
    components(source, rules_of(3, None), Wish(where, resume=True), crew, memory=2**30)
    array = zarr.open_array(zarr.storage.FsspecStore.from_url(f"{where}/0"), mode="r")
    np.testing.assert_array_equal(array[...], numbered(labels, 6)[0])


def test_a_find_that_a_power_cut_spoiled_is_looked_for_again(tmp_path):
    labels = blobs()
    options = {"chunk": (8, 8, 8), "voxels": 8**3 * 2}
    with pytest.raises(KeyboardInterrupt):
        found(labels, tmp_path, crew=InOrder(dies=10), **options)
    kept = sorted(tmp_path.glob("out.zarr/0/.journal/*/look.*"))
    kept[0].write_bytes(b"")
    kept[1].write_bytes(kept[1].read_bytes()[:-1])
    kept[2].write_bytes(bytes(kept[2].stat().st_size))
    actual, _ = found(labels, tmp_path, wish=Wish(f"{tmp_path}/out.zarr", resume=True, durable=False), **options)
    np.testing.assert_array_equal(actual, numbered(labels, 6)[0])


def test_finish_tells_how_far_it_is(tmp_path):
    labels = blobs()
    options = {"chunk": (8, 8, 8), "voxels": 8**3 * 2}
    with pytest.raises(KeyboardInterrupt):
        found(labels, tmp_path, crew=InOrder(dies=20), **options)
    said = cli("finish", tmp_path / "out.zarr")
    assert (said.code, "--resume" in said.error) == (8, True)
    assert "lacks 24 of 24 blocks" in said.error
    found(labels, tmp_path, wish=Wish(f"{tmp_path}/out.zarr", resume=True, durable=False), **options)
    said = cli("finish", tmp_path / "out.zarr")
    assert (said.code, "objects" in said.err) == (0, True)


def test_a_chunk_that_went_after_its_marker_is_written_again(tmp_path):
    labels = blobs()
    options = {"chunk": (8, 8, 8), "voxels": 8**3 * 2}
    with pytest.raises(KeyboardInterrupt):
        found(labels, tmp_path, crew=InOrder(dies=25), **options)
    written = sorted(p for p in tmp_path.glob("out.zarr/0/c/*/*/*") if p.is_file())
    written[0].unlink()
    actual, _ = found(labels, tmp_path, wish=Wish(f"{tmp_path}/out.zarr", resume=True, durable=False), **options)
    np.testing.assert_array_equal(actual, numbered(labels, 6)[0])


def test_labels_that_change_meanwhile_end_the_pass(tmp_path):
    labels = blobs()

    class Meddler(InOrder):
        rounds = 0

        def each(self, do, items):
            self.rounds += 1
            if self.rounds == 2:
                zarr.open_array(tmp_path / "labels.zarr", mode="r+")[0, 0, 0] = 7
            super().each(do, items)

    with pytest.raises(DataError, match="changed while"):
        found(labels, tmp_path, chunk=(8, 8, 8), crew=Meddler())


def test_a_resume_with_other_rules_is_refused(tmp_path):
    labels = blobs()
    found(labels, tmp_path)
    with pytest.raises(ResumeError, match=r"min_size \(1, now 5\)"):
        found(labels, tmp_path, wish=Wish(f"{tmp_path}/out.zarr", resume=True), min_size=5)
    with pytest.raises(OutputError, match="--overwrite"):
        found(labels, tmp_path)


def test_a_resume_may_have_other_memory(tmp_path):
    labels = blobs()
    with pytest.raises(KeyboardInterrupt):
        found(labels, tmp_path, chunk=(8, 8, 8), voxels=8**3 * 2, crew=InOrder(dies=20))
    actual, _ = found(labels, tmp_path, wish=Wish(f"{tmp_path}/out.zarr", resume=True, durable=False))
    np.testing.assert_array_equal(actual, numbered(labels, 6)[0])


def test_the_type_of_numbers_is_the_smallest_or_the_one_asked_for(tmp_path):
    labels = np.zeros((40, 40), np.uint8)
    labels[::2, ::2] = 1  # 400 objects
    assert found(labels, tmp_path / "a")[0].dtype == np.uint16
    assert found(labels, tmp_path / "b", dtype="uint64")[0].dtype == np.uint64
    with pytest.raises(SettingsError, match="uint16"):
        found(labels, tmp_path / "c", dtype="uint8")


def test_what_holds_no_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"0\.5"):
        found(np.full((4, 4), 0.5, np.float32), tmp_path / "a")
    with pytest.raises(DataError, match="-3"):
        found(np.full((4, 4), -3, np.int16), tmp_path / "b")
    with pytest.raises(SettingsError, match="4, 8"):
        found(np.zeros((4, 4), np.uint8), tmp_path / "c", connectivity=6)


def test_whole_numbers_are_labels_whatever_their_type(tmp_path):
    labels = blobs().astype(np.float64)
    np.testing.assert_array_equal(found(labels, tmp_path)[0], numbered(labels.astype(np.int64), 6)[0])


def test_a_header_does_not_grow_with_the_classes(tmp_path):
    labels = np.arange(1, 40 * 40 + 1, dtype=np.uint32).reshape(40, 40)
    actual, facts = found(labels, tmp_path)
    np.testing.assert_array_equal(actual, labels)
    assert "objects_by_class" not in facts
    said = cli("components", tmp_path / "labels.zarr", tmp_path / "again.zarr", "--durable", "no")
    assert (said.code, "1,600 objects" in said.err) == (0, True)


def test_what_was_not_measured_is_background(tmp_path):
    labels = np.array([[1, 255, 1], [1, 1, 255]], np.uint8)
    path = make_volume(tmp_path / "l.zarr", labels, attributes={"_FillValue": 255})
    assert cli("components", path, tmp_path / "a.zarr", "--durable", "no").code == 0
    assert result_of(tmp_path / "a.zarr").tolist() == [[1, 0, 2], [1, 1, 0]]
    assert cli("components", path, tmp_path / "b.zarr", "--durable", "no", "--nodata", "none").code == 0
    assert result_of(tmp_path / "b.zarr").tolist() == [[1, 2, 3], [1, 1, 4]]


def test_numbers_as_a_file_of_another_format(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels = blobs()
    affine = np.diag([0.5, 0.5, 2, 1])
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine), tmp_path / "l.nii.gz")
    out = tmp_path / "o.nii.gz"
    for options, code in (
        ([], 0),
        ([], 8),
        (["--resume"], 0),
        (["--resume", "--min-size", 9], 9),
        (["--overwrite"], 0),
    ):
        said = cli("components", tmp_path / "l.nii.gz", out, *options)
        assert said.code == code, said.err
    found = nibabel.load(out)
    np.testing.assert_array_equal(np.asarray(found.dataobj).transpose(2, 1, 0), numbered(labels, 6)[0])
    np.testing.assert_allclose(found.affine, affine)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["l.nii.gz", "o.nii.gz"]


def test_an_output_that_is_not_complete_is_refused(tmp_path):
    path = make_volume(tmp_path / "l.zarr", blobs(), ome="0.5", axes="zyx")
    zarr.open_group(path, mode="r+").attrs["unet_engine"] = {"complete": False, "identity": {}}
    said = cli("components", path, tmp_path / "a.zarr")
    assert (said.code, "--resume" in said.error) == (3, True)


def test_memory_that_holds_no_block_is_refused(tmp_path):
    source = Source.of(make_volume(tmp_path / "l.zarr", blobs(), chunks=(8, 8, 8)))
    wish = Wish(f"{tmp_path}/out.zarr")
    with pytest.raises(PlanError, match="8×8×8"):
        components(source, rules_of(3, None), wish, InOrder(), memory=10_000)
    assert not (tmp_path / "out.zarr").exists()


def test_labels_of_what_is_kept_are_written_and_other_classes_stay(tmp_path):
    """As MONAI's KeepLargestConnectedComponent, of some labels, with corners."""
    labels = np.random.default_rng(3).choice([0, 0, 0, 1, 2, 300], (9, 12, 14)).astype(np.uint16)
    rules = {"values": "labels", "largest": 1, "classes": (1, 300), "connectivity": 26}
    result, facts = found(labels, tmp_path, chunk=(4, 5, 6), voxels=120, **rules)
    expected = labels.copy()
    for kind in (1, 300):
        parts, _ = ndimage.label(labels == kind, np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        assert (sizes == sizes.max()).sum() == 1
        expected[(labels == kind) & (parts != sizes.argmax() + 1)] = 0
    assert (result == expected).all()
    assert facts["dtype"] == "uint16"
    header = Source.of(facts["out"]).header
    assert header["output"] == "labels"
    assert not (Path(facts["out"]) / "objects").exists()


def test_holes_of_other_classes_stay(tmp_path):
    labels = np.ones((2, 5, 5), np.uint8)
    labels[1] = 3
    labels[:, 2, 2] = 0
    labels = np.stack([labels[0]] * 3 + [labels[1]] * 3)
    labels[[0, 5], 2, 2] = labels[[0, 5], 0, 0]
    labels[2, 2, 2], labels[3, 2, 2] = 1, 3
    result, _ = found(labels, tmp_path, values="labels", fill_holes=True, classes=(1,))
    assert (result[1, 2, 2], result[4, 2, 2]) == (1, 0)


def test_rules_that_came_later_leave_what_names_an_output_as_it_was():
    assert set(rules_of(3, None).facts()) == {"connectivity", "min_size", "fill_holes", "largest"}
    assert rules_of(3, None, values="labels", classes=(2,)).facts()["values"] == "labels"


def test_the_command_writes_labels(tmp_path):
    labels = np.zeros((4, 6), np.uint8)
    labels[0, :3], labels[3, 3:5], labels[2, 0] = 2, 2, 1
    make_volume(tmp_path / "labels.zarr", labels, chunks=(2, 3))
    said = cli("components", tmp_path / "labels.zarr", tmp_path / "kept.npy", "--values", "labels", "--largest", "1")
    assert said.code == 0, said.err
    kept = np.load(tmp_path / "kept.npy")
    assert (np.unique(kept).tolist(), int((kept == 2).sum())) == ([0, 1, 2], 3)
    wrong = cli("components", tmp_path / "labels.zarr", tmp_path / "o.npy", "--classes", "1,x")
    assert wrong.code == 2
    assert "whole numbers above 0" in wrong.err
