"""Small networks with layers that exporters and quantisers find hard, as factories for ``--factory networks:NAME``."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """One pooling and one skip; `norm(channels)` after each convolution, `up` of two kinds."""

    def __init__(self, norm, base=4, up="transposed", *, attention=False, residual=False, supervised=False, padding=1):
        super().__init__()
        self.padding, self.up, self.residual = padding, up, residual
        self.down = nn.Sequential(nn.Conv3d(1, base, 3, padding=padding), norm(base), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv3d(base, 2 * base, 3, padding=1), norm(2 * base), nn.LeakyReLU())
        self.raise_ = (
            nn.ConvTranspose3d(2 * base, base, 2, stride=2) if up == "transposed" else nn.Conv3d(2 * base, base, 1)
        )
        self.gate = nn.Conv3d(2 * base, 1, 1) if attention else None
        self.join = nn.Sequential(nn.Conv3d(2 * base, base, 3, padding=padding), norm(base), nn.ReLU())
        self.head = nn.Conv3d(base, 2, 1)
        self.low = nn.Conv3d(2 * base, 2, 1) if supervised else None

    def forward(self, x):
        skip = self.down(x)
        deep = self.deep(F.max_pool3d(skip, 2))
        risen = self.raise_(deep)
        if self.up == "trilinear":
            risen = F.interpolate(risen, scale_factor=2, mode="trilinear", align_corners=False)
        if self.gate is not None:
            skip = skip * torch.sigmoid(self.gate(torch.cat((skip, risen), 1)))
        joined = self.join(torch.cat((skip, risen), 1))
        if self.residual:
            joined = joined + skip
        out = self.head(joined)
        return out if self.low is None else [out, self.low(deep)]


def group(base=4):
    return Net(lambda c: nn.GroupNorm(1, c), base)


def instance_trilinear():
    return Net(lambda c: nn.InstanceNorm3d(c, affine=True), up="trilinear")


def attention():
    return Net(nn.BatchNorm3d, attention=True)


def residual():
    return Net(nn.BatchNorm3d, residual=True)


def supervised():
    return Net(nn.BatchNorm3d, supervised=True)


def valid():
    """Unpadded convolutions at full resolution: the output lacks two voxels at each side."""
    return Net(nn.BatchNorm3d, padding=0)


class Anisotropic(nn.Module):
    """Pools twice along x alone."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.last = nn.ConvTranspose2d(4, 3, (1, 4), stride=(1, 4))

    def forward(self, x):
        return self.last(F.max_pool2d(torch.relu(self.first(x)), (1, 4)))


def anisotropic():
    return Anisotropic()


def nnunet():
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        input_channels=1, num_classes=2, n_stages=3, features_per_stage=(4, 8, 16), strides=(1, 2, 2), kernel_sizes=3,
        conv_op=nn.Conv3d, conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, n_conv_per_stage=1, n_conv_per_stage_decoder=1, deep_supervision=True,
    )  # fmt: skip


class Unsupported(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 2, 1)

    def forward(self, x):
        return torch.special.bessel_j0(self.first(x))


def unsupported():
    return Unsupported()


def broken():
    raise ValueError("no such size")


def no_module():
    return 3


def other():
    return nn.ModuleDict({"head": nn.Conv3d(3, 3, 1, bias=False), "down": nn.Conv3d(1, 4, 3)})


def scaled(source, target, layer, readers, channels, factor):
    """Write `source` (ONNX) to `target`: output `channels` of convolution `layer` times `factor`, their readers by it.

    `readers` maps each convolution that reads them to the position of channel 0 of `layer` in its input. Between them
    lie ReLU, pooling and concatenation alone, so both networks compute the same function; their activations differ.
    """
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    tensors = {t.name: t for t in model.graph.initializer}

    def change(name, selection, by):
        values = np.array(numpy_helper.to_array(tensors[name]))
        values[selection] *= by
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    chosen = np.array(channels)
    change(f"{layer}.weight", chosen, factor)
    change(f"{layer}.weight_bias", chosen, factor)
    for reader, start in readers.items():
        change(f"{reader}.weight", (slice(None), start + chosen), 1 / factor)
    onnx.save(model, target)
    return target


class Fitting(nn.Module):
    """Takes every size: what a pooling cut off is padded on again, as in MONAI's BasicUNet."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.deep = nn.Conv2d(2, 4, 3, padding=1)
        self.rise = nn.ConvTranspose2d(4, 2, 4, stride=4)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        skip = torch.relu(self.first(x))
        risen = self.rise(torch.relu(self.deep(F.max_pool2d(skip, 4))))
        lacks = [skip.shape[a] - risen.shape[a] for a in (3, 2)]
        return self.last(torch.cat((skip, F.pad(risen, (0, lacks[0], 0, lacks[1]), mode="replicate")), 1))


def fitting():
    return Fitting()


class Pyramid(nn.Module):
    """Averages over a grid of so many cells whatever the size is, as PSPNet and UPerNet do."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.cells = nn.ModuleList([nn.Conv2d(4, 2, 1) for _ in range(3)])
        self.last = nn.Conv2d(10, 2, 3, padding=1)

    def forward(self, x):
        deep = torch.relu(self.first(x))
        pooled = [conv(F.adaptive_avg_pool2d(deep, n)) for n, conv in zip((1, 2, 3), self.cells, strict=True)]
        grown = [F.interpolate(p, size=deep.shape[2:], mode="bilinear", align_corners=True) for p in pooled]
        return F.interpolate(self.last(torch.cat((deep, *grown), 1)), scale_factor=2.0, mode="bilinear")


def pyramid():
    return Pyramid()


class Swinging(nn.Module):
    """Outputs that lie within 0 and 1, which no bound of its operators shows."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return (torch.sin(4 * self.first(x)) + 1) / 2


def swinging():
    return Swinging()


class Edged(nn.Module):
    """An average pooling whose last cell reaches over the edge."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 1)
        self.pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True)

    def forward(self, x):
        return F.interpolate(self.pool(self.first(x)), scale_factor=2)[..., 2:, 2:]


def edged():
    return Edged()
