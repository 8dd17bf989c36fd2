"""Result folders as nnU-Net v2 writes them, with small networks of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

CT = {"mean": 60.0, "std": 150.0, "percentile_00_5": -500.0, "percentile_99_5": 400.0, "min": -900.0, "max": 1500.0}
UNETS = "dynamic_network_architectures.architectures.unet."


def architecture(dims: int, *, kind: str = "PlainConvUNet", strides: Any = None, norm: str = "InstanceNorm") -> Any:
    strides = strides or [[1] * dims, [2] * dims, [2] * dims]
    stages = len(strides)
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "network_class_name": UNETS + kind,
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": [4, 8, 8][:stages],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d", "kernel_sizes": [[3] * dims] * stages,
            "strides": strides, blocks: [1] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True, "norm_op": f"torch.nn.{norm}{dims}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip


def configuration(patch: tuple[int, ...], *, schemes: Any = ("CTNormalization",), mask: Any = None, **said: Any) -> Any:
    dims = len(patch)
    interpolated = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    return {
        "data_identifier": "nnUNetPlans", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(patch), "spacing": [1.5, 0.8, 0.7][-dims:], "normalization_schemes": list(schemes),
        "use_mask_for_norm": list(mask or [False] * len(schemes)), "resampling_fn_data": function,
        "resampling_fn_data_kwargs": interpolated, "resampling_fn_seg": function,
        "resampling_fn_seg_kwargs": {**interpolated, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": {**interpolated, "order": 1}, "architecture": architecture(dims), **said,
    }  # fmt: skip


def plans(name: str, config: Any, *, transpose: tuple[int, ...] = (0, 1, 2), **said: Any) -> Any:
    schemes = config["normalization_schemes"]
    return {
        "dataset_name": "Dataset042_Chest", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose), "transpose_backward": [transpose.index(a) for a in range(3)],
        "configurations": {name: config}, "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): CT for c in range(len(schemes))}, **said,
    }  # fmt: skip


def dataset(channels: int = 1, **said: Any) -> Any:
    names = {str(c): f"channel {c}" for c in range(channels)}
    labels = {"background": 0, "lung": 1, "heart": 2}
    return {"channel_names": names, "labels": labels, "numTraining": 20, "file_ending": ".nii.gz", **said}


def result_folder(
    path: Path, name: str, config: Any, *, transpose: tuple[int, ...] = (0, 1, 2), dataset_json: Any = None,
    folds: tuple[str, ...] = ("0",), mirror: Any = None, checkpoint: str = "checkpoint_final.pth", **more: Any,
) -> Path:  # fmt: skip
    """The folder of a trainer. `more` goes to the plans. The network is built by nnU-Net's own library from the plans
    that are written, and has random weights."""
    import torch

    said, about = plans(name, config, transpose=transpose, **more), dataset_json or dataset()
    path.mkdir(parents=True)
    (path / "plans.json").write_text(json.dumps(said))
    (path / "dataset.json").write_text(json.dumps(about))
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        network = network_of(said, name, about)
        state = {"network_weights": network.state_dict(), "optimizer_state": {"state": {0: torch.zeros(3)}}}
        held = {
            **state, "grad_scaler_state": None, "_best_ema": np.float64(0.9), "current_epoch": 3,
            "logging": {"mean_fg_dice": [np.float32(0.5)], "lrs": [0.01], "dice": [np.array([0.1, 0.2])]},
            "init_args": {
                "plans": said, "configuration": name, "fold": fold, "dataset_json": about,
                "device": torch.device("cpu"),
            },
            "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": mirror,
        }  # fmt: skip
        (path / f"fold_{fold}").mkdir()
        torch.save(held, path / f"fold_{fold}" / checkpoint)
    return path


def network_of(said: Any, name: str, about: Any) -> Any:
    """As nnU-Net builds it, by its own rules where it is installed."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(json.loads(json.dumps(said)))
    chosen, labels = manager.get_configuration(name), manager.get_label_manager(about)
    return get_network_from_plans(
        chosen.network_arch_class_name, chosen.network_arch_init_kwargs, chosen.network_arch_init_kwargs_req_import,
        len(about["channel_names"]), labels.num_segmentation_heads, deep_supervision=True,
    )  # fmt: skip
