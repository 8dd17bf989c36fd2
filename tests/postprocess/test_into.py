"""Labels put into the image that they are of: listed there, of its levels and version, and whatever kills, the image is
as it was or has them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.images import SCAN, V2, V3, image
from support.pyramids import coarser
from support.volumes import fake_model
from unet_engine.errors import InputError, OutputError, ResumeError, SettingsError
from unet_engine.postprocess import into, zarr_v2
from unet_engine.storage import durability
from unet_engine.volumes.formats import open_volume


@pytest.fixture
def model(tmp_path):
    (tmp_path / "m").mkdir()
    return fake_model(tmp_path / "m", channels_in=1, channels_out=1, activation="sigmoid")


def run(path, model, into="cells", **options):
    return unet_engine.run(str(path), model=model, into=into, blend="crop", **options)


def files(path, *, labels=False):
    """What lies in the image, but for its labels."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if labels or not name.startswith("labels/")}


def levels(path):
    root = zarr.open_group(str(path), mode="r")
    scales = dict(root.attrs.get("ome") or root.attrs)["multiscales"]
    return [root[one["path"]][...] for one in scales[0]["datasets"]]


def beside(path):
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith("."))


def listed(path):
    attributes = zarr.open_group(f"{path}/labels", mode="r").attrs
    return (attributes.get("ome") or attributes)["labels"]


@pytest.mark.parametrize("version", [V2, V3])
def test_labels_lie_in_their_image(tmp_path, model, version):
    path = image(tmp_path / "a.zarr", version)
    before = files(path)
    result = run(path, model)
    assert (result.out, result.complete) == (f"{path}/labels/cells", True)
    assert files(path) == before
    assert listed(path) == ["cells"]
    assert beside(path) == []
    found = levels(f"{path}/labels/cells")
    plain = unet_engine.run(str(path), model=model, out=str(tmp_path / "plain.zarr"), blend="crop")
    np.testing.assert_array_equal(found[0], levels(plain.out)[0])
    for coarse, fine in zip(found[1:], found, strict=False):
        np.testing.assert_array_equal(coarse, coarser(fine, (1, 2, 2), "majority"))
    assert [one.shape for one in found] == [zarr.open_array(f"{path}/{k}").shape[1:] for k in range(3)]
    volume, scan = open_volume(f"{path}/labels/cells"), open_volume(str(path))
    assert (volume.spacing, volume.translation, volume.unit) == (scan.spacing, scan.translation, scan.unit)
    root = zarr.open_group(f"{path}/labels/cells", mode="r")
    assert root.metadata.zarr_format == (2 if version == V2 else 3)
    said = dict(root.attrs.get("ome") or root.attrs)
    assert said["image-label"]["source"] == {"image": "../../"}
    assert (said["multiscales"][0].get("version") or said["version"]) == version
    assert said["multiscales"][0]["name"] == "cells"


@pytest.mark.parametrize("version", [V2, V3])
def test_another_library_takes_them(tmp_path, model, version):
    v05 = pytest.importorskip("ome_zarr_models.v05")
    path = image(tmp_path / "a.zarr", version)
    run(path, model, components=True)
    if version == V3:
        found = v05.Image.from_zarr(zarr.open_group(str(path), mode="r"))
        assert found.labels.attributes.ome.labels == ["cells"]
        v05.ImageLabel.from_zarr(zarr.open_group(f"{path}/labels/cells", mode="r"))
    assert cli("table", f"{path}/labels/cells", tmp_path / "t.csv").code == 0
    assert cli("info", f"{path}/labels/cells", "--json").json["axes"] == "zyx"


@pytest.mark.parametrize("version", [V2, V3])
def test_others_stay_listed_and_metadata_of_all_is_renewed(tmp_path, model, version):
    path = image(tmp_path / "plate.zarr" / "A" / "1" / "0", version, consolidated=True)
    zarr.create_group(str(tmp_path / "plate.zarr"), zarr_format=2 if version == V2 else 3, overwrite=False)
    run(path, model, "one")
    run(path, model, str(tmp_path / "plate.zarr" / "A/1/0/labels/two"))
    assert listed(path) == ["one", "two"]
    assert sorted(zarr.open_consolidated(str(path))["labels"].group_keys()) == ["one", "two"]
    assert zarr.open_consolidated(str(path))["labels/two/1"].shape == (9, 11, 9)
    assert beside(tmp_path / "plate.zarr") == []
    assert run(path, model, "one", resume=True).already_complete


def test_called_after_the_model(tmp_path, model):
    path = image(tmp_path / "a.zarr")
    assert cli("run", "--in", path, "--model", model, "--blend", "crop", "--into", "--quiet").code == 0
    assert listed(path) == ["id"]
    again = cli("run", "--in", f"{path}/0", "--model", model, "--blend", "crop", "--into", path, "--quiet")
    assert (again.code, "--overwrite" in again.err) == (8, True)


def test_the_shapes_are_those_of_the_image(tmp_path, model):
    path = image(tmp_path / "a.zarr", factors=(2, 2, 2), rounds_up=False)
    run(path, model)
    assert [one.shape for one in levels(f"{path}/labels/cells")] == [(9, 21, 18), (4, 10, 9), (2, 5, 4)]
    path = image(tmp_path / "b.zarr", factors=(1, 4, 4), levels=2)
    run(path, model)
    found = levels(f"{path}/labels/cells")
    np.testing.assert_array_equal(found[1], coarser(found[0], (1, 4, 4), "majority"))


def test_an_image_called_like_a_part_of_a_file(tmp_path, model):
    path = image(tmp_path / "scan:image=x.zarr", V3)
    result = run(path, model)
    assert result.out == f"{path}/labels/cells"
    assert listed(path) == ["cells"]
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_of_a_region_and_of_a_level(tmp_path, model):
    path = image(tmp_path / "a.zarr")
    run(path, model, "part", roi="2:8,3:17,1:16")
    volume = open_volume(f"{path}/labels/part")
    assert (volume.shape, volume.translation) == ((6, 14, 15), (4.0, 1.5, 0.5))
    run(path, model, "coarse", level=1)
    assert [one.shape for one in levels(f"{path}/labels/coarse")] == [(9, 11, 9), (9, 6, 5)]


class Killed(BaseException):
    pass


def dying(context, after):
    """From the so-manieth change of the disk on, every change fails: what is left is what a kill leaves."""
    counted = []

    def once(change):
        def changed(*given, **named):
            counted.append(None)
            if len(counted) > after:
                raise Killed
            return change(*given, **named)

        return changed

    for owner, name in [
        (into, "put"), (zarr_v2, "put"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir"),
        (into, "exchange"), (shutil, "rmtree"),
    ]:  # fmt: skip
        context.setattr(owner, name, once(getattr(owner, name)))


@pytest.mark.slow
@pytest.mark.parametrize("version", [V2, V3])
@pytest.mark.parametrize("earlier", ["none", "others", "replaced", "replaced in steps"])
def test_a_kill_at_any_moment_leaves_the_image_as_it_was_or_with_its_labels(
    tmp_path, model, monkeypatch, version, earlier
):
    path = image(tmp_path / "w/whole.zarr", version, consolidated=True)
    if earlier == "others":
        run(path, model, "others")
    if earlier.startswith("replaced"):
        run(path, model, overlap=0.25)
    if earlier == "replaced in steps":
        monkeypatch.setattr(into, "exchange", lambda *_: False)
    old = files(path)
    place = into.place_of(f"{path}/labels/cells")
    # all that comes before the image is touched: the labels as they are made
    with monkeypatch.context() as context:
        context.setattr(into, "put_in", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(path, model, resume=False, overwrite=earlier.startswith("replaced"))
    digest = zarr.open_group(str(place.work), mode="r").attrs["unet_engine"]["digest"]
    shutil.copytree(tmp_path / "w", tmp_path / "saved")
    before, whole = files(path, labels=True), None
    for after in range(200):
        with monkeypatch.context() as context:
            dying(context, after)
            try:
                into.put_in(place, durability.WHENEVER, overwrite=True)
                done = True
            except Killed:
                done = False
        now = {name: data for name, data in files(path).items() if name not in (".zmetadata", "zarr.json")}
        assert now.items() <= old.items()
        try:
            names = listed(path)
        except FileNotFoundError:
            names = []
        if "cells" in names:
            assert len(levels(path / "labels/cells")) == 3
        elif earlier != "replaced in steps" and not (path / "labels/cells").exists():
            assert {k: v for k, v in files(path, labels=True).items() if k not in before or v != before[k]} == {}
        if done:
            break
        if not into.settled(place, digest, durability.WHENEVER):
            into.put_in(place, durability.WHENEVER, overwrite=True)
        assert "cells" in listed(path)
        assert beside(path) == []
        now = files(path, labels=True)
        assert whole in (None, now)
        whole = now
        shutil.rmtree(tmp_path / "w")
        shutil.copytree(tmp_path / "saved", tmp_path / "w")
    assert after > 4
    assert files(path, labels=True) == whole
    assert beside(path) == []
    assert run(path, model, resume=True).already_complete


def test_finish_puts_what_parts_made_into_the_image(tmp_path, model, monkeypatch):
    path = image(tmp_path / "a.zarr")
    run(path, model, part="1/2")
    assert not (path / "labels").exists()
    with monkeypatch.context() as context:
        context.setattr(into, "put_in", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(path, model, part="2/2")
    said = cli("finish", f"{path}/labels/cells", "--json")
    assert (said.code, said.json["complete"]) == (0, True)
    assert len(levels(path / "labels/cells")) == 3
    assert cli("finish", f"{path}/labels/cells").code == 0


def test_what_is_there_is_kept_unless_it_is_ours_and_that_is_said(tmp_path, model):
    path = image(tmp_path / "a.zarr")
    zarr.open_group(str(path), mode="r+").create_group("labels/theirs")
    before = files(path, labels=True)
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises((OutputError, ResumeError)):
            run(path, model, "theirs", **options)
    assert files(path, labels=True) == before
    run(path, model)
    with pytest.raises(OutputError, match="--overwrite"):
        run(path, model)
    with pytest.raises(ResumeError, match="another run"):
        run(path, model, resume=True, overlap=0.25)
    first = levels(path / "labels/cells")[0]
    run(path, model, overwrite=True, overlap=0.25)
    assert levels(path / "labels/cells")[0].shape == first.shape
    assert listed(path) == ["cells"]
    assert beside(path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"output": "probabilities"}, "labels"), ({"out": "x.zarr"}, "--out"), ({"pyramid": True}, "--pyramid"),
        ({"into": "../x"}, "does not lie there"), ({"into": ".hidden"}, "cannot be called"),
        ({"into": "__a"}, "cannot be called"), ({"into": "elsewhere.zarr"}, "does not lie there"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, model, options, words):
    path = image(tmp_path / "a.zarr")
    with pytest.raises(SettingsError, match=words):
        run(path, model, **options)
    assert not (path / "labels").exists()


def test_an_image_whose_levels_say_no_scale_takes_labels_with_levels_of_their_own(tmp_path, model):
    path = image(tmp_path / "a.zarr", V2)
    root = zarr.open_group(str(path), mode="r+")
    said = root.attrs["multiscales"]
    for level in said[0]["datasets"]:
        del level["coordinateTransformations"]
    root.attrs["multiscales"] = said
    run(path, model)
    full, coarse = levels(f"{path}/labels/cells")
    np.testing.assert_array_equal(coarse, coarser(full, (2, 2, 2), "majority"))


def test_a_level_that_is_not_there_is_told_before_anything_is_computed(tmp_path, model):
    path = image(tmp_path / "a.zarr")
    shutil.rmtree(path / "2")
    with pytest.raises(InputError, match="multiscales make no sense"):
        run(path, model)
    assert beside(path) == []


def test_what_is_no_image_takes_no_labels(tmp_path, model, monkeypatch):
    np.save(tmp_path / "scan.npy", SCAN[0])
    with pytest.raises(SettingsError, match="no OME-Zarr image"):
        run(tmp_path / "scan.npy", model)
    path = image(tmp_path / "a.zarr")
    monkeypatch.setattr(os, "access", lambda place, _: Path(place) != path)
    with pytest.raises(OutputError, match="may be written to"):
        run(path, model)
    assert json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
