"""All time points of a volume by one command: the voxels of as many runs, in one output with a time axis."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.images import SERIES, series
from support.pyramids import coarser
from support.volumes import fake_model
from unet_engine.batches import times as module
from unet_engine.errors import OutputError, ResumeError, SettingsError
from unet_engine.volumes.formats import open_stored


@pytest.fixture
def case(tmp_path):
    return series(tmp_path / "scan.zarr"), fake_model(tmp_path, channels_in=2, channels_out=2, activation="softmax")


def run(case, out, **options):
    return unet_engine.run(case[0], model=case[1], out=out and str(out), blend="crop", **options)


def voxels(path, name="0"):
    return zarr.open_array(f"{path}/{name}", mode="r")[...]


def beside(folder):
    return sorted(p.name for p in Path(folder).iterdir() if p.name.startswith("."))


@pytest.mark.parametrize(("output", "wanted"), [("labels", "all"), ("probabilities", "1:3"), ("logits", "2:")])
def test_voxels_are_those_of_single_runs(tmp_path, case, output, wanted):
    result = run(case, tmp_path / "o.zarr", timepoint=wanted, output=output)
    numbers = {"all": range(4), "1:3": range(1, 3), "2:": range(2, 4)}[wanted]
    singles = [run(case, tmp_path / f"{t}.zarr", timepoint=t, output=output) for t in numbers]
    found = voxels(result.out)
    np.testing.assert_array_equal(found, np.stack([voxels(one.out) for one in singles]))
    assert result.windows_inferred == sum(one.windows_inferred for one in singles)
    volume = open_stored(result.out)
    assert volume.axes == ("tzyx" if output == "labels" else "tczyx")
    assert (volume.spacing, volume.unit, volume.timepoints) == ((2.0, 0.5, 0.5), "micrometer", len(numbers))
    said = zarr.open_group(result.out).attrs
    moves = said["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert (moves[0]["scale"][0], moves[1]["translation"][0]) == (2.5, 2.5 * numbers[0])
    assert said["ome"]["multiscales"][0]["axes"][0] == {"name": "t", "type": "time", "unit": "second"}
    assert (said["unet_engine"]["timepoints"], said["unet_engine"]["complete"]) == (list(numbers), True)
    assert beside(tmp_path) == []
    assert cli("finish", result.out).code == 0


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on(tmp_path, case, monkeypatch):
    whole = voxels(run(case, tmp_path / "whole.zarr", timepoint="all").out)
    single = module.run_all

    def first_two(volumes, observer, **options):
        single(volumes[:2], observer, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(module, "run_all", first_two)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path / "o.zarr", timepoint="all")
    with pytest.raises(OutputError, match="--resume"):
        run(case, tmp_path / "o.zarr", timepoint="all")
    for after in range(20):  # between any two files that are put to their place
        counted = []
        rename, put = Path.rename, module.put

        def dying(change, counted=counted, after=after):
            def changed(*given):
                counted.append(None)
                if len(counted) > after:
                    raise KeyboardInterrupt
                return change(*given)

            return changed

        shutil.copytree(tmp_path, saved := tmp_path.with_name(f"{tmp_path.name}-{after}"))
        with monkeypatch.context() as context:
            assemble = module._assemble

            def dying_assembly(*given, rename=rename, put=put, assemble=assemble, dying=dying, **named):
                with pytest.MonkeyPatch.context() as inner:
                    inner.setattr(Path, "rename", dying(rename))
                    inner.setattr(module, "put", dying(put))
                    assemble(*given, **named)

            context.setattr(module, "_assemble", dying_assembly)
            try:
                run((f"{saved}/scan.zarr", case[1]), saved / "o.zarr", timepoint="all", resume=True)
                break
            except KeyboardInterrupt:
                assert not (saved / "o.zarr").exists()
        result = run((f"{saved}/scan.zarr", case[1]), saved / "o.zarr", timepoint="all", resume=True)
        np.testing.assert_array_equal(voxels(result.out), whole)
        shutil.rmtree(saved)
    assert after > 4
    assert beside(saved) == []


def dying(function, after):
    """The same, until it was called so often: then the command is interrupted."""
    left = [after]

    def called(*given, **named):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return function(*given, **named)

    return called


@pytest.mark.parametrize("into", [None, "cells"])
def test_killed_once_the_voxels_are_at_their_place(tmp_path, case, monkeypatch, into):
    whole = voxels(run(case, tmp_path / "whole.zarr", timepoint="1:3").out)
    wanted = {"into": into} if into else {"pyramid": True, "levels": 2}
    out, step = (None, "hand_over") if into else (tmp_path / "o.zarr", "pyramid")
    with monkeypatch.context() as context:
        context.setattr(module, step, dying(None, 0))
        with pytest.raises(KeyboardInterrupt):
            run(case, out, timepoint="1:3", **wanted)
    result = run(case, out, timepoint="1:3", resume=True, **wanted)
    np.testing.assert_array_equal(voxels(result.out), whole)
    assert not result.already_complete
    assert into or result.levels == 2
    assert beside(tmp_path) == []


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_other_time_points_than_those_that_were_being_put_together(tmp_path, case, monkeypatch, how):
    other = {"timepoint": "1:3", "overlap": 0.25}
    whole = voxels(run(case, tmp_path / "whole.zarr", **other).out)
    gather = module._gather

    def gathering(*given):
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Path, "rename", dying(Path.rename, 2))
            gather(*given)

    with monkeypatch.context() as context:
        context.setattr(module, "_gather", gathering)
        with pytest.raises(KeyboardInterrupt):
            run(case, tmp_path / "o.zarr", timepoint="all")
    with pytest.raises(OutputError, match="--resume"):
        run(case, tmp_path / "o.zarr", timepoint="all")
    if how == "resume":
        with pytest.raises(ResumeError, match="other time points"):
            run(case, tmp_path / "o.zarr", resume=True, **other)
    else:
        np.testing.assert_array_equal(voxels(run(case, tmp_path / "o.zarr", overwrite=True, **other).out), whole)


def test_a_complete_output_of_other_voxels_is_not_taken_for_this_one(tmp_path, case):
    run(case, tmp_path / "o.zarr", timepoint="all")
    zarr.open_array(f"{case[0]}/0")[3] += 1
    with pytest.raises(ResumeError, match="other voxels"):
        run(case, tmp_path / "o.zarr", timepoint="all", resume=True)


def test_a_complete_output_is_given_the_pyramid_that_is_asked_for(tmp_path, case):
    run(case, tmp_path / "o.zarr", timepoint="1:3")
    wanted = {"timepoint": "1:3", "resume": True, "pyramid": True, "levels": 2}
    assert not run(case, tmp_path / "o.zarr", durable=False, **wanted).already_complete
    assert voxels(tmp_path / "o.zarr", "1").shape[0] == 2
    assert run(case, tmp_path / "o.zarr", **wanted).already_complete


def test_already_complete(tmp_path, case):
    run(case, tmp_path / "o.zarr", timepoint="all")
    assert run(case, tmp_path / "o.zarr", timepoint="all", resume=True).already_complete
    with pytest.raises(OutputError, match="--overwrite"):
        run(case, tmp_path / "o.zarr", timepoint="all")
    for other in ({"timepoint": "0:2"}, {"timepoint": "all", "overlap": 0.25}):
        with pytest.raises(ResumeError, match="other settings"):
            run(case, tmp_path / "o.zarr", resume=True, **other)
    run(case, tmp_path / "o.zarr", timepoint="0:2", overwrite=True)
    assert voxels(tmp_path / "o.zarr").shape[0] == 2


def test_with_a_pyramid_and_into_its_image(tmp_path, case):
    result = run(case, tmp_path / "o.zarr", timepoint="all", pyramid=True, levels=2)
    np.testing.assert_array_equal(voxels(result.out, "1"), coarser(voxels(result.out), (1, 1, 2, 2), "majority"))
    image = series(tmp_path / "i.zarr", levels=2)
    said = cli(
        "run", "--in", image, "--model", case[1], "--blend", "crop", "--timepoint", "all", "--into", "cells", "--json"
    )
    assert said.code == 0, said.err
    np.testing.assert_array_equal(voxels(f"{image}/labels/cells"), voxels(result.out))
    assert voxels(f"{image}/labels/cells", "1").shape == (4, 6, 9, 7)
    assert beside(tmp_path) == []


def test_planes_over_time(tmp_path):
    path = series(tmp_path / "p.zarr", SERIES[:, 0, 0], "tyx")
    model = fake_model(tmp_path, axes="yx", channels_in=1, channels_out=1, window=(8, 8))
    result = run((path, model), tmp_path / "o.zarr", timepoint="all", output="logits")
    np.testing.assert_array_equal(voxels(result.out)[:, 0], SERIES[:, 0, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timepoint": "0:9"}, "has 4"), ({"timepoint": "3:3"}, "has 4"), ({"timepoint": "some"}, "range"),
        ({"timepoint": "all", "components": True}, "--components"), ({"timepoint": "all", "part": "1/2"}, "--part"),
        ({"timepoint": "all", "out": "o.nii.gz"}, "OME-Zarr"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, case, options, words):
    with pytest.raises(SettingsError, match=words):
        run(case, tmp_path / options.pop("out", "o.zarr"), **options)
    assert beside(tmp_path) == []


def test_a_plan_is_that_of_the_first(case):
    said = cli("plan", "--in", case[0], "--model", case[1], "--timepoint", "1:3", "--json")
    assert said.code == 0, said.err
    said = cli("plan", "--in", case[0], "--model", case[1], "--timepoint", "1:3")
    assert "time point 1, the first of 2" in said.err


def test_what_is_told_of_a_run_is_told_of_time_points(tmp_path, case):
    options = ("run", "--in", case[0], "--model", case[1], "--timepoint", "1:3", "--blend", "crop")
    said = cli(*options, "--out", "o.zarr", "--rate", "3600EUR", "--json")
    assert said.code == 0, said.err
    assert said.json["price"] == pytest.approx(said.json["seconds"], rel=1e-4)
    assert " EUR a teravoxel" in said.err


def test_time_points_have_one_report_with_a_page_and_a_picture_of_each(tmp_path, case):
    options = (
        "run",
        "--in",
        case[0],
        "--model",
        case[1],
        "--timepoint",
        "1:4",
        "--blend",
        "crop",
        "--report",
        "p.html",
    )
    said = cli(*options, "--out", "p.zarr")
    assert said.code == 0, said.err
    assert "report: p.html" in said.err
    text = Path("p.html").read_text()
    assert "3 time points: 3 done" in text
    assert text.count("<figure>") == 3
    pages = sorted(Path("p.pages").iterdir())
    assert [page.name for page in pages] == ["0001-p-t1.html", "0002-p-t2.html", "0003-p-t3.html"]
    for time, page in enumerate(pages, 1):
        own = page.read_text()
        assert f"p.zarr, time point {time}: complete" in own
        assert f'<a href="p.pages/{page.name}">' in text
        assert ".p" not in own.replace("p.pages", "")  # where it was made is nobody's business
    Path("p.html").unlink()
    said = cli(*options, "--out", "p.zarr", "--resume")
    assert said.code == 0, said.err
    later = Path("p.html").read_text()
    assert "3 time points: 3 already complete" in later
    assert later.count("<figure>") == 3
    drawn = [re.findall('base64,([^"]+)', part) for part in later.split("<figure>")[1:]]
    assert len({tuple(pair) for pair in drawn}) == 3  # each of its own time


def test_an_interruption_names_what_stays(tmp_path, case, monkeypatch):
    monkeypatch.setattr(module, "_assemble", dying(None, 0))
    said = cli("run", "--in", case[0], "--model", case[1], "--timepoint", "1:3", "--out", "o.zarr")
    assert said.code == 130
    assert "what is committed in" in said.error
    assert "--resume" in said.error
