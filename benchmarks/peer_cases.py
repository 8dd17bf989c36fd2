"""The rows of `models.py`: a source, a volume, the source's own predictor, and the settings of our run."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from train_peers import EM_OVERLAP, EM_WINDOW, SATELLITE_MEAN, SATELLITE_STD, TRAINED
from train_peers import source as trained

Labels = Any
"""([z,] y, x), whole numbers."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    title: str
    """What is imported, for people."""
    network: str
    """What was trained, or the package."""
    volume: Callable[[argparse.Namespace, Path], Path]
    """Writes the volume into a folder: a file that both sides read."""
    theirs: Callable[[Path, Path, argparse.Namespace], Callable[[], Labels]]
    """Of source and volume: loads the network with its own tool; what is returned predicts."""
    peer: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of our run: blending as the peer does it."""
    importing: dict[str, Any] = field(default_factory=dict)
    level: float | None = None
    """Labels are what lies above it, of an image that both sides give."""


def source_of(case: Case, options: argparse.Namespace) -> Path:
    if case.network in TRAINED:
        return trained(case.network, options)
    return options.shared / "models" / "bioimageio" / case.network


def _stored(image: Any, folder: Path) -> Path:
    """A volume (c, [z,] y, x) as Zarr."""
    import zarr

    path = folder / "image.zarr"
    stored = zarr.create_array(
        str(path), shape=image.shape, dtype=image.dtype, chunks=(1, *(min(64, n) for n in image.shape[1:])),
        dimension_names=["c", *"zyx"[4 - image.ndim :]], overwrite=True,
    )  # fmt: skip
    stored[...] = image
    return path


def _read(path: Path) -> Any:
    import zarr

    return np.asarray(zarr.open_array(str(path), mode="r")[...])


# --- nnU-Net ---


def _scan(thick: int) -> Callable[[argparse.Namespace, Path], Path]:
    """The abdomen, of slices `thick` times as far apart."""

    def write(options: argparse.Namespace, folder: Path) -> Path:
        import nibabel

        scan = nibabel.load(options.shared / "data" / "ct" / "abdomen.nii.gz")
        voxels = np.asarray(scan.dataobj, np.int16)[:, :, ::thick]
        path = folder / "scan_0000.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, scan.affine @ np.diag([1, 1, thick, 1])), path)
        return path

    return write


def _by_nnunet(folds: tuple[int, ...], *, mirrored: bool) -> Callable[..., Callable[[], Labels]]:
    """As its users do: from file to file, read, preprocessed, predicted, exported. Its sums in float32."""

    def load(source: Path, volume: Path, options: argparse.Namespace) -> Callable[[], Labels]:
        import nibabel
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        from unet_export.importers.nnunet.predictor import float32_sums

        predictor = nnUNetPredictor(
            tile_step_size=0.5, use_mirroring=mirrored, perform_everything_on_device=False, device=torch.device("cpu"),
            allow_tqdm=False,
        )  # fmt: skip
        predictor.initialize_from_trained_model_folder(str(source), folds, "checkpoint_final.pth")
        out = volume.parent / "by_nnunet"

        def predict() -> Labels:
            with float32_sums():
                predictor.predict_from_files_sequential([[str(volume)]], [str(out)])
            return np.asarray(nibabel.load(f"{out}.nii.gz").dataobj).transpose(2, 1, 0)

        return predict

    return load


def _nnunet(title: str, network: str, folds: tuple[int, ...] = (0,), *, mirrored: bool = False, thick: int = 1) -> Case:
    settings = {"blend": "nnunet", **({} if mirrored else {"tta": "none"})}
    if network == "nnunet_3d":  # a file of two folds
        settings["folds"] = ",".join(map(str, folds))
    return Case(
        title, network, _scan(thick), _by_nnunet(folds, mirrored=mirrored), "nnUNetPredictor, file to file", settings
    )


# --- MONAI ---


def _em(options: argparse.Namespace, folder: Path) -> Path:
    import tifffile

    volume = tifffile.imread(options.shared / "data" / "em" / "volume.tif")
    return _stored(volume[None, :96, :192, :192], folder)


def _by_monai(source: Path, volume: Path, options: argparse.Namespace) -> Callable[[], Labels]:
    """Network, inferer and transforms are those that MONAI's own parser builds of the bundle."""
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(source / "configs" / "inference.json"))
    net = parser.get_parsed_content("network_def").eval()
    net.load_state_dict(torch.load(source / "models" / "model.pt", weights_only=True))
    before, inferer = parser.get_parsed_content("preprocessing"), parser.get_parsed_content("inferer")
    assert (tuple(inferer.roi_size), inferer.overlap) == (EM_WINDOW, EM_OVERLAP)

    def predict() -> Labels:
        x = torch.as_tensor(before({"image": _read(volume).astype(np.float32)})["image"])[None]
        with torch.inference_mode():
            return inferer(x, net)[0].argmax(0).numpy()

    return predict


# --- segmentation-models-pytorch ---


def _mosaic(options: argparse.Namespace, folder: Path) -> Path:
    import tifffile

    mosaic = tifffile.imread(options.shared / "data" / "sat" / "mosaic_2_image.tif")
    return _stored(np.moveaxis(mosaic[:1024, :1024], -1, 0), folder)


def _by_smp(source: Path, volume: Path, options: argparse.Namespace) -> Callable[[], Labels]:
    import segmentation_models_pytorch as smp
    import torch

    net = smp.from_pretrained(str(source)).eval()

    def predict() -> Labels:
        x = (_read(volume).astype(np.float32) - SATELLITE_MEAN) / SATELLITE_STD
        with torch.inference_mode():
            return net(torch.from_numpy(x)[None])[0].argmax(0).numpy()

    return predict


# --- bioimage.io ---


def _its_image(name: str) -> Callable[[argparse.Namespace, Path], Path]:
    def write(options: argparse.Namespace, folder: Path) -> Path:
        return _stored(np.load(options.shared / "models" / "bioimageio" / name / "test_input.npy")[0], folder)

    return write


def _by_bioimageio(source: Path, volume: Path, options: argparse.Namespace) -> Callable[[], Labels]:
    """The package needs the Python that its description names, which is not among the data: see --code."""
    from bioimageio.core import load_model_description, predict
    from bioimageio.core.prediction import create_prediction_pipeline

    package = volume.parent / "package"
    shutil.copytree(source, package, dirs_exist_ok=True)
    for file in (options.code / source.name).glob("*"):
        if file.is_file() and not (package / file.name).exists():
            shutil.copy(file, package)
    description = next(package.glob("*bioimageio.yaml"))
    model = load_model_description(description, perform_io_checks=False)
    pipeline = create_prediction_pipeline(model)

    def predict_image() -> Any:
        import torch

        found = predict(model=pipeline, inputs=_read(volume)[None])
        values = torch.from_numpy(np.asarray(next(iter(found.members.values())).data.data, np.float32))
        shape = _read(volume).shape[1:]
        if tuple(values.shape[2:]) != shape:  # as our run does: on the grid of the input
            values = torch.nn.functional.interpolate(values, shape, mode="bilinear")
        return values[0, 0].numpy()

    return predict_image


def _package(title: str, name: str, level: float) -> Case:
    said = "bioimageio.core, its test image"
    return Case(title, name, _its_image(name), _by_bioimageio, said, {"output": "logits"}, level=level)


CASES = {
    "nnunet-2d": _nnunet("nnU-Net 2D", "nnunet_2d"),
    "nnunet-3d": _nnunet("nnU-Net 3D fullres, trained at 4.5 mm, scan of 3 mm", "nnunet_3d"),
    "nnunet-folds": _nnunet("the same, two folds", "nnunet_3d", (0, 1)),
    "nnunet-mirrored": _nnunet("the same, one fold, mirrored", "nnunet_3d", mirrored=True),
    "nnunet-thick": _nnunet("nnU-Net 3D, trained at 12×3.6×3.6 mm, scan of 15×3×3 mm", "nnunet_thick", thick=5),
    "nnunet-thin": _nnunet("the same network, scan of 3 mm", "nnunet_thick"),
    "nnunet-regions": _nnunet("nnU-Net 3D, regions that overlap", "nnunet_regions"),
    "monai": Case(
        "MONAI bundle, 3D, EM", "monai", _em, _by_monai, "its transforms and SlidingWindowInferer",
        {"overlap": EM_OVERLAP, "blend": "monai"},
    ),
    "smp": Case(
        "segmentation-models-pytorch Unet on ResNet-18, satellite mosaic", "smp", _mosaic, _by_smp, "its network, whole image",
        {"window": (1024, 1024)},
        {"output-channels": "classes", "normalize": f"fixed:mean={SATELLITE_MEAN},std={SATELLITE_STD}"},
    ),
    "bioimageio-0.5": _package("bioimage.io 0.5, outputs of half the size", "unet2d_diff_output_shape", 0.15),
}  # fmt: skip
