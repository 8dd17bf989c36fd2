"""A run that ends in a file of another format: the same voxels as in Zarr, where they were, resumable at any moment."""

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import ModelError, OutputError, ResumeError, UnetEngineError
from unet_engine.output.header import read_header
from unet_engine.postprocess import deliver, working
from unet_engine.postprocess.convert import convert
from unet_engine.volumes.formats import open_volume

nibabel = pytest.importorskip("nibabel")
RNG = np.random.default_rng(6)
ZYX = RNG.integers(0, 200, (12, 20, 33)).astype(np.uint8)
TURNED = np.array([[0, -1.5, 0.125, 5.5], [0.75, 0, 0, -7], [0, 0.125, 2, 30], [0, 0, 0, 1.0]])
OPTIONS = {"blend": "crop", "output": "logits"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "w").mkdir()
    monkeypatch.chdir(tmp_path / "w")
    image = nibabel.Nifti1Image(ZYX.T, TURNED)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, "scan.nii.gz")
    fake_model(".")


def run(out="o.nii.gz", source="scan.nii.gz", **options):
    return unet_engine.run(source, model="id.fake.toml", **{"out": out, **OPTIONS, **options})


def files():
    return sorted({p.name for p in Path().iterdir()} - {"scan.nii.gz", "id.fake.toml"})


def test_nifti_in_nifti_out():
    result = run()
    assert (result.out, result.complete, files()) == ("o.nii.gz", True, ["o.nii.gz"])
    found = nibabel.load("o.nii.gz")
    assert np.array_equal(found.affine, TURNED)
    assert np.array_equal(np.asarray(found.dataobj), ZYX.T)


def test_a_region_lies_where_it_lay():
    run(roi="2:10,3:17,4:20", output="labels")
    found = nibabel.load("o.nii.gz")
    assert found.shape == (16, 14, 8)
    assert np.allclose(found.affine[:3, 3], (TURNED @ [4, 3, 2, 1])[:3], atol=1e-6)
    assert np.array_equal(found.affine[:3, :3], TURNED[:3, :3])


@pytest.mark.parametrize(("output", "dtype"), [("probabilities", "uint8"), ("logits", "float32")])
def test_channels_are_a_vector(output, dtype):
    fake_model(".", channels_out=3, activation="softmax", classes=["a", "b", "c"])
    made = run(output=output).out
    run("o.zarr", output=output)
    assert nibabel.load(made).shape == (33, 20, 12, 1, 3)
    assert np.array_equal(np.asarray(nibabel.load(made).dataobj)[:, :, :, 0].T, result_of("o.zarr"))
    assert nibabel.load(made).get_data_dtype() == dtype


def test_provenance_and_names_of_classes_come_along():
    from unet_engine.postprocess.formats import account_of

    fake_model(".", channels_out=3, activation="softmax", classes=["air", "bone", "tissue µ"])
    for name in ("o.nii.gz", "o.nrrd", "o.mha", "o.npy", "o.ozx", "o.h5", "o.tif"):
        digest = run(name, output="labels").digest
        said = account_of(name)
        assert (said["digest"], said["classes"], said["output"]) == (digest, ["air", "bone", "tissue µ"], "labels")
        assert said["model"]["name"] == "id"
    nrrd = pytest.importorskip("nrrd")
    header = nrrd.read_header("o.nrrd")
    assert (header["Segment0_Name"], header["Segment0_LabelValue"], header["Segment1_LabelValue"]) == ("bone", "1", "2")


@pytest.mark.parametrize("outside", [None, "255"])
def test_a_map_in_a_map_out(outside):
    rasterio = pytest.importorskip("rasterio")
    pixels = RNG.integers(1, 200, (90, 120)).astype(np.uint8)
    pixels[:30, :50] = 9  # nothing was measured there
    options = {"crs": "EPSG:32632", "transform": rasterio.Affine(5, 0, 400000, 0, -5, 5200000), "nodata": 9}
    with rasterio.open("map.tif", "w", driver="GTiff", count=1, height=90, width=120, dtype="uint8", **options) as data:
        data.write(pixels, 1)
    fake_model(".", axes="yx", classes=["nothing", "road"], activation="sigmoid")
    made = unet_engine.run("map.tif", model="id.fake.toml", normalize="zscore", outside=outside)
    assert Path(made.out).name == "map-id.tif"
    with rasterio.open(made.out) as found, rasterio.open("map.tif") as before:
        labels = found.read(1)
        assert (found.crs, found.transform, found.shape) == (before.crs, before.transform, before.shape)
        assert (labels[pixels == 9] == (0 if outside is None else 255)).all()
        assert set(np.unique(labels[pixels != 9])) == {0, 1}
        assert found.nodata == (None if outside is None else 255)  # 0 is a label like others
        assert found.colormap(1)[0] != found.colormap(1)[1]
    assert unet_engine.run("map.tif", model="id.fake.toml", normalize="zscore", outside=outside, resume=True).notes


def test_colours_of_the_model_reach_the_files():
    rasterio, nrrd = pytest.importorskip("rasterio"), pytest.importorskip("nrrd")
    colours = ["#000000", "#FF8000"]
    fake_model(".", activation="sigmoid", classes=["a", "b"], colours=colours)
    run("o.nrrd", output="labels")
    assert nrrd.read_header("o.nrrd")["Segment0_Color"] == "1.0000 0.5020 0.0000"
    run("o.ozx", output="labels")
    with zipfile.ZipFile("o.ozx") as archive:
        shown = json.loads(archive.read("zarr.json"))["attributes"]["ome"]["image-label"]
    assert shown["colors"][1] == {"label-value": 1, "rgba": [255, 128, 0, 255]}
    fake_model(".", axes="yx", activation="sigmoid", colours=colours)  # classes have no names
    options = {"crs": "EPSG:32632", "transform": rasterio.Affine(5, 0, 4e5, 0, -5, 5.2e6)}
    with rasterio.open("map.tif", "w", driver="GTiff", count=1, height=20, width=33, dtype="uint8", **options) as data:
        data.write(ZYX[0], 1)
    run("o.tif", "map.tif", output="labels")
    with rasterio.open("o.tif") as data:
        assert (data.colormap(1)[1], data.tags(1)["class_1"]) == ((255, 128, 0, 255), "class 1")
    fake_model(".", activation="sigmoid", colours=colours[:1])
    with pytest.raises(ModelError, match="1 colours for 2 labels"):
        run("no.nrrd")


# --- what is there ---


def test_what_is_there_is_kept_unless_asked():
    Path("o.nii.gz").write_bytes(b"mine")
    for options in ({}, {"resume": True}):
        with pytest.raises(OutputError, match="exists"):
            run(**options)
    assert Path("o.nii.gz").read_bytes() == b"mine"
    assert run(overwrite=True).blocks_written
    assert nibabel.load("o.nii.gz").shape == ZYX.T.shape
    assert files() == ["o.nii.gz"]


def test_resuming_what_is_complete_does_nothing():
    run()
    before = Path("o.nii.gz").stat()
    result = run(resume=True)
    assert result.notes == ("o.nii.gz is already complete",)
    assert (result.complete, result.blocks_written, result.out) == (True, 0, "o.nii.gz")
    assert Path("o.nii.gz").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(ResumeError, match="was made by another run"):
        run(resume=True, overlap=0.25)
    assert "already complete" in cli(
        "run", "--in", "scan.nii.gz", "--model", "id.fake.toml", "--out", "o.nii.gz", "--blend", "crop", "--output",
        "logits", "--resume",
    ).err  # fmt: skip


def test_a_run_that_fails_is_resumed_and_leaves_nothing_behind():
    fake_model(".", fail_at=3)
    with pytest.raises(UnetEngineError):
        run(threads=1)
    fake_model(".")
    run(resume=True)
    assert files() == ["o.nii.gz"]
    assert np.array_equal(np.asarray(nibabel.load("o.nii.gz").dataobj), ZYX.T)


@pytest.mark.parametrize("moment", ["write", "put", "remove"])
def test_a_kill_while_the_file_is_made_is_mended(monkeypatch, moment):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "write":
            patch.setattr(deliver, "_keep", killed)
        elif moment == "put":
            patch.setattr(deliver, "_put", killed)
        else:
            patch.setattr(working.output, "remove", killed)
        with pytest.raises(Killed):
            run()
    assert Path("o.nii.gz").exists() == (moment == "remove")
    assert ".o.nii.gz.unet-engine" in files()
    if moment != "remove":
        with pytest.raises(OutputError, match=r"o.nii.gz was begun by an earlier run; use --resume"):
            run()
    result = run(resume=True)
    assert (result.blocks_written, result.complete) == (0, True)
    assert files() == ["o.nii.gz"]
    assert np.array_equal(np.asarray(nibabel.load("o.nii.gz").dataobj), ZYX.T)


def test_an_old_file_stays_until_the_new_one_is_whole(monkeypatch):
    run(output="labels")
    before = Path("o.nii.gz").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "_keep", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="disk is full"):
            run(overwrite=True)
    assert Path("o.nii.gz").read_bytes() == before
    run(resume=True)
    assert np.array_equal(np.asarray(nibabel.load("o.nii.gz").dataobj), ZYX.T)


def test_parts_end_in_one_file():
    run("whole.nii.gz")
    for part in ("2/3", "1/3"):
        assert not run(part=part).complete
        assert "o.nii.gz" not in files()
    said = cli("finish", "o.nii.gz")
    assert said.code == OutputError.exit_code
    assert run(part="3/3").complete
    assert files() == ["o.nii.gz", "whole.nii.gz"]
    assert run(part="2/3").notes == ("o.nii.gz is already complete",)
    assert np.array_equal(np.asarray(nibabel.load("o.nii.gz").dataobj), ZYX.T)
    assert "complete" in cli("finish", "o.nii.gz").err


def test_what_is_not_complete_is_not_converted():
    run("o.zarr", part="1/2")
    with pytest.raises(OutputError, match=r"o.zarr lacks \d+ of \d+ blocks"):
        convert("o.zarr", "o.npy")
    run("o.zarr", part="2/2")
    convert("o.zarr", "o.npy")
    assert np.array_equal(np.load("o.npy")[0], ZYX)


@pytest.mark.parametrize("from_array", [False, True])
def test_an_output_of_a_turned_scan_is_converted_to_where_it_lay(from_array):
    run("o.zarr", roi="2:10,3:17,4:20", output="labels")
    convert("o.zarr/0" if from_array else "o.zarr", "o.nii")
    found = nibabel.load("o.nii")
    assert np.allclose(found.affine[:3, 3], (TURNED @ [4, 3, 2, 1])[:3], atol=1e-6)
    assert np.array_equal(found.affine[:3, :3], TURNED[:3, :3])


def test_parts_that_end_together_make_it_once(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "_keep", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OutputError):
            run()
    digest = read_header(".o.nii.gz.unet-engine")["digest"]
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(working.hand_over, "o.nii.gz", overwrite=False, run=digest) for _ in range(4)]
        assert [one.result() for one in told] == [[]] * 4
    assert files() == ["o.nii.gz"]
    assert np.array_equal(np.asarray(nibabel.load("o.nii.gz").dataobj), ZYX.T)
    with pytest.raises(OutputError, match="is gone"):
        working.hand_over("o.nii.gz", overwrite=False, run="another")


def test_finish_makes_the_file(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(deliver, "_keep", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OutputError, match=r"o.nii.gz cannot be written"):
            run()
    said = cli("finish", "o.nii.gz", "--json")
    assert (said.code, said.json["out"], said.json["complete"]) == (0, "o.nii.gz", True)
    assert files() == ["o.nii.gz"]


# --- what is chosen, and what is refused before anything runs ---


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("scan.nii.gz", "scan-id.nii.gz"),
        ("v.npy", "v-id.npy"),
        ("v.nrrd", "v-id.nrrd"),
        ("v.zarr", "v-id.zarr"),
        ("v.h5", "v-id.h5"),
        ("v.tif", "v-id.ome.tif"),
        ("v.mha", "v-id.mha"),
    ],
)
def test_the_output_is_of_the_kind_of_the_input(source, out):
    np.save("v.npy", ZYX)
    make_volume("v.zarr", ZYX)
    pytest.importorskip("nrrd").write("v.nrrd", ZYX.T)
    for name in ("v.h5", "v.tif", "v.mha"):
        convert("v.npy", name)
    said = cli("run", "--in", source, "--model", "id.fake.toml", "--json")
    assert said.json["out"].endswith(out)
    assert ("of the format of the input" in said.err) == (source != "v.zarr")
    assert open_volume(out).shape == ZYX.shape


def test_a_zarr_that_was_begun_before_is_resumed():
    run("scan-id.zarr")
    again = unet_engine.run("scan.nii.gz", model="id.fake.toml", resume=True, **OPTIONS)
    assert (again.out, again.blocks_written) == (str(Path("scan-id.zarr").absolute()), 0)


def test_what_a_format_cannot_hold_is_refused_before_anything_runs():
    with pytest.raises(OutputError, match=r"o.nii.gz: a NIfTI file cannot hold float16"):
        run(dtype="float16")
    with pytest.raises(OutputError, match="float16"):
        unet_engine.make_plan("scan.nii.gz", model="id.fake.toml", out="o.nii.gz", dtype="float16", **OPTIONS)
    said = cli("run", "--in", "scan.nii.gz", "--model", "id.fake.toml", "--output", "logits", "--dtype", "float16")
    assert said.code == 0
    assert "the output is OME-Zarr" in said.err
    assert files() == ["scan-id.zarr"]


def test_objects_in_a_file():
    pytest.importorskip("cc3d")
    fake_model(".", activation="sigmoid", classes=["a", "b"])
    options = {"normalize": "zscore", "output": "labels", "components": True}
    result = run("o.nii.gz", **options)
    run("o.zarr", **options)
    found = nibabel.load("o.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj).T, result_of("o.zarr"))
    assert (np.array_equal(found.affine, TURNED), result.objects) == (True, int(np.asarray(found.dataobj).max()))
    assert run("o.nii.gz", resume=True, **options).notes == ("o.nii.gz is already complete",)
    assert not [name for name in files() if name.startswith(".")]
    pytest.importorskip("highdicom")
    with pytest.raises(OutputError, match="holds labels"):  # before anything runs, not behind it
        unet_engine.make_plan("scan.nii.gz", model="id.fake.toml", out="o.dcm", components=True)


def test_never_into_what_is_read():
    said = cli("run", "--in", "scan.nii.gz", "--model", "id.fake.toml", "--out", "scan.nii.gz", "--overwrite")
    assert said.code == 2
    assert "overlaps the input" in said.error
