"""Files of other formats that are written to buckets: made on this machine, put there whole."""

import time

import numpy as np
import pytest

from support.command_line import cli
from support.s3 import keys, laboratory
from support.volumes import fake_model, make_volume
from unet_engine.errors import InputError, OutputError, SettingsError, StoreError
from unet_engine.paths import is_local
from unet_engine.plan.box import Box
from unet_engine.postprocess.convert import convert
from unet_engine.storage import objects, patience, remote_files, scratch, stores
from unet_engine.storage.remote_files import RemoteFile
from unet_engine.volumes.formats import open_volume

nibabel = pytest.importorskip("nibabel")
IMAGE = np.random.default_rng(8).integers(1, 255, (12, 20, 18), dtype=np.uint8)


@pytest.fixture
def lab(monkeypatch, tmp_path):
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = 4, 5, 6
    nibabel.Nifti1Image(IMAGE.transpose(2, 1, 0), affine).to_filename(tmp_path / "scan.nii.gz")
    with laboratory(monkeypatch, tmp_path) as found:
        yield found


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def two(tmp_path):
    """Two volumes in two chunks each, the second with one that is empty: it is not stored."""
    rng = np.random.default_rng(4)
    images = [rng.integers(1, 255, (32, 64, 32), dtype=np.uint8) for _ in range(2)]
    images[1][:, :32] = 0
    paths = [make_volume(str(tmp_path / f"{n}.zarr"), image, chunks=(32,) * 3) for n, image in enumerate(images)]
    return images, paths


def stored(url):
    volume = open_volume(url)
    return volume.read(Box.of_shape(volume.shape))[0]


def test_an_upload_that_fails_keeps_the_group_that_was_there(lab, two, monkeypatch):
    proxy, client = lab
    images, paths = two
    monkeypatch.setenv(patience.SECONDS, "0")
    convert(paths[0], "s3://lab/x.zarr")
    before = keys(client)
    proxy.fault = lambda number, method, path: "503" if method == "PUT" and "/c/0/1/0" in path else None
    said = cli("convert", paths[1], "s3://lab/x.zarr", "--overwrite")
    assert said.code == OutputError.exit_code, said.err
    assert "503" in said.error
    assert "what was there is kept as it was" in said.error
    proxy.fault = lambda *_: None
    assert keys(client) == before
    np.testing.assert_array_equal(stored("s3://lab/x.zarr"), images[0])
    assert cli("convert", paths[1], "s3://lab/x.zarr", "--overwrite").code == 0
    np.testing.assert_array_equal(stored("s3://lab/x.zarr"), images[1])
    assert all(key.startswith("x.zarr/") for key in keys(client))
    assert len(keys(client)) < len(before), "no chunk of the old one is left where the new one has none"


@pytest.mark.slow
def test_whatever_moment_all_stops_at_nothing_is_mixed(lab, two, monkeypatch):
    """From some request on nothing is answered any more, as after a kill."""
    proxy, client = lab
    images, paths = two
    monkeypatch.setenv(patience.SECONDS, "0")
    states, writes = set(), 0
    while True:
        writes += 3
        for key in keys(client):
            client.delete_object(Bucket="lab", Key=key)
        convert(paths[0], "s3://lab/x.zarr")
        left = iter(range(writes))
        proxy.fault = lambda _, method, __, left=left: (
            "drop" if method in ("PUT", "DELETE", "POST") and next(left, None) is None else None
        )
        said = cli("convert", paths[1], "s3://lab/x.zarr", "--overwrite")
        proxy.fault = lambda *_: None
        try:
            found = stored("s3://lab/x.zarr")
        except InputError:
            states.add("none")
            assert "the new one lies whole in s3://lab/.x.zarr.partial/" in said.error
            staged = said.error.partition("lies whole in ")[2].partition(",")[0]
            np.testing.assert_array_equal(stored(staged), images[1])
        else:
            which = next(n for n, image in enumerate(images) if np.array_equal(image, found))
            states.add(("old", "new")[which])
            assert which == 1 or said.code == OutputError.exit_code
        if said.code == 0:
            break
        convert(paths[1], "s3://lab/x.zarr", overwrite=True)
        np.testing.assert_array_equal(stored("s3://lab/x.zarr"), images[1])
    assert states == {"old", "none", "new"}


def test_what_was_begun_and_not_finished_is_ours_and_what_others_left_is_not_taken_for_chunks(lab, two):
    proxy, client = lab
    _, paths = two
    convert(paths[1], "s3://lab/x.zarr")
    first = next(one.path for one in proxy.seen if one.method == "PUT")
    assert first.endswith("/x.zarr/zarr.json"), "of several that begin one does"
    client.put_object(Bucket="lab", Key="y.zarr/0/c/0/0/0", Body=b"of somebody else")
    with pytest.raises(OutputError, match=r"holds 1 objects, e\.g\. 0/c/0/0/0"):
        convert(paths[1], "s3://lab/y.zarr")


@pytest.mark.slow
def test_an_output_in_a_bucket_is_removed_so_that_no_array_lacks_chunks(lab, two, tmp_path, monkeypatch):
    command = ["run", "--in", two[1][0], "--model", fake_model(tmp_path), "--out", "s3://lab/o.zarr"]
    command += ["--output", "logits"]
    assert (said := cli(*command)).code == 0, said.err
    gone, delete = [], objects.Objects.delete

    async def noted(self, key):
        gone.append(key)
        await delete(self, key)

    monkeypatch.setattr(objects.Objects, "delete", noted)
    assert (said := cli(*command, "--overwrite")).code == 0, said.err
    chunks = [n for n, key in enumerate(gone) if key.startswith("0/c/")]
    assert chunks
    assert gone.index("0/zarr.json") < min(chunks)
    assert gone.index("zarr.json") > max(chunks)


def test_a_long_file_replaces_nothing_that_came_meanwhile(lab, tmp_path, monkeypatch):
    _, client = lab
    monkeypatch.setattr(remote_files, "WHOLE_PUT", 2)
    for name in ("new", "other"):
        (tmp_path / name).write_bytes(name.encode())
    RemoteFile("s3://lab/one").put(tmp_path / "new", overwrite=False)
    late = RemoteFile("s3://lab/one")
    monkeypatch.setattr(late._store, "exists", _no)
    with pytest.raises(FileExistsError):
        late.put(tmp_path / "other", overwrite=False)
    late.put(tmp_path / "new", overwrite=False)  # what is there is what is put: an answer may have been lost
    assert late.read(0, 9) == b"new"
    assert keys(client) == ["one"], "nothing is left beside it"


@pytest.mark.parametrize(("answer", "there"), [("403", []), ("501", ["scan501"])])
def test_only_a_store_that_cannot_copy_is_given_the_file_without_a_condition(lab, tmp_path, monkeypatch, answer, there):
    """By its answer, not by a name with that number in it."""
    proxy, client = lab
    monkeypatch.setattr(remote_files, "WHOLE_PUT", 2)
    monkeypatch.setenv(patience.SECONDS, "0")
    (tmp_path / "new").write_bytes(b"new")
    proxy.fault = lambda _, method, path: answer if method in ("PUT", "POST") and "/scan501?" in path else None
    if there:
        RemoteFile("s3://lab/scan501").put(tmp_path / "new", overwrite=False)
    else:
        with pytest.raises(StoreError, match=answer):
            RemoteFile("s3://lab/scan501").put(tmp_path / "new", overwrite=False)
    proxy.fault = lambda *_: None
    assert keys(client) == there


def test_what_kills_left_beside_it_long_ago_goes(lab, tmp_path, monkeypatch):
    _, client = lab
    monkeypatch.setattr(remote_files, "WHOLE_PUT", 2)
    (tmp_path / "new").write_bytes(b"new")
    now = int(time.time())
    for since in (now - 60, now - 10 * scratch.KEPT_SECONDS):
        client.put_object(Bucket="lab", Key=f".one.partial/{since}-ab", Body=b"half")
    RemoteFile("s3://lab/one").put(tmp_path / "new", overwrite=False)
    assert keys(client) == [f".one.partial/{now - 60}-ab", "one"]


def test_a_library_that_is_missing_is_told_with_the_url_once(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(stores.Files, "from_url", missing)
    for url in ("abc://lab/scan.zarr", "abc://lab/scan.nii.gz"):
        with pytest.raises(InputError, match=r"pip install 'unet-engine\[remote\]'") as caught:
            open_volume(url)
        assert str(caught.value).count("abc://lab") == 1, str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.gpkg", "t.geojson"])
def test_tables_and_polygons_in_buckets(lab, tmp_path, name):
    proxy, client = lab
    labels = np.zeros((20, 18), np.uint8)
    labels[2:5, 3:9], labels[9:, 2:4] = 1, 2
    make_volume(tmp_path / "l.zarr", labels)
    command = "polygons" if name.endswith(("gpkg", "geojson")) else "table"
    assert (said := cli(command, tmp_path / "l.zarr", tmp_path / name)).code == 0, said.err
    proxy.fault = lambda number, method, path: "503" if number % 3 == 0 else None
    assert (said := cli(command, tmp_path / "l.zarr", f"s3://lab/out/{name}", "--json")).code == 0, said.err
    assert (said.json["out"], said.json["objects"]) == (f"s3://lab/out/{name}", 2)
    again = cli(command, tmp_path / "l.zarr", f"s3://lab/out/{name}")
    assert (again.code, "--overwrite" in again.error) == (OutputError.exit_code, True)
    assert cli(command, tmp_path / "l.zarr", f"s3://lab/out/{name}", "--overwrite").code == 0
    assert keys(client) == [f"out/{name}"]
    found = client.get_object(Bucket="lab", Key=f"out/{name}")["Body"].read()
    if name.endswith(("csv", "geojson")):  # others say when they were made
        assert found == (tmp_path / name).read_bytes()
    assert not list((tmp_path / "cache" / "made").iterdir())


@pytest.mark.parametrize("name", ["l.nii.gz", "l.nrrd"])
def test_labels_in_a_file_in_a_bucket_have_the_names_of_their_classes(lab, tmp_path, name):
    pytest.importorskip("nrrd" if name.endswith("nrrd") else "nibabel")
    _, client = lab
    model = fake_model(tmp_path, window=(4, 8, 8), classes=["nothing", "field"], activation="sigmoid")
    scan = make_volume(tmp_path / "v.zarr", np.random.default_rng(0).integers(0, 255, (4, 20, 18), np.uint8))
    assert cli("run", "--in", scan, "--model", model, "--out", tmp_path / name).code == 0
    client.upload_file(str(tmp_path / name), "lab", name)
    for source, out in ((tmp_path / name, "here.csv"), (f"s3://lab/{name}", "there.csv")):
        assert (said := cli("table", source, tmp_path / out)).code == 0, said.err
    assert "field" in (tmp_path / "here.csv").read_text()
    assert (tmp_path / "here.csv").read_text() == (tmp_path / "there.csv").read_text()
