"""Files of other formats that are written to buckets: made on this machine, put there whole."""

import numpy as np
import pytest

from support.command_line import cli
from support.s3 import faulty
from support.volumes import fake_model
from unet_engine.errors import OutputError, SettingsError
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.storage import patience, remote_files
from unet_engine.storage.remote_files import RemoteFile
from unet_engine.volumes.formats import open_volume

nibabel = pytest.importorskip("nibabel")
IMAGE = np.random.default_rng(8).integers(1, 255, (12, 20, 18), dtype=np.uint8)


@pytest.fixture
def lab(monkeypatch, tmp_path):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv(patience.SECONDS, "5")
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = 4, 5, 6
    nibabel.Nifti1Image(IMAGE.transpose(2, 1, 0), affine).to_filename(tmp_path / "scan.nii.gz")
    with faulty(monkeypatch) as (proxy, client):
        yield proxy, client


def keys(client):
    return [one["Key"] for one in client.list_objects_v2(Bucket="lab").get("Contents", ())]


def downloaded(client, key, folder):
    client.download_file("lab", key, str(folder / key.rpartition("/")[2]))
    return nibabel.load(folder / key.rpartition("/")[2])


def test_a_run_to_a_file_in_a_bucket(lab, tmp_path):
    proxy, client = lab
    command = ["run", "--in", tmp_path / "scan.nii.gz", "--model", fake_model(tmp_path), "--out"]
    assert (said := cli(*command, tmp_path / "here.nii.gz")).code == 0, said.err
    proxy.fault = lambda number, method, path: "503" if number % 5 == 0 else None
    assert (said := cli(*command, "s3://lab/out/labels.nii.gz", "--json")).code == 0, said.err
    proxy.fault = lambda *_: None
    assert keys(client) == ["out/labels.nii.gz"]
    found, here = downloaded(client, "out/labels.nii.gz", tmp_path), nibabel.load(tmp_path / "here.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(here.dataobj))
    np.testing.assert_array_equal(found.affine, here.affine)
    assert not any((tmp_path / "cache").rglob("*.nii.gz"))
    again = cli(*command, "s3://lab/out/labels.nii.gz")
    assert again.code == OutputError.exit_code, again.err
    assert "use --overwrite" in again.error or "--overwrite to replace it" in again.error
    done = cli(*command, "s3://lab/out/labels.nii.gz", "--resume")
    assert done.code == 0, done.err
    assert "already complete" in done.err
    assert cli(*command, "s3://lab/out/labels.nii.gz", "--overwrite").code == 0


def test_parts_end_in_a_file_in_a_bucket(lab, tmp_path):
    _, client = lab
    command = [
        "run",
        "--in",
        tmp_path / "scan.nii.gz",
        "--model",
        fake_model(tmp_path),
        "--out",
        "s3://lab/labels.nrrd",
    ]
    assert (said := cli(*command, "--part", "1/2")).code == 0, said.err
    assert "labels.nrrd" not in keys(client)
    assert (said := cli(*command, "--part", "2/2")).code == 0, said.err
    assert keys(client) == ["labels.nrrd"]
    assert (said := cli("finish", "s3://lab/labels.nrrd")).code == 0, said.err


def test_beside_the_input_in_its_bucket_and_many(lab, tmp_path):
    _, client = lab
    for name in ("a", "b"):
        client.upload_file(str(tmp_path / "scan.nii.gz"), "lab", f"{name}.nii.gz")
    model = fake_model(tmp_path)
    assert (said := cli("run", "--in", "s3://lab/a.nii.gz", "--model", model)).code == 0, said.err
    assert any(key.startswith("a-") and key.endswith(".nii.gz") for key in keys(client)), keys(client)
    said = cli("run", "--in", "s3://lab/a.nii.gz", "--in", "s3://lab/b.nii.gz", "--model", model,
               "--out", "s3://lab/out/{stem}.nii.gz")  # fmt: skip
    assert said.code == 0, said.err
    assert {"out/a.nii.gz", "out/b.nii.gz"} <= set(keys(client))


@pytest.mark.parametrize("name", ["copy.nrrd", "copy.npy", "copy.h5", "copy.ozx", "copy.zarr", "copy.ome.tif"])
def test_convert_to_a_bucket_and_back(lab, tmp_path, name):
    out = f"s3://lab/deep/{name}"
    convert(str(tmp_path / "scan.nii.gz"), out)
    volume = open_volume(out)
    np.testing.assert_array_equal(volume.read(Box.of_shape(volume.shape))[0], IMAGE)
    with pytest.raises(OutputError, match="exists; use --overwrite"):
        convert(str(tmp_path / "scan.nii.gz"), out)
    convert(str(tmp_path / "scan.nii.gz"), out, overwrite=True)
    convert(out, str(tmp_path / "back.npy"), overwrite=True)
    np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), IMAGE)


def test_a_put_replaces_nothing_that_came_meanwhile(lab, tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"new")
    file = RemoteFile("s3://lab/one")
    monkeypatch.setattr(file._store, "exists", _no)
    file.put(tmp_path / "new", overwrite=False)
    (tmp_path / "new").write_bytes(b"other")
    with pytest.raises(FileExistsError):
        file.put(tmp_path / "new", overwrite=False)
    assert file.read(0, 9) == b"new"
    monkeypatch.setattr(remote_files, "WHOLE_PUT", 2)
    file.put(tmp_path / "new", overwrite=True)
    assert file.read(0, 9) == b"other"


def test_a_long_file_is_put_in_parts_each_of_which_is_asked_for_again(lab, tmp_path, monkeypatch):
    proxy, client = lab
    data = np.random.default_rng(1).bytes(13_000_000)
    (tmp_path / "long").write_bytes(data)
    monkeypatch.setattr(remote_files, "WHOLE_PUT", 2**20)
    proxy.fault = lambda number, method, path: "503" if method == "PUT" and number % 2 else None
    RemoteFile("s3://lab/long").put(tmp_path / "long", overwrite=False)
    assert client.get_object(Bucket="lab", Key="long")["Body"].read() == data


async def _no(_):
    return False


def test_a_store_that_refuses_is_told(lab, tmp_path):
    proxy, client = lab
    proxy.fault = lambda number, method, path: "503" if method == "PUT" and "copy.npy" in path else None
    said = cli("convert", tmp_path / "scan.nii.gz", "s3://lab/copy.npy")
    assert said.code == OutputError.exit_code, said.err
    assert "s3://lab/copy.npy" in said.error
    assert "503" in said.error
    assert keys(client) == []


def test_web_servers_are_not_written_to(tmp_path):
    assert not is_local("https://host/labels.nii.gz")
    said = cli("run", "--in", tmp_path, "--model", "m.onnx", "--out", "https://host/labels.nii.gz")
    assert said.code == SettingsError.exit_code
    assert "a web server can be read, not written to" in said.error
