"""Many volumes of a bucket or a web server by one --in: globs, prefixes, lists."""

import json

import numpy as np
import pytest

from support.command_line import cli
from support.s3 import faulty, upload
from support.shares import share
from support.volumes import fake_model, make_volume
from support.web_server import WebServer
from unet_engine.batches.inputs import are_several, expanded
from unet_engine.errors import InputError, SettingsError
from unet_engine.storage import patience

IMAGE = np.random.default_rng(9).integers(1, 255, (8, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    with pytest.MonkeyPatch.context() as patch, faulty(patch) as (proxy, client):
        patch.setattr(patience, "FIRST_PAUSE", 0.005)
        patch.setattr(patience, "LONGEST_PAUSE", 0.05)
        make_volume(str(folder / "v.zarr"), IMAGE, chunks=(4, 4, 4))
        for key in ("scans/a.zarr", "scans/b.zarr", "deep/one/scan.zarr", "deep/two/more/scan.zarr"):
            upload(client, folder / "v.zarr", key)
        np.save(folder / "c.npy", IMAGE)
        client.upload_file(str(folder / "c.npy"), "lab", "scans/c.npy")
        client.put_object(Bucket="lab", Key="scans/notes.txt", Body=b"none")
        client.put_object(Bucket="lab", Key="scans/.hidden.zarr/zarr.json", Body=b"{}")
        yield proxy, client


def inputs(*given):
    assert are_several(given)
    return [item.input for item in expanded(given)]


def test_globs(bucket):
    assert inputs("s3://lab/scans/*.zarr") == ["s3://lab/scans/a.zarr", "s3://lab/scans/b.zarr"]
    assert inputs("s3://lab/scans/[bc].*") == ["s3://lab/scans/b.zarr", "s3://lab/scans/c.npy"]
    assert inputs("s3://lab/deep/*/scan.zarr") == ["s3://lab/deep/one/scan.zarr"]
    assert inputs("s3://lab/**/scan.zarr") == ["s3://lab/deep/one/scan.zarr", "s3://lab/deep/two/more/scan.zarr"]
    with pytest.raises(InputError, match="nothing there is called so"):
        expanded(["s3://lab/scans/*.nii"])


@pytest.mark.parametrize("prefix", ["s3://lab/scans/", "s3://lab/scans"])
def test_prefixes(bucket, prefix):
    proxy, _ = bucket
    proxy.fault = lambda number, method, path: "503" if number % 3 == 0 else None
    assert inputs(prefix) == [f"s3://lab/scans/{name}" for name in ("a.zarr", "b.zarr", "c.npy")]
    proxy.fault = lambda *_: None
    with pytest.raises(InputError, match="nothing that is called like a volume"):
        expanded(["s3://lab/nothing/"])
    assert not are_several(["s3://lab/scans/a.zarr"])


def test_lists_behind_urls(bucket, tmp_path):
    _, client = bucket
    client.put_object(Bucket="lab", Key="lists/all.csv", Body=b"input,out\n./x.zarr,x-out.zarr\ns3://other/y.zarr,\n")
    (tmp_path / "all.jsonl").write_text(json.dumps({"input": "x.zarr"}))
    assert [(item.input, dict(item.settings)) for item in expanded(["s3://lab/lists/all.csv"])] == [
        ("s3://lab/lists/x.zarr", {"out": "s3://lab/lists/x-out.zarr"}), ("s3://other/y.zarr", {}),
    ]  # fmt: skip
    with WebServer(tmp_path) as server:
        assert inputs(f"{server.url}/all.jsonl?sig=abc") == [f"{server.url}/x.zarr?sig=abc"]
        with pytest.raises(InputError, match="does not exist"):
            expanded([f"{server.url}/none.csv"])
    for place in ("/etc/passwd.npy", "../x.zarr"):
        client.put_object(Bucket="lab", Key="lists/bad.jsonl", Body=json.dumps({"input": place}).encode())
        with pytest.raises(SettingsError, match="a place on this machine or above"):
            expanded(["s3://lab/lists/bad.jsonl"])


def test_a_list_behind_a_url_names_channels_in_files_of_their_own(bucket, tmp_path):
    _, client = bucket
    for name in ("a.npy", "b+c.npy", "d.npy"):
        (tmp_path / name).touch()
        client.upload_file(str(tmp_path / name), "lab", f"joined/{name}")
    rows = b"input\na.npy+b+c.npy\nb+c.npy\na.npy+s3://other/y.zarr\nx.npy+y.npy\n"
    client.put_object(Bucket="lab", Key="joined/all.csv", Body=rows)
    at = "s3://lab/joined"
    wanted = [f"{at}/a.npy+{at}/b+c.npy", f"{at}/b+c.npy", f"{at}/a.npy+s3://other/y.zarr", f"{at}/x.npy+y.npy"]
    assert [item.input for item in expanded([f"{at}/all.csv"])] == wanted
    (tmp_path / "all.jsonl").write_text(json.dumps({"input": "d.npy+b+c.npy"}))
    with WebServer(tmp_path) as server:
        both = f"{server.url}/d.npy?s=1+{server.url}/b+c.npy?s=1"
        assert [item.input for item in expanded([f"{server.url}/all.jsonl?s=1"])] == [both]
    client.put_object(Bucket="lab", Key="joined/bad.csv", Body=b"input\na.npy+../../d.npy\n")
    with pytest.raises(SettingsError, match="a place on this machine or above"):
        expanded([f"{at}/bad.csv"])


@pytest.mark.parametrize("ending", share(["npy", "nii.gz"], 1))
def test_files_that_a_run_wrote_are_left_out(bucket, tmp_path, ending):
    if ending != "npy":
        pytest.importorskip("nibabel")
    _, client = bucket
    np.save(tmp_path / "c.npy", IMAGE)
    client.upload_file(str(tmp_path / "c.npy"), "lab", f"again/{ending}/scan.npy")
    assert cli("convert", f"s3://lab/again/{ending}/scan.npy", f"s3://lab/again/{ending}/copy.{ending}").code == 0
    pattern = f"s3://lab/again/{ending}/*"
    command = ["run", "--in", pattern, "--model", fake_model(tmp_path), "--out", f"{{parent}}/{{stem}}-x.{ending}"]
    before = inputs(pattern)
    assert len(before) == 2  # what `convert` makes is a volume
    assert (said := cli(*command, "--results", tmp_path / "r.jsonl")).code == 0, said.err
    assert inputs(pattern) == inputs(f"s3://lab/again/{ending}/") == before


def test_a_run_of_a_glob_leaves_out_what_it_wrote_before(bucket, tmp_path):
    command = ["run", "--in", "s3://lab/scans/*.zarr", "--model", fake_model(tmp_path),
               "--out", "s3://lab/scans/{stem}-labels.zarr", "--results", tmp_path / "r.jsonl"]  # fmt: skip
    assert (said := cli(*command)).code == 0, said.err
    assert inputs("s3://lab/scans/*.zarr") == ["s3://lab/scans/a.zarr", "s3://lab/scans/b.zarr"]
    assert inputs("s3://lab/scans/")[-1] == "s3://lab/scans/c.npy"
    assert (said := cli(*command, "--resume")).code == 0, said.err
    assert [json.loads(line)["status"] for line in (tmp_path / "r.jsonl").read_text().splitlines()][:2]
