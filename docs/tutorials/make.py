"""The data of the tutorials: `python docs/tutorials/make.py ct|mosaic FOLDER`, or `cut ADDRESS FILE.tif`.

ct: a slice of a CT that is public and comes with pydicom (CT_small.dcm), and a small network that tells air, soft
tissue and bone by their Hounsfield units. mosaic: a slide of synthetic tissue as a GeoTIFF, and the 2D network that
comes with the engine. cut: the middle of a public volume as Neuroglancer shows it (precomputed), by TensorStore.
"""

import shutil
import sys
from pathlib import Path

import numpy as np


def ct(folder: Path) -> None:
    """``scan.dcm`` and ``tissue.onnx``."""
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("CT_small.dcm", download=False), folder / "scan.dcm")
    _hounsfield(folder / "tissue.onnx")


def _hounsfield(path: Path) -> None:
    """Mean of 3x3 voxels, then one score per class, linear in HU: air below -300, bone above 250."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from unet_engine.model.spec import METADATA_KEY, ModelSpec

    weights = {
        "mean": np.full((1, 1, 3, 3), 1 / 9, np.float32),
        "slope": np.array([-1, 0, 1], np.float32).reshape(3, 1, 1, 1) / 50,
        "bias": np.array([-300, 0, -250], np.float32) / 50,
    }
    nodes = [
        helper.make_node("Conv", ["x", "mean"], ["smooth"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["smooth", "slope", "bias"], ["y"]),
    ]
    sizes = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "tissue",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    spec = ModelSpec(
        name="tissue", axes="yx", channels_in=1, channels_out=3, classes=("air", "soft tissue", "bone"), window=(64, 64),
        window_min=(16, 16), window_step=(8, 8), margin=(0, 0), context=(1, 1), activation="softmax",
    )  # fmt: skip
    helper.set_model_props(model, {METADATA_KEY: spec.model_dump_json()})
    onnx.save(model, path)


def mosaic(folder: Path) -> None:
    """``slide.tif``, half a metre to the pixel in UTM zone 32, and ``cells_2d.onnx``."""
    import rasterio

    from unet_engine.model.shipped import shipped_model
    from unet_export.train.tissue import make_tissue

    image = make_tissue((8, 640, 640), 3)[0][4]
    options = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 640, "width": 640, "crs": "EPSG:32632",
               "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), "tiled": True, "blockxsize": 256,
               "blockysize": 256}  # fmt: skip
    with rasterio.open(folder / "slide.tif", "w", **options) as file:
        file.write(image, 1)
    shutil.copy(shipped_model("cells_2d.onnx"), folder / "cells_2d.onnx")


def cut(address: str, file: Path, shape: tuple[int, int, int] = (256, 520, 520)) -> None:
    """The middle of what lies at `address`, of at most `shape` (z, y, x) voxels, as a TIFF."""
    import tensorstore
    import tifffile

    volume = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": address}, open=True).result()
    low, high = volume.domain.inclusive_min[:3], volume.domain.exclusive_max[:3]  # x, y, z
    middle = tuple(
        slice(max(a, (a + b - n) // 2), min(b, (a + b - n) // 2 + n))
        for a, b, n in zip(low, high, shape[::-1], strict=True)
    )
    tifffile.imwrite(file, volume[(*middle, 0)].read().result().T)


if __name__ == "__main__":
    kind, place = sys.argv[1], Path(sys.argv[-1])
    if kind == "cut":
        cut(sys.argv[2], place)
        sys.exit()
    place.mkdir(parents=True, exist_ok=True)
    {"ct": ct, "mosaic": mosaic}[kind](place)
