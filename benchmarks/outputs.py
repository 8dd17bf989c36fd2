"""Real scans to real files of other formats, each compared with what its own library says.

    python benchmarks/outputs.py [--shared ../shared] [--pictures docs/images] [--em] [--large GiB]

The networks are single convolutions with weights by hand: of a CT they tell air, fat, soft tissue and bone by
Hounsfield units, of an aerial picture plants, water and the rest by red and near infrared. That makes results whose
right value every library can compute from the input. --em does no more than put labels into an OME-Zarr image. --large
also converts a volume of that size, and shows the peak memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

import unet_engine
from unet_engine.execution.hands import Here
from unet_engine.machine import peak_resident_bytes
from unet_engine.model.spec import METADATA_KEY, ModelSpec
from unet_engine.postprocess.pyramid import Wanted, pyramid

Array = np.ndarray[Any, np.dtype[Any]]
TISSUES = ("air", "fat", "soft tissue", "bone")
BOUNDS = (-400.5, -30.5, 180.5)
"""Hounsfield units that these lie between: no whole number, so that none is on a bound."""
GROUND = ("other", "water", "plants")


def linear(path: Path, axes: str, weights: Array, bias: Array, classes: Sequence[str], window: int) -> str:
    """A network of one convolution a voxel wide. weights: (classes, channels)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    count, channels = weights.shape
    n = len(axes)
    free = [f"n{a}" for a in axes]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"])],
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, *free])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, count, *free])],
        [
            numpy_helper.from_array(weights.reshape(count, channels, *(1,) * n).astype(np.float32), "w"),
            numpy_helper.from_array(bias.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    spec = ModelSpec(
        name=path.stem, axes=axes, channels_in=channels, channels_out=count, classes=tuple(classes),
        window=(window,) * n, window_min=(16,) * n, window_step=(16,) * n, margin=(0,) * n, activation="softmax",
    )  # fmt: skip
    helper.set_model_props(model, {METADATA_KEY: spec.model_dump_json()})
    onnx.save(model, str(path))
    return str(path)


def tissues(path: Path) -> str:
    """Class k wins between its bounds: lines whose upper edge is a convex polygon."""
    slopes = np.arange(len(TISSUES), dtype=np.float64) / 100
    bias = np.concatenate([[0.0], -np.cumsum(np.array(BOUNDS) / 100)])
    return linear(path, "zyx", slopes[:, None], bias, TISSUES, 64)


def ground(path: Path) -> str:
    """Plants where near infrared is 40 grey levels above red, water where it is below 60 and not above red."""
    # of the bands red, green, blue, near infrared
    weights = np.array([[0, 0, 0, 0], [0, 0, 0, -1.0], [-1, 0, 0, 1]]) / 10
    return linear(path, "yx", weights, np.array([0, 6.05, -4.05]), GROUND, 256)


def expected_tissue(scan: Array) -> Array:
    return np.digitize(scan, BOUNDS).astype(np.uint8)


def chest(shared: Path, here: Path, pictures: Path | None) -> None:
    import nibabel

    scan, out = shared / "data/ct/chest.nii.gz", here / "chest_labels.nii.gz"
    shown = timed("chest CT to NIfTI", lambda: run(scan, out, tissues(here / "tissues.onnx")))
    before, after = nibabel.load(scan), nibabel.load(out)
    check("affine", np.array_equal(before.affine, after.affine))
    check("unit", before.header.get_xyzt_units()[0] == after.header.get_xyzt_units()[0])
    voxels, labels = np.asarray(before.dataobj), np.asarray(after.dataobj)
    wrong = int((labels != expected_tissue(voxels)).sum())
    check(f"labels: {wrong:,} of {labels.size:,} voxels differ", wrong == 0)
    print(f"  {shown}; {out.stat().st_size / 2**20:.2f} MiB")
    if pictures:
        plane = voxels.shape[2] // 2
        picture(
            pictures / "outputs_chest.png",
            window(voxels[:, :, plane].T, -1000, 600),
            labels[:, :, plane].T,
            len(TISSUES),
        )


def abdomen(shared: Path, here: Path, pictures: Path | None) -> None:
    import highdicom as hd
    import pydicom

    series = repaired(shared / "data/ct/abdomen_dicom", here / "series")
    out = here / "abdomen.dcm"
    shown = timed("DICOM series to DICOM-SEG", lambda: run(series, out, tissues(here / "tissues.onnx")))
    seg = hd.seg.segread(out)
    headers = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    uids = [header.SOPInstanceUID for header in headers]
    found = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    from pydicom.pixels import apply_rescale

    wrong = sum(
        int((expected_tissue(apply_rescale(h.pixel_array, h)) != labels).sum())
        for h, labels in zip(headers, found, strict=True)
    )
    check(f"labels by image: {wrong:,} of {found.size:,} voxels differ", wrong == 0)
    names = [str(seg.get_segment_description(n).segment_label) for n in seg.segment_numbers]
    check(f"segments {', '.join(names)}", names == list(TISSUES[1:]))
    check("study, frame of reference", (seg.StudyInstanceUID, seg.FrameOfReferenceUID)
          == (headers[0].StudyInstanceUID, headers[0].FrameOfReferenceUID))  # fmt: skip
    print(f"  {shown}; {out.stat().st_size / 2**20:.2f} MiB")
    if pictures:
        middle = len(headers) // 2
        image = apply_rescale(headers[middle].pixel_array, headers[middle])
        picture(pictures / "outputs_abdomen.png", window(image, -200, 300), found[middle], len(TISSUES))


def repaired(series: Path, to: Path) -> Path:
    """A copy of the series with the UIDs that were taken out of it."""
    import pydicom

    to.mkdir()
    study, own = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for file in sorted(series.iterdir()):
        header = pydicom.dcmread(file)
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID
        header.StudyInstanceUID, header.SeriesInstanceUID = study, own
        header.save_as(to / file.name)
    return to


def naip(shared: Path, here: Path, pictures: Path | None) -> None:
    import rasterio

    scene, out = with_a_corner_missing(shared / "data/sat/naip.tif", here / "scene.tif"), here / "naip_labels.tif"
    shown = timed("NAIP to GeoTIFF", lambda: run(scene, out, ground(here / "ground.onnx"), outside="255"))
    with rasterio.open(scene) as before, rasterio.open(out) as after:
        bands, labels, nodata = before.read().astype(np.float64), after.read(1), before.dataset_mask() == 0
        check("CRS and transform", (before.crs, before.transform) == (after.crs, after.transform))
        check(f"no label in nodata: {int(nodata.sum()):,} pixels", bool((labels[nodata] == 255).all()))
        check("nodata tag", after.nodata == 255)
        red, infrared = bands[0], bands[3]
        scores = np.stack([np.zeros_like(red), (60.5 - infrared) / 10, (infrared - red - 40.5) / 10])
        tie = np.sort(scores, axis=0)[-1] - np.sort(scores, axis=0)[-2] < 1e-6
        wrong = int(((labels != scores.argmax(0)) & ~nodata & ~tie).sum())
        check(f"labels: {wrong:,} of {labels.size:,} pixels differ", wrong == 0)
        check(f"COG, overviews {after.overviews(1)}", after.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG")
        print(f"  {shown}; {out.stat().st_size / 2**20:.2f} MiB")
        if pictures:
            colour = np.stack([window(b, 20, 220) for b in bands[:3]], -1)
            picture(pictures / "outputs_naip.png", colour, np.where(nodata, 0, labels), len(GROUND), every=3)


def with_a_corner_missing(scene: Path, to: Path) -> Path:
    """A copy with nodata in a corner, as scenes have that lie askew on the map."""
    import rasterio

    with (
        rasterio.open(scene) as before,
        rasterio.open(to, "w", **{**before.profile, "ALPHA": "NO", "PHOTOMETRIC": "MINISBLACK"}) as after,
    ):  # four bands would be red, green, blue and alpha
        bands = before.read()
        y, x = np.indices(bands.shape[1:])
        bands[:, x + y < 300] = before.nodata
        after.write(bands)
    return to


MEMBRANE = 100.5
"""A grey level: what is darker counts as membrane."""


def em(shared: Path, here: Path, pictures: Path | None) -> None:
    """EM as a TIFF to an OME-Zarr image with a pyramid, and labels put into it."""
    import zarr

    image = here / "em.zarr"
    model = linear(
        here / "dark.onnx", "zyx", np.array([[0.0], [-0.1]]), np.array([0, MEMBRANE / 10]), ("bright", "dark"), 64
    )
    unet_engine.convert(str(shared / "data/em/volume.tif"), str(image))
    pyramid(Wanted(str(image), by="mean"), Here(), memory=2**28)
    labels = image / "labels/dark"

    def put_in() -> None:
        found = unet_engine.run(str(image), model=model, into="dark", normalize="none", overlap=0)
        assert found.out == str(labels)

    shown = timed("EM TIFF to labels in an OME-Zarr image", put_in)
    root = zarr.open_group(str(image), mode="r")
    wrong = int(((root["0"][...] < MEMBRANE) != root["labels/dark/0"][...]).sum())
    check(f"labels: {wrong:,} of {root['0'].size:,} voxels differ", wrong == 0)
    names = [str(k) for k in range(len(root.attrs["ome"]["multiscales"][0]["datasets"]))]
    check(
        f"{len(names)} levels of the same shapes", all(root[k].shape == root[f"labels/dark/{k}"].shape for k in names)
    )
    for finer, coarser in pairwise(names):
        fine, coarse = root[f"labels/dark/{finer}"][...], root[f"labels/dark/{coarser}"][...]
        ones = sum(
            np.pad(fine, [(0, n % 2) for n in fine.shape], mode="edge")[i::2, j::2, k::2].astype(np.uint8)
            for i, j, k in product((0, 1), repeat=3)
        )
        check(f"level {coarser}: the majority of level {finer}", bool(((ones > 4) == coarse).all()))
    try:
        from ome_zarr_models import v05
    except ImportError:
        print("  ome-zarr-models is not installed: not asked")
    else:
        known = v05.Image.from_zarr(root).labels.attributes.ome.labels
        v05.ImageLabel.from_zarr(root["labels/dark"])
        check(f"ome-zarr-models takes image and labels ({', '.join(known)})", known == ["dark"])
    print(f"  {shown}; {sum(f.stat().st_size for f in labels.rglob('*') if f.is_file()) / 2**20:.2f} MiB")
    if pictures:
        from PIL import Image

        shown_levels = [(root[k], root[f"labels/dark/{k}"]) for k in names[:4]]
        tiles = [_tile(array[array.shape[0] // 2], over[over.shape[0] // 2]) for array, over in shown_levels]
        Image.fromarray(np.concatenate(tiles, axis=1)).quantize(64).save(pictures / "outputs_em.png", optimize=True)


def _tile(plane: Array, labels: Array, side: int = 240) -> Array:
    """A level as large as all others, half of it with its labels."""
    from PIL import Image

    over = np.stack([plane] * 3, -1)
    half = plane.shape[1] // 2
    over[:, half:][labels[:, half:] > 0] = (255, 140, 0)
    return np.asarray(Image.fromarray(over).resize((side, side), Image.Resampling.NEAREST))


def large(gib: float, here: Path) -> None:
    """A Zarr of that size to each format in a process of its own."""
    import zarr

    side = int((gib * 2**30) ** (1 / 3)) // 128 * 128
    array = zarr.create_array(here / "large.zarr", shape=(side,) * 3, chunks=(128,) * 3, dtype="u1")
    block = (np.indices((128,) * 3).sum(0) // 16 % 5).astype(np.uint8)
    for z in range(0, side, 128):
        for y in range(0, side, 128):
            for x in range(0, side, 128):
                array[z : z + 128, y : y + 128, x : x + 128] = block
    print(f"{side}³ uint8, {side**3 / 2**30:.2f} GiB")
    for name in ("o.nii", "o.nii.gz", "o.nrrd", "o.mha", "o.npy", "o.h5", "o.ome.tif", "o.ozx"):
        code = (
            "import sys; from unet_engine.machine import peak_resident_bytes; from unet_engine.postprocess.convert "
            "import convert; convert(sys.argv[1], sys.argv[2]); print(peak_resident_bytes())"
        )
        begun = time.perf_counter()
        said = subprocess.run(
            [sys.executable, "-c", code, here / "large.zarr", here / name], check=True, capture_output=True, text=True
        )
        seconds, size = time.perf_counter() - begun, (here / name).stat().st_size
        print(f"  {name}: peak {int(said.stdout) / 2**20:.0f} MiB, {seconds:.1f} s, {size / 2**20:.1f} MiB")
        (here / name).unlink()


# --- what they share ---


def run(scan: Path, out: Path, model: str, **options: Any) -> None:
    result = unet_engine.run(str(scan), model=model, out=str(out), normalize="none", **options)
    assert result.out == str(out)


def timed(what: str, work: Any) -> str:
    print(what)
    begun = time.perf_counter()
    work()
    peak = peak_resident_bytes() / 2**20
    return f"{time.perf_counter() - begun:.1f} s, peak memory of this process so far {peak:.0f} MiB"


def check(what: str, holds: bool) -> None:  # noqa: FBT001
    print(f"  {'ok  ' if holds else 'FAIL'} {what}")
    if not holds:
        raise SystemExit(1)


def window(image: Array, low: float, high: float) -> Array:
    return (np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def picture(path: Path, image: Array, labels: Array, classes: int, every: int = 2) -> None:
    """The image, and beside it the labels over it, in the colours that files are given."""
    from PIL import Image

    from unet_engine.output.colours import colour_of

    grey = image if image.ndim == 3 else np.stack([image] * 3, -1)
    colours = np.array([colour_of(i) for i in range(classes)])
    over = np.where((labels > 0)[..., None], 0.5 * grey + 0.5 * colours[labels], grey).astype(np.uint8)
    both = np.concatenate([grey, over], axis=1)[::every, ::every]
    Image.fromarray(both).quantize(64).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--em", action="store_true", help="nothing but labels in an OME-Zarr image")
    parser.add_argument("--large", type=float, metavar="GiB", help="also convert a volume of that size")
    given = parser.parse_args()
    here = Path(tempfile.mkdtemp(prefix="outputs-"))
    os.environ.setdefault("UNET_ENGINE_CACHE", str(here / "cache"))
    try:
        if given.em:
            em(given.shared, here, given.pictures)
            return
        chest(given.shared, here, given.pictures)
        abdomen(given.shared, here, given.pictures)
        naip(given.shared, here, given.pictures)
        em(given.shared, here, given.pictures)
        if given.large:
            large(given.large, here)
    finally:
        shutil.rmtree(here, ignore_errors=True)


if __name__ == "__main__":
    main()
