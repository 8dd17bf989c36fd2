"""Small networks, trained by other tools on real data for a few minutes and left as those tools leave them.

    python benchmarks/train_peers.py --work DIR [--shared ../shared] [--only NAME ...] [--quick]

nnU-Net plans, preprocesses and trains with its own code; its plans are only made smaller: window, spacing, width of the
network, epochs. What is trained already is kept. Every network lies in DIR under its name; `benchmarks/models.py`
trains what it lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# --- nnU-Net ---

ORGANS = {
    "liver": (5,),
    "spleen": (1,),
    "kidney": (2, 3),
    "muscle": (*range(80, 90),),
    "bone": (*range(25, 32), 77, 78),
}
"""Labels of the scan that make each class."""
REGIONS = {"organ": (1, 2, 3), "liver": (1,), "kidney": (3,), "muscle or bone": (4, 5), "bone": (5,)}
REGION_ORDER = (2, 1, 3, 4, 5)
MANY = 104
"""Classes, background among them, of the network of many."""
USUAL = (96, 128, 128), (32, 64, 128, 256, 320, 320)
"""Patch and features of a network of nnU-Net's usual size."""
SLABS = ((0, 64), (24, 88), (40, 104), (48, 112))
"""Parts of the one scan, along its third axis, that training takes for scans."""


@dataclass(frozen=True)
class Training:
    """One nnU-Net configuration."""

    dataset: int
    name: str
    configuration: str
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    strides: tuple[tuple[int, ...], ...]
    folds: tuple[int, ...] = (0,)
    batch: int = 2
    thick: int = 1
    """Of so many slices one is kept: a scan of thick slices."""
    labels: str = "organs"
    """organs, regions of them that overlap, or many: each of the scan's ids below 104."""
    features: tuple[int, ...] = (8, 16, 32)
    kernels: tuple[tuple[int, ...], ...] = ()

    @property
    def folder(self) -> str:
        return f"Dataset{self.dataset:03d}_{self.name}"


_HALVES = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
TRAININGS = {
    "nnunet_2d": Training(901, "Abdomen", "2d", (96, 96), (3.0, 3.0), ((1, 1), (2, 2), (2, 2)), batch=8),
    "nnunet_3d": Training(902, "Abdomen", "3d_fullres", (32, 48, 48), (4.5, 4.5, 4.5), _HALVES, folds=(0, 1)),
    "nnunet_thick": Training(
        903, "ThickSlices", "3d_fullres", (8, 64, 64), (12.0, 3.6, 3.6), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), thick=4,
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    ),
    "nnunet_regions": Training(904, "Regions", "3d_fullres", (32, 48, 48), (4.5, 4.5, 4.5), _HALVES, labels="regions"),
    "nnunet_many": Training(905, "Many", "3d_fullres", (48, 48, 48), (6.0, 6.0, 6.0), _HALVES, labels="many"),
}  # fmt: skip


def trained_by_nnunet(said: Training, options: argparse.Namespace, folder: Path) -> Path:
    """The result folder of the trainer."""
    for key in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{key}"] = str(folder / key)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    dataset = _raw(said, options, folder / "raw")
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess_dataset,
    )

    extract_fingerprints([said.dataset], num_processes=1, show_progress_bar=False)
    plan_experiments([said.dataset])
    made = folder / "preprocessed" / said.folder
    plans = _smaller(json.loads((made / "nnUNetPlans.json").read_text()), said)
    (made / "nnUNetPlans.json").write_text(json.dumps(plans, indent=1))
    preprocess_dataset(said.dataset, configurations=[said.configuration], num_processes=[1], show_progress_bar=False)
    names = [f"scan_{k}" for k in range(len(SLABS))]
    splits = [{"train": [n for n in names if n != out], "val": [out]} for out in names]
    (made / "splits_final.json").write_text(json.dumps(splits))
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # training augments in this process; planning wants a thread
    for fold in said.folds:
        _trainer(plans, said, fold, dataset, options).run_training()
    trained = folder / "results" / said.folder / f"nnUNetTrainer__nnUNetPlans__{said.configuration}"
    shutil.rmtree(folder / "preprocessed")
    return trained


def _trainer(plans: dict[str, Any], said: Training, fold: int, dataset: dict[str, Any], options: Any) -> Any:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(fold)
    np.random.seed(fold)
    trainer = nnUNetTrainer(
        {**plans, "continue_training": False}, said.configuration, fold, dataset, device=torch.device("cpu")
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = (1, 2) if options.quick else (5, 12)
    trainer.num_val_iterations_per_epoch = 1
    return trainer


def _raw(said: Training, options: argparse.Namespace, raw: Path) -> dict[str, Any]:
    """Scans and labels in nnU-Net's layout; its dataset.json."""
    import nibabel

    image = nibabel.load(options.shared / "data" / "ct" / "abdomen.nii.gz")
    given = np.asarray(nibabel.load(options.shared / "data" / "ct" / "abdomen_labels.nii.gz").dataobj)
    truth = np.where(given < MANY, given, 0).astype(np.uint8)
    if said.labels != "many":
        truth[:] = 0
        for label, ids in enumerate(ORGANS.values(), start=1):
            truth[np.isin(given, ids)] = label
    affine = image.affine @ np.diag([1, 1, said.thick, 1])
    for name, voxels in (("imagesTr", np.asarray(image.dataobj, np.int16)), ("labelsTr", truth)):
        (raw / said.folder / name).mkdir(parents=True, exist_ok=True)
        for k, (low, high) in enumerate(SLABS):
            file = f"scan_{k}{'_0000' if name == 'imagesTr' else ''}.nii.gz"
            part = nibabel.Nifti1Image(voxels[:, :, low : high : said.thick], affine)
            nibabel.save(part, raw / said.folder / name / file)
    names = [f"structure {k}" for k in range(1, MANY)] if said.labels == "many" else list(ORGANS)
    labels = REGIONS if said.labels == "regions" else {name: k for k, name in enumerate(names, start=1)}
    dataset = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0} | labels, "numTraining": len(SLABS),
        "file_ending": ".nii.gz", "overwrite_image_reader_writer": "SimpleITKIO", "name": said.name,
        **({"regions_class_order": REGION_ORDER} if said.labels == "regions" else {}),
    }  # fmt: skip
    (raw / said.folder / "dataset.json").write_text(json.dumps(dataset))
    return json.loads((raw / said.folder / "dataset.json").read_text())


def _smaller(plans: dict[str, Any], said: Training) -> dict[str, Any]:
    """The plans for a window, a spacing and a network of a few minutes."""
    configuration = plans["configurations"][said.configuration]
    dims = len(said.patch)
    configuration |= {"patch_size": list(said.patch), "spacing": list(said.spacing), "batch_size": said.batch}
    kinds = configuration["architecture"]["arch_kwargs"]
    stages = len(said.features)
    kinds |= {
        "n_stages": stages, "features_per_stage": list(said.features), "strides": [list(s) for s in said.strides],
        "kernel_sizes": [list(k) for k in said.kernels] or [[3] * dims] * stages, "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }  # fmt: skip
    return plans


def untrained_of_usual_size(options: argparse.Namespace, folder: Path) -> Path:
    """The network of many classes, but as wide and deep as nnU-Net makes them for a patch of this size, its weights
    random: what it takes does not depend on them."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    patch, features = USUAL
    trained = source("nnunet_many", options)
    plans = json.loads((trained / "plans.json").read_text())
    strides = ((1, 1, 1), *[(2, 2, 2)] * (len(features) - 1))
    wide = replace(TRAININGS["nnunet_many"], patch=patch, features=features, strides=strides)
    plans = _smaller(plans, wide)
    architecture = plans["configurations"][wide.configuration]["architecture"]
    said = (architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"])
    torch.manual_seed(0)
    net = get_network_from_plans(*said, 1, MANY, deep_supervision=True)
    held = torch.load(trained / "fold_0" / "checkpoint_final.pth", weights_only=False)
    held["init_args"]["plans"] = plans
    (folder / "fold_0").mkdir()
    kept = {key: held[key] for key in ("init_args", "trainer_name", "inference_allowed_mirroring_axes")}
    torch.save({**kept, "network_weights": net.state_dict()}, folder / "fold_0" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    shutil.copy(trained / "dataset.json", folder)
    return folder


# --- MONAI ---

EM_WINDOW, EM_OVERLAP = (48, 48, 48), 0.25
EM_NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [16, 32, 64], "strides": [2, 2],
    "num_res_units": 1, "norm": "batch",
}  # fmt: skip


def monai_bundle(options: argparse.Namespace, folder: Path) -> Path:
    import tifffile
    import torch
    from monai.networks.nets import UNet

    data = options.shared / "data" / "em"
    image = tifffile.imread(data / "train_image.tif").astype(np.float32) / 255
    truth = tifffile.imread(data / "train_membrane.tif").astype(np.int64)
    net = UNet(**{k: v for k, v in EM_NETWORK.items() if not k.startswith("_")})
    net = _trained(net, image[None], truth, EM_WINDOW, 1, 3 if options.quick else 60)
    bundle = folder / "bundle"
    for name in ("configs", "models"):
        (bundle / name).mkdir(parents=True, exist_ok=True)
    formats = {"outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "inside", "1": "membrane"}}}}
    (bundle / "configs" / "metadata.json").write_text(json.dumps({"name": "EM", "network_data_format": formats}))
    before = [
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": 0.0, "b_max": 1.0}
    ]
    inferer = {
        "_target_": "SlidingWindowInferer", "roi_size": list(EM_WINDOW), "overlap": EM_OVERLAP, "mode": "gaussian"
    }  # fmt: skip
    config = {
        "network_def": EM_NETWORK, "inferer": inferer, "preprocessing": {"_target_": "Compose", "transforms": before},
        "postprocessing": [{"_target_": "AsDiscreted", "argmax": True}],
    }  # fmt: skip
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(net.state_dict(), bundle / "models" / "model.pt")
    return bundle


# --- segmentation-models-pytorch ---

SATELLITE_MEAN, SATELLITE_STD = 124, 58


def smp_hub(options: argparse.Namespace, folder: Path) -> Path:
    import segmentation_models_pytorch as smp
    import tifffile

    data = options.shared / "data" / "sat"
    image = np.moveaxis(tifffile.imread(data / "mosaic_1_image.tif"), -1, 0).astype(np.float32)
    truth = tifffile.imread(data / "mosaic_1_labels.tif").astype(np.int64)
    image = (image - SATELLITE_MEAN) / SATELLITE_STD
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=3, classes=5)
    _trained(net, image, truth, (128, 128), 4, 3 if options.quick else 60).save_pretrained(folder / "hub")
    return folder / "hub"


def _trained(net: Any, image: Any, truth: Any, window: tuple[int, ...], batch: int, steps: int) -> Any:
    """A few steps on random crops of one image (c, *space) with labels (*space); 255 counts for nothing."""
    import torch

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(net.train().parameters(), 2e-3)
    for _ in range(steps):
        corners = [
            [int(rng.integers(0, n - w + 1)) for n, w in zip(truth.shape, window, strict=True)] for _ in range(batch)
        ]
        cuts = [tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True)) for corner in corners]
        x = torch.from_numpy(np.stack([image[(slice(None), *cut)] for cut in cuts]))
        y = torch.from_numpy(np.stack([truth[cut] for cut in cuts]))
        loss = torch.nn.functional.cross_entropy(net(x), y, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


# --- all of them ---


def _nnunet(name: str) -> Callable[[argparse.Namespace, Path], Path]:
    return lambda options, folder: trained_by_nnunet(TRAININGS[name], options, folder)


TRAINED = {
    **{name: _nnunet(name) for name in TRAININGS},
    "nnunet_usual": untrained_of_usual_size,
    "monai": monai_bundle,
    "smp": smp_hub,
}


def source(name: str, options: argparse.Namespace) -> Path:
    """Where the trained network lies; it is trained where it does not."""
    folder = Path(options.work) / name
    done = folder / "source.txt"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with _own_environment():
            made = TRAINED[name](options, folder)
        done.write_text(str(made.relative_to(folder)))
    return folder / done.read_text()


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--only", nargs="+", choices=TRAINED, default=list(TRAINED), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that all works")
    options = parser.parse_args()
    options.work, options.shared = options.work.resolve(), options.shared.resolve()
    for name in options.only:
        print(f"{name}: {source(name, options)}", flush=True)


if __name__ == "__main__":
    main()
