"""Small MONAI bundles, made by tests."""

import json

import torch
from monai.networks import nets

NETWORK = {
    "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2],
    "num_res_units": 1, "norm": "batch",
}  # fmt: skip
RANGE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "image",
    "a_min": -57,
    "a_max": 164,
    "b_min": 0,
    "b_max": 1,
    "clip": True,
}
LOAD = {"_target_": "LoadImaged", "keys": "image"}
SPACED = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.1, 2.0], "mode": "bilinear"}
ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "image"}
INFERER = {"_target_": "SlidingWindowInferer", "roi_size": [24, 16, 32], "sw_batch_size": 4, "overlap": 0.25}
SOFTMAX = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True}, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
]  # fmt: skip


def network(said=NETWORK):
    torch.manual_seed(5)
    keywords = {k: v for k, v in said.items() if not k.startswith("_")}
    net = getattr(nets, said["_target_"])(**keywords)
    with torch.no_grad():
        for module in net.modules():  # as training leaves them
            if isinstance(module, torch.nn.BatchNorm3d | torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def bundle(folder, *, said=NETWORK, before=(LOAD, RANGE), behind=SOFTMAX, inferer=INFERER, metadata=None, **more):
    """Write a bundle to `folder`."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = {str(k): n for k, n in enumerate(("background", "spleen", "tumour"))}
    out = said.get("out_channels", 3)
    facts = {
        "name": "Spleen", "version": "0.3.1", "authors": "MONAI team", "references": ["Xia et al. 2018"],
        "network_data_format": {
            "inputs": {"image": {"num_channels": said.get("in_channels", 1), "spatial_shape": [96, 96, 96]}},
            "outputs": {"pred": {"num_channels": out, "channel_def": {k: names[k] for k in list(names)[:out]}}},
        },
        **(metadata or {}),
    }  # fmt: skip
    (folder / "configs" / "metadata.json").write_text(json.dumps(facts))
    config = {
        "bundle_root": ".", "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')", "network_def": said,
        "network": "$@network_def.to(@device)", "inferer": inferer,
        "preprocessing": {"_target_": "Compose", "transforms": list(before)},
        "postprocessing": {"_target_": "Compose", "transforms": list(behind)}, **more,
    }  # fmt: skip
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "LICENSE").write_text("\n  Apache License\n  Version 2.0, January 2004\n")
    torch.save(network(said).state_dict() if said.get("_target_") in dir(nets) else {}, folder / "models" / "model.pt")
    return folder
