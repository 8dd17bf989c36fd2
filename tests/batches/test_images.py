"""`--image all`: each image of a plate, a collection, a TIFF or a folder of DICOM is a volume of one command."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from support.command_line import cli
from support.volumes import fake_model, result_of
from unet_engine.batches.inputs import Item, expanded, with_images

tifffile = pytest.importorskip("tifffile")
SCANS = np.random.default_rng(5).integers(0, 200, (3, 4, 9, 10), np.uint8)


def ran(path, out, *more):
    model = fake_model(Path.cwd(), window=(4, 8, 8))
    return cli("run", "--in", path, "--model", model, "--output", "logits", "--normalize", "none", "--blend", "crop",
               "--image", "all", "--out", out, *more)  # fmt: skip


def plate(path):
    group = zarr.open_group(path, mode="w", zarr_format=3)
    fields = {"A/1": ["0", "1"], "B/2": ["0"]}
    group.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": well} for well in fields]}}
    scans = iter(SCANS)
    for well, names in fields.items():
        group.create_group(well).attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": n} for n in names]}}
        for name in names:
            one = group.create_group(f"{well}/{name}")
            one.create_array("0", data=next(scans))
            scale = [{"type": "scale", "scale": [1.0, 1, 1]}]
            one.attrs["ome"] = {"version": "0.5", "multiscales": [
                {"axes": [{"name": a, "type": "space"} for a in "zyx"],
                 "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}  # fmt: skip
    return [f"{well}-{name}".replace("/", "-") for well, names in fields.items() for name in names]


def film(path):
    with tifffile.TiffWriter(path, ome=True) as file:
        for scan in SCANS:
            file.write(scan, metadata={"axes": "ZYX"})
    return ["0", "1", "2"]


def series(folder):
    dicom = pytest.importorskip("support.dicom")
    Path(folder).mkdir()
    for number, scan in enumerate(SCANS):
        for z, plane in enumerate(scan):
            said = {"series": f"1.2.{number}", "RescaleIntercept": 0, "position": 2.0 * z * dicom.NORMAL}
            dicom.header(plane.astype("u2"), **said).save_as(f"{folder}/{number}-{z}.dcm", enforce_file_format=True)
    return ["1.2.0", "1.2.1", "1.2.2"]


@pytest.mark.parametrize(("make", "name"), [(plate, "a.zarr"), (film, "a.ome.tif"), (series, "a")])
def test_each_image_is_run(make, name):
    names = make(name)
    said = ran(name, "out/{image}-of-{name}.zarr", "--results", "told.jsonl")
    assert said.code == 0, said.err
    for one, scan in zip(names, SCANS, strict=True):
        assert np.array_equal(result_of(f"out/{one}-of-{name}.zarr")[0], scan)
    told = [json.loads(line)["input"] for line in Path("told.jsonl").read_text().splitlines()]
    assert len(set(told)) == 3
    assert ran(told[1], "again.zarr").code == 0  # each is a path of its own
    assert np.array_equal(result_of("again.zarr")[0], SCANS[1])


def test_one_place_for_all_of_them_is_refused():
    plate("a.zarr")
    said = ran("a.zarr", "out.zarr")
    assert said.code
    assert "one place for 3 volumes" in said.err
    assert not Path("out.zarr").exists()


def test_what_has_one_image_is_that_one(monkeypatch):
    np.save("a.npy", SCANS[0])
    plate("a.zarr")
    assert with_images(expanded(["a.npy"]), "all") == [Item("a.npy", {"image": None})]
    monkeypatch.setenv("UNET_ENGINE_IMAGE", "all")  # also where that is not said of it alone
    assert ran("a.npy", "b.zarr").code == 0
    assert ran("a.zarr", "c/{image}.zarr").code == 0
    assert np.array_equal(result_of("c/B-2-0.zarr")[0], SCANS[2])


def test_a_list_may_ask_for_all_images_of_one():
    plate("a.zarr")
    Path("list.csv").write_text("input,image\na.zarr,all\na.zarr,B/2/0\n")
    items = with_images(expanded(["list.csv"]), None)
    assert [item.input for item in items] == ["a.zarr/A/1/0", "a.zarr/A/1/1", "a.zarr/B/2/0", "a.zarr"]
