"""What a path is shown as."""

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.errors import InputError, SettingsError
from unet_engine.postprocess.convert import convert
from unet_engine.viewing import state
from unet_engine.viewing.panes import misplaced, pane_of, together
from unet_engine.viewing.view import Wish, panes_of
from unet_engine.volumes.pick import Pick

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(1, 200, (20, 22, 24), np.uint8)
BLOBS = np.kron(RANDOM.integers(0, 5, (5, 5, 5)), np.ones((4, 4, 4), int))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A scan and what a network of three classes makes of it, by kind."""
    tmp_path = tmp_path_factory.mktemp("results")
    scan = make_volume(
        tmp_path / "scan.zarr", NOISE.astype(np.float32), ome="0.5", axes="zyx", scale=(40.0, 4.0, 4.0),
        translation=(400.0, 0.0, 8.0), unit="nanometer",
    )  # fmt: skip
    spec = {
        "channels_out": 3, "activation": "softmax", "classes": ("background", "cell", "wall"),
        "colours": ("#000000", "#ff0000", "#00ff7f"),
    }  # fmt: skip
    model = fake_model(tmp_path, **spec)
    made = {"scan": scan}
    for kind in ("labels", "probabilities", "logits"):
        made[kind] = str(tmp_path / f"{kind}.zarr")
        unet_engine.run(scan, model=model, out=made[kind], output=kind, roi="5:15,3:20,4:24")
    return made


def test_results_of_runs_are_shown_as_what_they_are_with_names_and_colours(results):
    panes = {kind: pane_of(path) for kind, path in results.items()}
    assert [panes[kind].kind for kind in results] == ["image", "labels", "probabilities", "image"]
    assert panes["labels"].names == panes["probabilities"].names == ("background", "cell", "wall")
    assert panes["labels"].colours == ("#000000", "#ff0000", "#00ff7f")
    shown = state.layer(panes["labels"], "u", together([panes["labels"]])[0])
    assert shown["segmentColors"] == {"0": "#000000", "1": "#ff0000", "2": "#00ff7f"}
    assert shown["hideSegmentZero"]
    shader = state.shader(panes["probabilities"])
    assert "getDataValue(0)" not in shader  # the background
    assert "vec3(1.0000, 0.0000, 0.0000)" in shader


def test_objects_are_labels_without_names(results, tmp_path):
    pytest.importorskip("cc3d")
    objects = str(tmp_path / "objects.zarr")
    assert cli("components", results["labels"], objects).code == 0
    as_tiff = str(tmp_path / "objects.ome.tif")
    convert(objects, as_tiff)
    for path in (objects, as_tiff):
        pane = pane_of(path)
        assert (pane.kind, pane.names, pane.notes) == ("labels", (), ())


def test_a_region_lies_on_the_right_part_of_the_scan_in_physical_units(results):
    scan, labels = pane_of(results["scan"]), pane_of(results["labels"])
    assert scan.known
    assert scan.spacing == pytest.approx((40e-9, 4e-9, 4e-9))
    _, matrix = together([scan, labels])
    np.testing.assert_allclose(matrix, [[1, 0, 0, 5], [0, 1, 0, 3], [0, 0, 1, 4]], atol=1e-6)
    moved = state.on_axes(state.layer(labels, "u", matrix), scan)["source"][0]["transform"]
    assert moved["matrix"] == pytest.approx(np.array([[1, 0, 0, 4], [0, 1, 0, 3], [0, 0, 1, 5]]), abs=1e-6)
    assert moved["outputDimensions"]["z"] == [pytest.approx(40e-9), "m"]


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "ome.tif", "h5"])
def test_files_that_were_made_of_a_result_are_shown_alike(results, tmp_path, ending):
    out = str(tmp_path / f"labels.{ending}")
    convert(results["labels"], out)
    pane = pane_of(out)
    assert (pane.kind, pane.names) == ("labels", ("background", "cell", "wall"))
    _, matrix = together([pane_of(results["scan"]), pane])
    np.testing.assert_allclose(np.asarray(matrix)[:, 3], (5, 3, 4), atol=1e-3)
    np.testing.assert_allclose(np.asarray(matrix)[:, :3], np.eye(3), atol=1e-5)


@pytest.mark.parametrize(
    ("voxels", "kind"),
    [
        (NOISE, "image"), (NOISE.astype(np.int16) - 90, "image"), (NOISE / np.float32(9), "image"),
        (BLOBS.astype(np.uint8), "labels"), (BLOBS.astype(np.int64) * 10**10, "labels"), (BLOBS > 2, "labels"),
        (BLOBS.astype(np.int16) - 1000, "image"), (np.zeros((9, 9, 9), np.uint8), "image"),
    ],
)  # fmt: skip
def test_voxels_of_others_are_taken_as_labels_where_they_look_so_and_that_is_told(tmp_path, voxels, kind):
    pane = pane_of(make_volume(tmp_path / "v.zarr", voxels))
    assert pane.kind == kind
    assert any("--as-image" in note for note in pane.notes) == (kind == "labels")
    other = "image" if kind == "labels" else "labels"
    assert pane_of(make_volume(tmp_path / "w.zarr", voxels), kind=other).kind == other


def test_channels_are_no_labels(tmp_path):
    path = make_volume(tmp_path / "c.zarr", np.stack([NOISE] * 2), axes="czyx")
    with pytest.raises(SettingsError, match="2 channels and labels have one"):
        pane_of(path, kind="labels")
    assert pane_of(path, kind="labels", pick=Pick(channels=("1",))).volume.channels == 1


def test_a_plane_and_a_volume_are_not_shown_over_one_another(tmp_path):
    panes = [pane_of(make_volume(tmp_path / f"{n}.zarr", NOISE[(0,) * n])) for n in (0, 1)]
    with pytest.raises(InputError, match=r"2 axes and .* has 3"):
        together(panes)


def test_contrast_of_a_volume_that_is_empty_nearly_everywhere_is_that_of_the_middle(tmp_path):
    path = str(tmp_path / "t.zarr")
    array = zarr.create_array(path, shape=(10240, 10240, 10240), chunks=(64, 64, 64), dtype="uint8")
    array[5056:5184, 5056:5184, 5056:5184] = np.random.default_rng(0).integers(50, 150, (128,) * 3, np.uint8)
    low, high = pane_of(path).contrast
    assert (low, high) == pytest.approx((51, 148), abs=2)
    nothing = str(tmp_path / "n.zarr")
    zarr.create_array(nothing, shape=(640, 640, 640), chunks=(64, 64, 64), dtype="uint8")
    assert pane_of(nothing).contrast == (0.0, 1.0)


def test_contrast_is_that_of_most_voxels(tmp_path):
    voxels = RANDOM.normal(100, 10, (30, 30, 30)).astype(np.float32)
    voxels[0, 0, 0] = 1e9
    low, high = pane_of(make_volume(tmp_path / "v.zarr", voxels)).contrast
    assert 60 < low < 85
    assert 115 < high < 140


def test_the_first_of_several_time_points_is_shown(tmp_path):
    path = make_volume(tmp_path / "t.zarr", np.stack([NOISE, NOISE // 2]), axes="tzyx")
    assert pane_of(path).volume.read.__self__.time == 0
    assert pane_of(path, pick=Pick(1)).volume.read.__self__.time == 1


TO_MAP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)
DISK = (np.add.outer((np.arange(90) - 50) ** 2, (np.arange(120) - 70) ** 2) < 400).astype(np.uint8)


def geotiff(path, voxels, transform, crs="EPSG:32633"):
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(path, "w", driver="GTiff", height=voxels.shape[0], width=voxels.shape[1], count=1,
                       dtype=voxels.dtype, crs=crs, transform=transform) as file:  # fmt: skip
        file.write(voxels, 1)
    return str(path)


@pytest.mark.parametrize("kind", ["cropped", "coarse", "south up", "turned"])
def test_rasters_lie_where_their_map_coordinates_say(tmp_path, kind):
    affine = pytest.importorskip("affine").Affine
    to_map = affine(*TO_MAP)
    voxels, transform = {
        "cropped": (DISK[20:, 30:], to_map @ affine.translation(30, 20)),
        "coarse": (DISK[::2, ::2], to_map @ affine.scale(2)),
        "south up": (DISK[::-1], to_map @ affine.translation(0, 90) @ affine.scale(1, -1)),
        "turned": (DISK, to_map @ affine.rotation(30)),
    }[kind]
    panes = [
        pane_of(geotiff(tmp_path / "scan.tif", NOISE[0], to_map)),
        pane_of(geotiff(tmp_path / "labels.tif", np.ascontiguousarray(voxels), transform)),
    ]
    assert [pane.kind for pane in panes] == ["image", "labels"]
    assert misplaced(panes) == []
    matrix = np.array(together(panes)[1])
    for y, x in ((0, 0), (7, 31), (40, 12)):
        there = ~to_map @ (transform @ (x + 0.5, y + 0.5))
        np.testing.assert_allclose(matrix[:, :2] @ (y, x) + matrix[:, 2], (there[1] - 0.5, there[0] - 0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("crs", "said"),
    [("EPSG:32634", "different coordinate systems"), (None, "labels.tif does not say how large its voxels are")],
)
def test_what_is_not_shown_where_it_lies_is_told(tmp_path, crs, said):
    paths = [geotiff(tmp_path / "scan.tif", NOISE[0], TO_MAP), geotiff(tmp_path / "labels.tif", DISK, TO_MAP, crs)]
    told = []
    panes_of(Wish(tuple(paths)), told.append)
    assert said in told[-1]
