"""Whatever a path or a URL leads to, the same questions are answered; and nobody else asks which of the two it is."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
import unet_export
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import OutputError
from unet_engine.paths import absolute, is_local
from unet_engine.storage import stores

pytest.importorskip("fsspec", reason="fsspec is not installed")


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    """Where nothing lies yet."""
    return str(tmp_path / "o.zarr") if request.param == "disk" else f"memory://{tmp_path}/o.zarr"


def test_of_two_groups_at_one_place_the_first_stays(place):
    store = stores.store_of(place)
    assert not stores.exists(place)
    for maker in ("first", "second"):
        store.create_group(place, {"maker": maker})
    assert stores.exists(place)
    assert dict(stores.open_group(place, "r").attrs) == {"maker": "first"}
    store.remove(place, "0")
    assert not stores.exists(place)
    with pytest.raises(FileNotFoundError):
        stores.open_node(place)


def test_what_is_stored_is_found_by_its_key(place):
    stores.store_of(place).create_group(place, {})
    array = stores.open_group(place, "r+").create_array("0", shape=(4, 4), chunks=(2, 2), dtype="uint8")
    array[:2, :2] = 1
    assert stores.holds(array.store_path / "c/0/0")
    assert not stores.holds(array.store_path / "c/1/1")
    file = stores.file_of(array.store_path / "c/0/0")
    assert file == (Path(place, "0", "c/0/0") if is_local(place) else None)


def test_a_disk_holds_something_where_there_is_any_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "zarr.json.1.partial").touch()
    (tmp_path / "file").touch()
    found = [name for name in ("nothing", "empty", "begun", "file") if stores.exists(str(tmp_path / name))]
    assert found == ["file"]


def test_a_url_that_leads_nowhere_is_one_line():
    with pytest.raises(OutputError, match=r"nosuch://bucket/o.zarr cannot be reached: .*; check the URL"):
        stores.exists("nosuch://bucket/o.zarr")


@pytest.mark.parametrize(
    ("a", "b", "nested"),
    [
        ("scan.zarr", "./scan.zarr/", True),
        ("scan.zarr/0", "scan.zarr", True),
        ("scan.zarr", "scan.zarr2", False),
        ("link.zarr/1", "scan.zarr", True),
        ("s3://lab/scan.zarr", "s3://lab/scan.zarr/", True),
        ("s3://lab/scan.zarr", "s3://lab/other.zarr", False),
        ("s3://lab/scan.zarr/labels", "S3://lab//scan.zarr", True),
        ("s3://lab/x/../scan.zarr/labels", "s3://lab/scan.zarr", True),
        ("scan.zarr/new/../../scan.zarr/a", "scan.zarr", True),
        ("file://{here}/scan.zarr/a", "scan.zarr", True),
        ("file://{here}/sc%61n.zarr", "link.zarr", True),
        ("s3://lab/scan.zarr", "scan.zarr", False),
    ],
)
def test_one_path_in_another(tmp_path, monkeypatch, a, b, nested):
    monkeypatch.chdir(tmp_path)
    Path("scan.zarr").mkdir()
    Path("link.zarr").symlink_to("scan.zarr")
    a, b = (text.format(here=tmp_path) for text in (a, b))
    assert stores.nested(a, b) is stores.nested(b, a) is nested


def test_paths_are_made_absolute_and_urls_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("/")
    assert absolute("link/../scan.zarr") == str(tmp_path / "scan.zarr")
    assert absolute("link/scan.zarr") == str(tmp_path / "link/scan.zarr")
    assert absolute("s3://lab/scan.zarr") == "s3://lab/scan.zarr"


def test_nobody_else_tells_a_url_by_its_text():
    """Addresses of a cluster are another thing."""
    rooms = [Path(package.__file__).parent for package in (unet_engine, unet_export)]
    asking = {p for room in rooms for p in room.rglob("*.py") if re.search(r"[\"']://[\"'] (not )?in ", p.read_text())}
    assert {p.name for p in asking if p.parent.name != "cluster"} == {"paths.py"}


def test_no_more_of_remote_metadata_is_asked_for_than_they_may_have(tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    path, asked, plain = f"memory://{tmp_path}/long.zarr", [], MemoryFileSystem.cat_file

    def noted(self, path, start=None, end=None, **kwargs):
        asked.append((path.rpartition("/")[2], end))
        return plain(self, path, start, end, **kwargs)

    zarr.create_array(path, shape=(4, 4), dtype="u1", attributes={"long": "x" * 4000})
    monkeypatch.setattr(MemoryFileSystem, "cat_file", noted)
    monkeypatch.setattr(stores, "LONGEST_METADATA", 4096)
    with pytest.raises(OSError, match="no metadata have"):
        stores.open_node(path)
    assert ("zarr.json", 4097) in asked
    assert {end for _, end in asked} == {4097}
    monkeypatch.setattr(stores, "LONGEST_METADATA", 2**16)
    assert stores.open_node(path).shape == (4, 4)


@pytest.mark.parametrize(
    ("url", "package"), [("http://127.0.0.1:9/scan.zarr", "aiohttp"), ("s3://lab/scan.zarr", "s3fs")]
)
def test_a_store_whose_library_is_missing_says_what_to_install(tmp_path, monkeypatch, url, package):
    monkeypatch.setattr("unet_engine.storage.objects.usable", lambda _: False)
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("http", "s3"):
        monkeypatch.delitem(sys.modules, f"fsspec.implementations.{module}", raising=False)
    for scheme in ("http", "https", "s3"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    scan, model = make_volume(tmp_path / "scan.zarr", np.zeros((8, 8, 8), np.uint8)), fake_model(tmp_path)
    for options, code in (((url, tmp_path / "o.zarr"), 3), ((scan, url), 8)):
        said = cli("run", "--in", options[0], "--model", model, "--out", options[1])
        assert said.code == code, said.err
        assert package in said.error
        assert said.error.count("pip install 'unet-engine[remote]'") == 1
