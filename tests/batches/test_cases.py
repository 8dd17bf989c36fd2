"""Files of one channel each, called as nnU-Net calls them, are cases where the model takes several channels."""

import json
from pathlib import Path

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model, result_of
from unet_engine.batches import patterns
from unet_engine.errors import InputError

RNG = np.random.default_rng(5)


@pytest.fixture
def scans(tmp_path, monkeypatch):
    """A folder of two cases of two channels, and the model that takes them."""
    monkeypatch.chdir(tmp_path)
    Path("imagesTs").mkdir()
    voxels = {}
    for case in "ab":
        voxels[case] = RNG.integers(0, 200, (2, 6, 12, 12)).astype("u1")
        for number, channel in enumerate(voxels[case]):
            np.save(f"imagesTs/{case}_{number:04}.npy", channel)
    return voxels, fake_model(tmp_path, channels_in=2, channels_out=2)


def ran(*said):
    return cli("run", *said, "--output", "logits", "--normalize", "none")


def same(out, voxels):
    return np.allclose(result_of(out), voxels, atol=1e-3)


def test_a_case_by_any_of_its_files(scans):
    voxels, model = scans
    for name in ("a_0000", "a_0001"):
        said = ran("--in", f"imagesTs/{name}.npy", "--model", model, "--out", "p/{stem}.zarr", "--overwrite")
        assert said.code == 0
        assert "those of a_0000.npy (0000), a_0001.npy (0001)" in said.err
        assert same("p/a.zarr", voxels["a"])
    header = json.loads(Path("p/a.zarr/zarr.json").read_text())["attributes"]["unet_engine"]
    assert header["input"] == "imagesTs/a_0000.npy+imagesTs/a_0001.npy"
    again = ran("--in", "imagesTs/a_0000.npy", "--model", model, "--out", "p/{case}.zarr", "--resume")
    assert again.code == 0
    assert "p/a.zarr: already complete" in again.err


@pytest.mark.parametrize("given", [["imagesTs/*.npy"], [f"imagesTs/{c}_000{n}.npy" for c in "ab" for n in (0, 1)]])
def test_several_cases(scans, given):
    voxels, model = scans
    said = ran("--in", given[0], "--model", model, "--out", "q/{stem}.zarr", *given[1:])
    assert said.code == 0
    assert "2 volumes: 2 done" in said.err
    assert same("q/a.zarr", voxels["a"])
    assert same("q/b.zarr", voxels["b"])


def test_patterns_and_lists_that_join(scans):
    voxels, model = scans
    pattern = "imagesTs/*_0001.npy+imagesTs/*_0000.npy"
    assert ran("--in", pattern, "--model", model, "--out", "r/{stem}.zarr").code == 0
    assert same("r/b.zarr", voxels["b"][::-1])
    Path("imagesTs/l.csv").write_text("input,out\na_0001.npy+a_0000.npy,../x.zarr\nb_0000.npy,../y.zarr\n")
    assert ran("--in", "imagesTs/l.csv", "--model", model).code == 0
    assert same("x.zarr", voxels["a"][::-1])
    assert same("y.zarr", voxels["b"])


def test_channels_that_are_missing_or_too_many_are_told(scans):
    _, model = scans
    np.save("imagesTs/b_0002.npy", np.zeros((6, 12, 12), "u1"))
    said = ran("--in", "imagesTs/b_0000.npy", "--model", model)
    assert said.code == 3
    assert "more channels than the 2" in said.err
    assert "b_0000.npy+imagesTs/b_0001.npy" in said.err
    assert ran("--in", "imagesTs/b_0000.npy", "--model", model, "--input-channels", "2,0", "--out", "z.zarr").code == 0
    three = fake_model(Path(), channels_in=3, channels_out=3, name="three")
    said = ran("--in", "imagesTs/a_0000.npy", "--model", three)
    assert said.code == 3
    assert "imagesTs/a_0002.npy is missing" in said.err
    said = cli("run", "--in", "imagesTs/a_0000.npy", "--model", model, "--out", "imagesTs/a_0001.npy", "--overwrite")
    assert said.code == 2
    assert "overlaps the input" in said.err


def test_wildcards_stand_for_the_same_text():
    there = {"*/*_B02.tif": ["d/t1_B02.tif", "e/t1_B02.tif"], "*/*_B03.tif": ["d/t1_B03.tif", "e/t1_B03.tif"],
             "*/t?_B04.tif": ["e/t1_B04.tif"], "dem.tif": ["dem.tif"]}  # fmt: skip
    found = patterns.together("*/*_B03.tif+*/*_B02.tif+dem.tif", lambda name: there.get(name, []))
    assert found == ["d/t1_B03.tif+d/t1_B02.tif+dem.tif", "e/t1_B03.tif+e/t1_B02.tif+dem.tif"]
    with pytest.raises(InputError, match=r"d/t1_B02.tif has nothing of \*/t\?_B04.tif beside it"):
        patterns.together("*/*_B02.tif+*/t?_B04.tif", lambda name: there.get(name, []))
    with pytest.raises(InputError, match=r"x\.tif: nothing there is called so"):
        patterns.together("*/*_B02.tif+x.tif", lambda name: there.get(name, []))


def test_files_that_a_run_made_are_no_volumes(tmp_path, monkeypatch):
    """Outputs lie beside the volumes and in their format, and the same command goes on with `--resume`."""
    monkeypatch.chdir(tmp_path)
    Path("f").mkdir()
    np.save("f/a.npy", np.ones((6, 12, 12), "u1"))
    model = fake_model(tmp_path)
    assert cli("run", "--in", "f", "--model", model, "--normalize", "none").code == 0
    for given in ("f", "f/*.npy"):
        said = cli("run", "--in", given, "--model", model, "--normalize", "none", "--resume")
        assert "1 volume: 1 already complete" in said.err
    assert cli("convert", "f/a.npy", "f/b.npy").code == 0
    said = cli("run", "--in", "f", "--model", model, "--normalize", "none", "--resume")
    assert "2 volumes: 1 already complete, 1 done" in said.err


def pictures(folder, channels, cases="ab", ending="png"):
    """A folder of planes that are called as channels of cases; the voxels of each."""
    codecs, tifffile = pytest.importorskip("imagecodecs"), pytest.importorskip("tifffile")
    Path(folder).mkdir()
    found = {}
    for case in cases:
        found[case] = RNG.integers(0, 200, (channels, 20, 24)).astype("u1")
        for number, plane in enumerate(found[case]):
            name = f"{folder}/{case}_{number:04}.{ending}"
            if ending == "png":
                Path(name).write_bytes(codecs.png_encode(plane))
            else:
                tifffile.imwrite(name, plane)
    return found


def flat(folder, channels, axes="yx"):
    return fake_model(folder, name=f"n{channels}{axes}", axes=axes, channels_in=channels, channels_out=channels)


@pytest.mark.parametrize(("ending", "channels"), [("png", 2), ("tif", 3), ("png", 1)])
def test_a_folder_of_planes_that_are_called_so_is_cases(tmp_path, monkeypatch, ending, channels):
    monkeypatch.chdir(tmp_path)
    found = pictures("imagesTs", channels, ending=ending)
    said = ran("--in", "imagesTs", "--model", flat(tmp_path, channels), "--out", "o/{case}.zarr")
    assert "2 volumes: 2 done" in said.err
    assert all(same(f"o/{case}.zarr", voxels) for case, voxels in found.items())


def test_one_case_of_planes_is_known_by_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = pictures("one", 3, "c")
    assert ran("--in", "one", "--model", flat(tmp_path, 3), "--out", "o/{case}.zarr").code == 0
    assert same("o/c.zarr", found["c"])
    assert ran("--in", "one", "--model", flat(tmp_path, 1, "zyx"), "--out", "slices.zarr").code == 0
    assert same("slices.zarr", found["c"])
    missing = ran("--in", "one", "--model", flat(tmp_path, 4), "--out", "four.zarr")
    assert (missing.code, "one/c_0003.png is missing" in missing.err) == (3, True)


def test_what_is_cases_or_slices_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = pictures("both", 2)
    for command in (
        ("info", "both"),
        ("convert", "both", "o.zarr"),
        ("plan", "--in", "both", "--model", flat(tmp_path, 2)),
    ):
        said = cli(*command)
        assert (said.code, "'both/*'" in said.err, "--axes zyx" in said.err) == (3, True, True)
    alone = ran("--in", "both", "--model", flat(tmp_path, 1), "--out", "o/{case}.zarr")
    assert (alone.code, "a_0001.png is called as another channel" in alone.err) == (3, True)
    said = ran("--in", "both", "--axes", "zyx", "--model", flat(tmp_path, 1, "zyx"), "--out", "s.zarr")
    assert said.code == 0
    assert same("s.zarr", np.concatenate([found["a"], found["b"]]))
    Path("both/b_0001.png").unlink()
    said = ran("--in", "both", "--model", flat(tmp_path, 2), "--out", "o/{case}.zarr")
    assert (said.code, "b_0000.png has 1 channel" in said.err) == (3, True)


def test_names_that_look_like_patterns(scans):
    """Brackets and pluses in names of what is there are no wildcards and join nothing."""
    voxels, model = scans
    for stem, channel in zip(("q[2]_x", "q[2]_y", "r+3_x", "r+3_y"), [*voxels["a"], *voxels["b"]], strict=True):
        np.save(f"{stem}.npy", channel)
    for given, out, case in (
        ("q[2]_x.npy+q[2]_y.npy", "q", "a"), ("r+*_x.npy+r+*_y.npy", "r+3", "b"), ("r+3_x.npy+r+?_y.npy", "r+3", "b"),
    ):  # fmt: skip
        said = ran("--in", given, "--model", model, "--out", f"{out}.zarr", "--overwrite")
        assert said.code == 0, said.err
        assert same(f"{out}.zarr", voxels[case])
