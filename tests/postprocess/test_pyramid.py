"""Coarser levels of an output: the same for any blocks, workers and kills, and listed once they are whole."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import unet_engine
from support.command_line import cli
from support.pyramids import coarser
from support.volumes import fake_model, make_volume
from unet_engine.errors import InputError, OutputError, SettingsError
from unet_engine.execution import hands
from unet_engine.output import locks
from unet_engine.postprocess import level_pass
from unet_engine.postprocess import pyramid as module
from unet_engine.postprocess.downsampling import downsampled, majority, mean_of
from unet_engine.postprocess.levels import levels_of
from unet_engine.postprocess.pyramid import Wanted, pyramid
from unet_engine.volumes.formats import open_volume

RNG = np.random.default_rng(3)
LABELS = RNG.integers(0, 3, (13, 21, 18)).astype(np.uint8)
AT_ONCE = 2**30


def group(path, values=LABELS, chunks=(4, 8, 8), axes="zyx", scale=(2.0, 1.0, 1.0), *, label=True, **attributes):
    """An OME-Zarr group of one level, as any tool writes it."""
    root = zarr.create_group(str(path), zarr_format=3)
    root.create_array("0", shape=values.shape, chunks=chunks, dtype=values.dtype, dimension_names=list(axes))[...] = (
        values
    )
    kinds = {"c": "channel", "t": "time"}
    said = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    moves = [{"type": "scale", "scale": list(scale)}, {"type": "translation", "translation": [7.0] * len(axes)}]
    root.attrs["ome"] = {
        "version": "0.5", "multiscales": [{"axes": said, "datasets": [{"path": "0", "coordinateTransformations": moves}]}],
        **({"image-label": {"version": "0.5"}} if label else {}), **attributes,
    }  # fmt: skip
    return str(path)


def made(path, memory=AT_ONCE, **wanted):
    return pyramid(Wanted(path, **wanted), hands.Here(), memory=memory)


def arrays(path):
    root = zarr.open_group(path, mode="r")
    return [root[one["path"]][...] for one in root.attrs["ome"]["multiscales"][0]["datasets"]]


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}


shapes = st.lists(st.integers(1, 7), min_size=2, max_size=3)


@given(shapes, st.data(), st.sampled_from(["u1", "i2", "u8", "f4", "f2"]))
def test_voxels_are_what_they_cover_comes_to(shape, data, dtype):
    factors = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 4, shape).astype(dtype)
    if dtype[0] == "f":
        values[values == 3] = np.nan
    else:
        assert np.array_equal(downsampled(values, factors, majority), coarser(values, factors, "majority"))
    found = downsampled(values, factors, mean_of())
    assert np.array_equal(found, coarser(values, factors, "mean"), equal_nan=True)
    assert found.dtype == values.dtype


def test_what_was_not_measured_has_no_share_in_a_mean():
    values = np.array([[10, 255], [20, 255], [255, 255], [255, 255]], np.uint8)
    assert downsampled(values, (2, 2), mean_of([255])).tolist() == [[15], [255]]


@given(st.sampled_from(["u1", "i4", "u8", "i8"]), st.data())
def test_means_of_whole_numbers_are_exact_at_the_ends_of_their_type(dtype, data):
    ends = np.iinfo(dtype)
    near = st.integers(ends.max - 3, ends.max) | st.integers(ends.min, ends.min + 3) | st.integers(0, 9)
    drawn = data.draw(st.lists(near, min_size=1, max_size=8))
    exact = (2 * sum(drawn) + len(drawn)) // (2 * len(drawn))
    values = np.array(drawn, dtype)
    assert downsampled(values, values.shape, mean_of()).tolist() == [exact]
    assert downsampled(np.append(values, values.dtype.type(99)), (len(drawn) + 1,), mean_of([99])).tolist() == [exact]


def test_of_infinities_of_both_signs_the_mean_is_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(downsampled(np.array([np.inf, -np.inf], "f4"), (2,), mean_of()))


def test_levels_make_voxels_cubes_first():
    found = levels_of("zyx", (40, 900, 900), {"z": 40, "y": 4, "x": 4})
    assert [level.factors for level in found] == [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert found[-1].shape == (20, 57, 57)
    assert [level.shape for level in levels_of("zyx", (9, 9, 9), {})] == [(5, 5, 5)]
    assert [level.shape for level in levels_of("cyx", (3, 9, 5), {}, 3)] == [(3, 5, 3), (3, 3, 2)]
    assert levels_of("yx", (1, 1), {}) == []
    with pytest.raises(SettingsError, match="at most"):
        levels_of("yx", (4, 4), {}, 9)


def test_of_labels(tmp_path):
    path = group(tmp_path / "l.zarr")
    before = files(tmp_path / "l.zarr/0")
    facts = made(path, levels=3)
    found = arrays(path)
    assert facts["shapes"] == [[13, 21, 18], [13, 11, 9], [7, 6, 5]]
    first = coarser(LABELS, (1, 2, 2), "majority")
    np.testing.assert_array_equal(found[1], first)
    np.testing.assert_array_equal(found[2], coarser(first, (2, 2, 2), "majority"))
    assert files(tmp_path / "l.zarr/0") == before
    for level, size in enumerate([(2, 1, 1), (2, 2, 2), (4, 4, 4)]):
        volume = open_volume(f"{path}/{level}")
        assert volume.spacing == size
        middle = [7 + (s - b) / 2 for s, b in zip(size, (2, 1, 1), strict=True)]
        assert list(volume.translation) == middle
    assert not list(Path(path).rglob(".journal*")) + list(Path(path).rglob(".lock*"))
    assert cli("pyramid", path, "--levels", 3, "--json").json["boxes_written"] == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_of_an_image_with_channels_and_time(tmp_path, dtype):
    values = RNG.integers(0, 250, (2, 3, 5, 9, 6)).astype(dtype)
    path = group(tmp_path / "i.zarr", values, (1, 2, 2, 4, 4), "tczyx", (1.0,) * 5, label=False, omero={"channels": []})
    facts = made(path, levels=2)
    assert facts["by"] == "mean"
    np.testing.assert_array_equal(arrays(path)[1], coarser(values, (1, 1, 2, 2, 2), "mean"))


def test_the_same_bytes_for_any_blocks_and_kills(tmp_path, monkeypatch):
    whole = group(tmp_path / "whole.zarr")
    made(whole, levels=3)
    put, done = level_pass.LevelTarget.put, []

    def dying(self, index, box, values):
        if len(done) % 3 == 2:
            done.append(None)
            raise KeyboardInterrupt
        done.append(index)
        put(self, index, box, values)

    monkeypatch.setattr(level_pass.LevelTarget, "put", dying)
    killed = group(tmp_path / "killed.zarr")
    before = (tmp_path / "killed.zarr/zarr.json").read_bytes()
    for attempt in range(100):
        assert (tmp_path / "killed.zarr/zarr.json").read_bytes() == before
        try:
            made(killed, memory=1 if attempt % 2 == 0 else 70_000, levels=3)
            break
        except KeyboardInterrupt:
            pass
    assert attempt > 5
    monkeypatch.undo()
    for name in ("1", "2"):
        assert files(tmp_path / "whole.zarr" / name / "c") == files(tmp_path / "killed.zarr" / name / "c")


def test_a_chunk_that_is_lost_before_the_levels_are_listed_is_made_again(tmp_path, monkeypatch):
    path = group(tmp_path / "l.zarr")
    with monkeypatch.context() as context:
        context.setattr(module, "relist", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made(path)
    lost = next(p for p in (tmp_path / "l.zarr/1/c").rglob("*") if p.is_file())
    lost.unlink()
    made(path)
    assert lost.exists()


def test_another_pyramid_is_replaced_where_that_is_said(tmp_path):
    path = group(tmp_path / "l.zarr")
    made(path, levels=4)
    with pytest.raises(OutputError, match="--overwrite"):
        made(path, levels=2)
    made(path, levels=2, overwrite=True)
    assert len(arrays(path)) == 2
    assert sorted(p.name for p in (tmp_path / "l.zarr").iterdir() if p.is_dir() and any(p.iterdir())) == ["0", "1"]
    with pytest.raises(OutputError, match="another pyramid"):
        made(path, by="mean")
    made(path, by="mean", levels=2, overwrite=True)
    np.testing.assert_array_equal(arrays(path)[1], coarser(LABELS, (1, 2, 2), "mean"))


def test_what_others_wrote_is_left_alone(tmp_path):
    path = group(tmp_path / "l.zarr")
    zarr.open_group(path)["0"]
    zarr.open_group(path, mode="r+").create_array("1", shape=(2, 2, 2), dtype="u1")
    with pytest.raises(OutputError, match="did not write"):
        made(path, overwrite=True)
    assert zarr.open_group(path)["1"].shape == (2, 2, 2)


def test_nothing_else_of_the_groups_metadata_changes(tmp_path):
    path = group(tmp_path / "l.zarr")
    root = zarr.open_group(path, mode="r+")
    root.attrs["mine"] = {"a": [1, 2]}
    zarr.consolidate_metadata(path)
    before = json.loads((tmp_path / "l.zarr/zarr.json").read_bytes())
    made(path, levels=2)
    after = json.loads((tmp_path / "l.zarr/zarr.json").read_bytes())
    assert zarr.open_consolidated(path)["1"].shape == (13, 11, 9)
    del after["consolidated_metadata"]["metadata"]["1"]
    after["attributes"]["ome"]["multiscales"][0]["datasets"].pop()
    assert after == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: zarr.create_array(f"{path}.a", shape=(4, 4), dtype="u1"), "array"),
        (lambda path: zarr.create_group(f"{path}.a", zarr_format=2), "v2"),
        (lambda path: zarr.create_group(f"{path}.a", zarr_format=3), "multiscales"),
        (lambda path: group(f"{path}.a", label=False), "--by"),
        (lambda path: None, "no Zarr"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, spoil, words):
    spoil(tmp_path / "x")
    said = cli("pyramid", tmp_path / "x.a")
    assert said.code in (2, 3)
    assert words in said.err
    assert len(said.err.splitlines()) == 1


def test_a_scale_after_a_translation_is_not_taken_for_one_before_it(tmp_path):
    path = group(tmp_path / "l.zarr")
    root = zarr.open_group(path, mode="r+")
    said = root.attrs["ome"]
    said["multiscales"][0]["datasets"][0]["coordinateTransformations"].reverse()
    root.attrs["ome"] = said
    with pytest.raises(InputError, match="translation, scale"):
        made(path)


def test_levels_say_which_voxels_were_not_measured_as_the_full_resolution_does(tmp_path):
    path = group(tmp_path / "i.zarr", LABELS + 7)
    zarr.open_group(path, mode="r+")["0"].attrs["missing_value"] = 8
    made(path, by="mean", levels=2)
    assert [open_volume(f"{path}/{level}").nodata for level in (0, 1)] == [(8.0,), (8.0,)]


def test_of_floats_no_majority(tmp_path):
    with pytest.raises(SettingsError, match="majority"):
        made(group(tmp_path / "f.zarr", LABELS.astype("f4")))


def test_who_writes_keeps_others_out(tmp_path):
    path = group(tmp_path / "l.zarr")
    made(path, levels=2)
    with locks.hold(path, array="1"), pytest.raises(OutputError, match="being written"):
        made(path, levels=3, overwrite=True)


# --- runs ---


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    scan = RNG.random((3, 20, 24, 28)).astype("f4")
    volume = make_volume(
        folder / "scan.zarr", scan, ome="0.5", axes="czyx", chunks=(1, 8, 8, 8), scale=(1, 2, 1, 1), unit="micrometer"
    )
    return volume, fake_model(folder, channels_in=3, channels_out=3, activation="softmax", classes=["none", "a", "b"])


def run(case, out, **options):
    return unet_engine.run(case[0], model=case[1], out=str(out), blend="crop", **options)


@pytest.mark.parametrize(("output", "by"), [("labels", "majority"), ("probabilities", "mean"), ("logits", "mean")])
def test_a_run_with_a_pyramid(tmp_path, case, output, by):
    result = run(case, tmp_path / "o.zarr", output=output, pyramid=True, levels=3)
    assert (result.levels, result.complete) == (3, True)
    run(case, tmp_path / "plain.zarr", output=output)
    full, first, second = arrays(result.out)
    np.testing.assert_array_equal(full, arrays(tmp_path / "plain.zarr")[0])
    lead = (1,) * (full.ndim - 3)
    np.testing.assert_array_equal(first, coarser(full, (*lead, 1, 2, 2), by))
    np.testing.assert_array_equal(second, coarser(first, (*lead, 2, 2, 2), by))
    said = zarr.open_group(result.out).attrs["ome"]
    if output == "labels":
        assert [one["name"] for one in said["image-label"]["properties"]] == ["none", "a", "b"]
        assert [one["label-value"] for one in said["image-label"]["colors"]] == [0, 1, 2]
    else:
        assert "image-label" not in said
    again = run(case, tmp_path / "o.zarr", output=output, pyramid=True, levels=3, resume=True)
    assert (again.already_complete, again.levels) == (True, 3)


def test_a_complete_output_gets_its_pyramid_by_resume(tmp_path, case):
    run(case, tmp_path / "o.zarr")
    before = files(tmp_path / "o.zarr/0")
    result = run(case, tmp_path / "o.zarr", pyramid=True, resume=True)
    assert (result.levels, result.windows_inferred, result.already_complete) == (2, 0, False)
    assert files(tmp_path / "o.zarr/0") == before


def test_objects_with_a_pyramid(tmp_path, case):
    result = run(case, tmp_path / "o.zarr", components=True, pyramid=True)
    full, first = arrays(result.out)
    np.testing.assert_array_equal(first, coarser(full, (1, 2, 2), "majority"))
    again = run(case, tmp_path / "o.zarr", components=True, pyramid=True, resume=True)
    assert again.already_complete


def test_the_last_part_makes_the_pyramid(tmp_path, case):
    whole = run(case, tmp_path / "whole.zarr", pyramid=True)
    for part in ("2/2", "1/2"):
        result = run(case, tmp_path / "o.zarr", part=part, pyramid=True)
    assert result.complete
    assert result.levels == whole.levels
    assert all(map(np.array_equal, arrays(tmp_path / "o.zarr"), arrays(tmp_path / "whole.zarr")))


def test_a_file_of_another_format_has_none(tmp_path, case):
    with pytest.raises(SettingsError, match="--pyramid"):
        run(case, tmp_path / "o.h5", pyramid=True)
    with pytest.raises(SettingsError, match="at most"):
        run(case, tmp_path / "o.zarr", pyramid=True, levels=20)
    with pytest.raises(SettingsError, match="--levels"):
        run(case, tmp_path / "o.zarr", levels=2)
    assert list(tmp_path.iterdir()) == []


def test_another_library_takes_it(tmp_path, case):
    v05 = pytest.importorskip("ome_zarr_models.v05")
    path = run(case, tmp_path / "o.zarr", pyramid=True).out
    root = zarr.open_group(path, mode="r")
    found = v05.ImageLabel.from_zarr(root)
    assert len(found.attributes.ome.multiscales[0].datasets) == 2
    path = run(case, tmp_path / "p.zarr", output="probabilities", pyramid=True).out
    assert len(v05.Image.from_zarr(zarr.open_group(path, mode="r")).attributes.ome.multiscales[0].datasets) == 2


@pytest.mark.slow
def test_killed_for_real_and_on_workers(tmp_path):
    """The process is killed as soon as some boxes are marked; the rest is done by workers of a cluster."""
    values = np.kron(LABELS, np.ones((3, 9, 9), np.uint8))
    whole, path = (group(tmp_path / name, values, (16, 32, 32)) for name in ("w.zarr", "k.zarr"))
    made(whole)
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from unet_engine.commands.cli import main; sys.argv[0] = 'unet-engine'; main()",
         "pyramid", path, "--memory", "1MiB"], stderr=subprocess.PIPE,
    )  # fmt: skip
    while not list(Path(path).glob("1/.journal/*/*.*")) and process.poll() is None:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    said = cli("pyramid", path, "--workers", 2, "--memory", "2GiB")
    assert said.code == 0, said.err
    for name in ("1", "2"):
        assert files(f"{whole}/{name}/c") == files(f"{path}/{name}/c")


def test_an_incomplete_output_gets_none(tmp_path, case):
    run(case, tmp_path / "o.zarr", part="1/2")
    with pytest.raises(InputError, match="--resume"):
        made(str(tmp_path / "o.zarr"))
