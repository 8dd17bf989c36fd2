"""U-Nets that were not trained, as model files."""


def untrained(folder, window=16, name="net", **fields):
    """A U-Net that was not trained, without padding lost, as a model file. Its last layer is scaled so that both
    classes occur."""
    import torch

    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.specs import spec_for

    torch.manual_seed(1)
    config = UNetConfig(dims=3, classes=2, **{"base": 2, "depth": 1, "norm": "none", **fields})
    spec = spec_for(config, name=name, window=(window,) * 3)
    path = folder / f"{name}.onnx"
    net = UNet(config).eval()
    x = torch.randn(1, 1, *spec.window)
    with torch.no_grad():
        logits = net(x)
        last = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d)][-1]
        last.bias += torch.stack([-(logits[0, 0] - logits[0, 1]).median(), torch.zeros(())])
    export_onnx(net, spec, path)
    return str(path)
