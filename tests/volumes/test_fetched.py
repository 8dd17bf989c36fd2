"""Files of other formats than Zarr behind URLs and in buckets: the same voxels and places as from a disk."""

import pickle

import numpy as np
import pytest

from support.command_line import cli
from support.fault_proxy import FaultProxy
from support.s3 import faulty
from support.shares import share
from support.volumes import fake_model, result_of
from support.web_server import WebServer
from unet_engine.errors import InputError
from unet_engine.paths import inside
from unet_engine.plan.box import Box
from unet_engine.storage import patience, remote_files, scratch
from unet_engine.volumes.formats import open_volume

pytest.importorskip("aiohttp", reason="aiohttp is not installed")

IMAGE = np.random.default_rng(7).integers(1, 255, (12, 40, 36), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _soon(monkeypatch, tmp_path):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.05)
    monkeypatch.setenv(patience.SECONDS, "2")
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))


def _nifti(path):
    nibabel = pytest.importorskip("nibabel")
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = 4, 5, 6
    nibabel.Nifti1Image(IMAGE.transpose(2, 1, 0), affine).to_filename(path)


def _nrrd(path):
    pytest.importorskip("nrrd").write(str(path), IMAGE.transpose(2, 1, 0), {"spacings": [1.5, 2.0, 3.0]})


def _tiff(path):
    pytest.importorskip("tifffile").imwrite(path, IMAGE, ome=True, metadata={"axes": "ZYX"})


def _stack(path):
    pytest.importorskip("tifffile").imwrite(path, IMAGE, compression="zlib", metadata={"axes": "ZYX"})


def _hdf5(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("raw/image", data=IMAGE)
        file.create_dataset("raw/other", data=IMAGE[::-1])


def _geotiff(path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin

    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_400_000, 0.6, 0.6), "nodata": 0}
    with rasterio.open(
        path, "w", driver="GTiff", width=36, height=40, count=12, dtype="uint8", tiled=True, blockxsize=16, blockysize=16, **place
    ) as file:  # fmt: skip
        file.write(IMAGE)


FILES = {
    "scan.nii.gz": _nifti, "scan.nii": _nifti, "scan.nrrd": _nrrd, "scan.ome.tif": _tiff, "stack.tiff": _stack,
    "scan.h5": _hdf5, "scan.npy": lambda path: np.save(path, IMAGE), "scene.tif": _geotiff,
}  # fmt: skip
INSIDE = {"scan.h5": ":/raw/image"}


def whole(volume):
    return volume.read(Box.of_shape(volume.shape))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("manners", [{}, {"ranges": False, "lengths": False}, {"query": "X-Amz-Signature=abcdef123"}],
                         ids=["all", "nothing", "signed"])  # fmt: skip
def test_files_behind_urls_are_what_they_are_on_a_disk(tmp_path, name, manners):
    FILES[name](tmp_path / name)
    here = open_volume(f"{tmp_path / name}{INSIDE.get(name, '')}")
    with WebServer(tmp_path, **manners) as server:
        query = f"?{manners['query']}" if "query" in manners else ""
        there = open_volume(f"{server.url}/{name}{query}{INSIDE.get(name, '')}")
        assert (there.axes, there.shape, there.spacing, there.translation, there.unit, there.frame) == (
            here.axes, here.shape, here.spacing, here.translation, here.unit, here.frame
        )  # fmt: skip
        np.testing.assert_array_equal(whole(there), whole(here))
        asked = len(server.seen)
        again = pickle.loads(pickle.dumps(there))
        np.testing.assert_array_equal(whole(again), whole(here))
        if not query and "ranges" not in manners and ".tif" not in name:
            assert all(span == "bytes=0-0" for _, _, span in server.seen[asked:]), "it was fetched twice"
    if name != "scene.tif" or "ranges" in manners:
        assert list((tmp_path / "cache/unpacked").glob(f"*{name.partition('?')[0]}"))
        there.release()
        again.release()
        del again


def test_a_geotiff_is_read_by_parts(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(1)
    scene = rng.integers(1, 255, (2048, 2048), dtype=np.uint8)
    from rasterio.transform import from_origin

    with rasterio.open(tmp_path / "big.tif", "w", driver="GTiff", width=2048, height=2048, count=1, dtype="uint8", tiled=True,
                       crs="EPSG:32633", transform=from_origin(0, 0, 1, 1)) as file:  # fmt: skip
        file.write(scene, 1)
    with WebServer(tmp_path) as server:
        proxy = FaultProxy(*server.address)
        volume = open_volume(f"{proxy.url}/big.tif")
        box = Box((100, 200), (300, 500))
        np.testing.assert_array_equal(volume.read(box)[0], scene[box.slices()])
        spans = [s for m, p, s in server.seen if m == "GET" and p.endswith("big.tif") and s]
        assert sum(int(s[6:].split("-")[1]) - int(s[6:].split("-")[0]) for s in spans) < 1_000_000
        assert not (tmp_path / "cache").exists()
        proxy.fault = lambda number, method, path: "500" if number % 2 else None
        np.testing.assert_array_equal(whole(volume)[0], scene)  # asked for again
        proxy.fault = lambda *_: "500"
        other = open_volume  # a store that fails is told in its own words, with key and cause
        with pytest.raises(InputError, match=r"big.tif.*500 Internal Server Error, asked \d+ times"):
            other(f"{proxy.url}/big.tif")
        proxy.close()


@pytest.mark.parametrize("fault", share(["cut", "503"]))
def test_a_file_that_is_cut_off_is_asked_for_again(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(remote_files, "PIECE", 1000)
    _nifti(tmp_path / "scan.nii.gz")
    with WebServer(tmp_path) as server:
        proxy = FaultProxy(*server.address)
        proxy.fault = lambda number, method, path: fault if number % 3 == 0 else None
        np.testing.assert_array_equal(whole(open_volume(f"{proxy.url}/scan.nii.gz"))[0], IMAGE)
        proxy.fault = lambda *_: "503"
        with pytest.raises(InputError, match="503 Service Unavailable"):
            open_volume(f"{proxy.url}/scan.nii.gz?other")
        proxy.close()


def test_what_is_truncated_at_its_source_is_named_by_its_url(tmp_path):
    _nifti(tmp_path / "scan.nii.gz")
    data = (tmp_path / "scan.nii.gz").read_bytes()
    (tmp_path / "scan.nii.gz").write_bytes(data[: len(data) // 2])
    with WebServer(tmp_path) as server:
        with pytest.raises(InputError, match=f"{server.url}/scan.nii.gz.*(damaged|breaks off)"):
            open_volume(f"{server.url}/scan.nii.gz")
        with pytest.raises(InputError, match=r"nothing.nii.gz does not exist"):
            open_volume(f"{server.url}/nothing.nii.gz")


def test_a_rewritten_file_is_another_one(tmp_path, monkeypatch):
    _nifti(tmp_path / "scan.nii.gz")
    with faulty(monkeypatch) as (_, client):
        client.upload_file(str(tmp_path / "scan.nii.gz"), "lab", "scan.nii.gz")
        np.testing.assert_array_equal(whole(open_volume("s3://lab/scan.nii.gz"))[0], IMAGE)
        np.save(tmp_path / "a.npy", IMAGE[::-1])
        client.put_object(Bucket="lab", Key="scan.npy", Body=(tmp_path / "a.npy").read_bytes())
        np.testing.assert_array_equal(whole(open_volume("s3://lab/scan.npy"))[0], IMAGE[::-1])
        np.save(tmp_path / "a.npy", IMAGE)
        client.put_object(Bucket="lab", Key="scan.npy", Body=(tmp_path / "a.npy").read_bytes())
        np.testing.assert_array_equal(whole(open_volume("s3://lab/scan.npy"))[0], IMAGE)


def test_headers_without_their_voxels_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"keeps its voxels in another file beside it.*\.nrrd"):
        open_volume("s3://lab/scan.nhdr")


def test_a_run_of_a_file_behind_a_url(tmp_path):
    _nifti(tmp_path / "scan.nii.gz")
    model = fake_model(tmp_path)
    with WebServer(tmp_path) as server:
        url = f"{server.url}/scan.nii.gz"
        said = cli("run", "--in", url, "--model", model, "--out", tmp_path / "web.zarr", "--strict", "--json")
        assert said.code == 0, said.err
        assert "is read from a copy" in said.err
    here = cli("run", "--in", tmp_path / "scan.nii.gz", "--model", model, "--out", tmp_path / "disk.zarr")
    assert here.code == 0, here.err
    assert result_of(str(tmp_path / "web.zarr")).tobytes() == result_of(str(tmp_path / "disk.zarr")).tobytes()
    for copy in (tmp_path / "cache/unpacked").glob("*scan.nii.gz"):
        scratch._remove_at_exit(copy)  # where something of the run has not been collected yet
    assert not list((tmp_path / "cache/unpacked").glob("*scan.nii.gz"))


def test_no_signature_is_written_or_shown(tmp_path):
    """Notes quote the input, and are kept with the output."""
    np.save(tmp_path / "scan.npy", IMAGE)
    with WebServer(tmp_path, query="sig=SECRETSECRET1") as server:
        said = cli("run", "--in", f"{server.url}/scan.npy?sig=SECRETSECRET1", "--model", fake_model(tmp_path),
                   "--out", tmp_path / "o.zarr", "--json")  # fmt: skip
        with pytest.raises(InputError, match=rf"{server.url}/scan.npy\?sig=\*\*\* .*403 Forbidden"):
            open_volume(f"{server.url}/scan.npy?sig=ANOTHERONE")
    assert said.code == 0, said.err
    assert "is read from a copy" in said.err
    assert "SECRETSECRET1" not in said.err + said.out
    assert "is read from a copy" in (tmp_path / "o.zarr/zarr.json").read_text()
    assert not [p for p in (tmp_path / "o.zarr").rglob("*") if p.is_file() and b"SECRETSECRET1" in p.read_bytes()]


def test_a_server_that_unpacks_on_the_way(tmp_path):
    """Web servers say of a .gz that it was packed on the way, and clients unpack it."""
    _nifti(tmp_path / "scan.nii.gz")
    with WebServer(tmp_path, headers={"Content-Encoding": "gzip"}) as server:
        np.testing.assert_array_equal(whole(open_volume(f"{server.url}/scan.nii.gz"))[0], IMAGE)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("https://host.nc:8080/scan.h5", ("https://host.nc:8080/scan.h5", None)),
        ("https://host/scan.h5:/raw", ("https://host/scan.h5", "/raw")),
        ("https://host/scan.h5?sig=a%3A:/raw", ("https://host/scan.h5?sig=a%3A", "/raw")),
        ("https://host/scan.h5:/raw?sig=a", ("https://host/scan.h5?sig=a", "/raw")),
        ("https://host/scan.h5?to=http://x", ("https://host/scan.h5?to=http://x", None)),
        ("s3://lab.h5/scan.zarr", ("s3://lab.h5/scan.zarr", None)),
    ],
)
def test_datasets_of_files_behind_urls(path, found):
    assert inside(path) == found


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.vrt", "https://127.0.0.1:9/a.VRT?key=1", "s3://lab/a.vrt"])
def test_a_vrt_behind_a_url_is_refused_for_what_it_may_lead_to(tmp_path, url):
    """Its text could be looked at; but GDAL would ask for it again, and may be given another."""
    said = cli("plan", "--in", url, "--model", fake_model(tmp_path))
    assert said.code == 3
    assert "is a VRT" in said.error
    assert "give one of the rasters that it names" in said.error
