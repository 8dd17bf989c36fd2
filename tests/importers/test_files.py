"""Archives of anybody: nothing outside is read or written, and what they unpack to is bounded."""

import stat
import zipfile

import pytest

from unet_engine.errors import ModelError
from unet_export.importers.files import Files, digest


def archive(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries:
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out.txt", "c:/out.txt", "..\\out.txt"])
def test_entries_that_lie_outside_are_refused(tmp_path, name):
    path = archive(tmp_path / "a.zip", [("rdf.yaml", b"x"), (name, b"y")])
    with pytest.raises(ModelError, match="lies outside of it") as refused:
        Files(path)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out.txt").exists()


def test_links_in_archives_are_refused(tmp_path):
    entry = zipfile.ZipInfo("weights.pt")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(entry, "/etc/passwd")
    with pytest.raises(ModelError, match=r"holds the link 'weights\.pt'"):
        Files(tmp_path / "a.zip")


def test_links_that_lead_out_of_a_folder_are_refused_but_for_the_blobs_of_a_hub(tmp_path):
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "models--x" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "a").symlink_to(tmp_path / "secret")
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    (blobs / "1").write_text("w")
    (folder / "b").symlink_to(blobs / "1")
    files = Files(folder)
    with pytest.raises(ModelError, match="leads out of"):
        files.local("a")
    assert files.local("b").read_text() == "w"


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = archive(tmp_path / "a.zip", [("rdf.yaml", b"x"), ("big", bytes(80 * 2**20))])
    with pytest.raises(ModelError, match="unpack it yourself and name the folder"):
        Files(path)


@pytest.mark.parametrize("damage", ["cut", "byte", "text"])
def test_a_damaged_archive_is_one_line(tmp_path, damage):
    path = archive(tmp_path / "a.zip", [("rdf.yaml", b"description " * 1000)])
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "byte":
        data[45] ^= 255
    else:
        data = bytearray(b"no archive at all")
    path.write_bytes(data)
    with pytest.raises(ModelError) as refused, Files(path) as files:
        files.text("rdf.yaml")
    assert "get the source again" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_that_was_packed_itself_is_its_content(tmp_path):
    with Files(archive(tmp_path / "a.zip", [("pkg/rdf.yaml", b"x"), ("pkg/w/net", b"y")])) as files:
        assert files.names == ["rdf.yaml", "w/net"]
        place = files.local("w/net")
        assert place.read_bytes() == b"y"
    assert not place.exists()


def test_names_in_a_description_lead_nowhere_else(tmp_path):
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "a").write_text("a")
    files = Files(folder)
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(ModelError, match="lies outside of it"):
            files.local(name)
    with pytest.raises(ModelError, match="lacks the file b"):
        files.local("b")


def test_the_content_decides_the_digest_and_nothing_else(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("same")
    assert digest([tmp_path / "one"]) == digest([tmp_path / "two"])
    (tmp_path / "two" / "a").write_text("Same")
    assert digest([tmp_path / "one"]) != digest([tmp_path / "two"])
    (tmp_path / "two" / "a").rename(tmp_path / "two" / "b")
    (tmp_path / "two" / "b").write_text("same")
    assert digest([tmp_path / "one"]) != digest([tmp_path / "two"])
