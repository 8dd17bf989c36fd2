"""Networks as other people write them, small: factories for ``--factory support.foreign_networks:NAME`` and what each
is.

`NETWORKS` names the dimensions, the channels and what the network's own output has to go through to be comparable;
`unet-engine` is told nothing but the file and the factory.
"""

from __future__ import annotations

import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Foreign:
    """How a network is exported and what of its answer counts."""

    dims: int
    window: int
    channels: int = 1
    main: Callable[[Any], Tensor] = lambda answer: answer
    needs: str = ""
    """A package without which the case is skipped."""
    slow: bool = False
    """Whether its export takes long, so that it is left to ``make slow``."""


# --- MONAI ---


def monai_unet():
    from monai.networks.nets import UNet

    return UNet(3, 1, 2, (4, 8, 16), (2, 2), num_res_units=1, norm="batch")


def monai_unet_2d():
    from monai.networks.nets import UNet

    return UNet(2, 1, 3, (4, 8, 16), (2, 2), num_res_units=2, norm="instance")


def monai_unet_group():
    from monai.networks.nets import UNet

    return UNet(3, 2, 2, (4, 8), (2,), norm=("group", {"num_groups": 2}), act="leakyrelu")


def monai_unet_large_kernels():
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, (4, 8, 16), (2, 2), kernel_size=5, up_kernel_size=3, norm="batch")


def monai_basic():
    from monai.networks.nets import BasicUNet

    return BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4))


def monai_basic_upsampling():
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4), upsample="nontrainable", norm="batch")


def monai_plus_plus():
    from monai.networks.nets import BasicUNetPlusPlus

    return BasicUNetPlusPlus(2, 1, 2, features=(4, 4, 8, 8, 8, 4))


def monai_attention():
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(2, 1, 2, (4, 8, 16), (2, 2))


def monai_segresnet():
    from monai.networks.nets import SegResNet

    return SegResNet(3, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))


def monai_segresnet_ds():
    from monai.networks.nets import SegResNetDS

    return SegResNetDS(3, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1, 1), norm="instance")


def monai_vnet():
    from monai.networks.nets import VNet

    return VNet(3, 1, 2)


def monai_dynunet():
    from monai.networks.nets import DynUNet

    return DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(4, 8, 8))


def monai_dynunet_supervised():
    from monai.networks.nets import DynUNet

    return DynUNet(
        2, 1, 2, (3, 3, 3, 3), (1, 2, 2, 2), (2, 2, 2), filters=(4, 4, 8, 8), deep_supervision=True, deep_supr_num=2
    )  # fmt: skip


def monai_flexible():
    from monai.networks.nets import FlexibleUNet

    return FlexibleUNet(1, 2, "resnet10", decoder_channels=(8, 8, 8, 4, 4))


def monai_highresnet():
    from monai.networks.nets import HighResNet

    return HighResNet(2, 1, 2)


def monai_unetr():
    from monai.networks.nets import UNETR

    return UNETR(1, 2, (32, 32), feature_size=4, hidden_size=24, mlp_dim=32, num_heads=2, spatial_dims=2)


def monai_swin():
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), spatial_dims=2)


def monai_mednext():
    from monai.networks.nets import MedNeXt

    return MedNeXt(
        2, init_filters=4, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_bottleneck=1, blocks_up=(1, 1)
    )


def monai_autoencoder():
    from monai.networks.nets import AutoEncoder

    return AutoEncoder(2, 1, 2, (4, 8), (2, 2))


# --- nnU-Net's architectures ---


def nnunet_plain_2d():
    return _plain(nn.Conv2d, nn.InstanceNorm2d, (1, 2, 2), 3)


def nnunet_anisotropic():
    return _plain(nn.Conv3d, nn.InstanceNorm3d, (1, (1, 2, 2), (2, 2, 2)), [(1, 3, 3), (3, 3, 3), (3, 3, 3)])


def _plain(conv, norm, strides, kernels):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        1, 3, (4, 8, 8), conv, kernels, strides, 1, 3, 1, conv_bias=True, norm_op=norm, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, deep_supervision=True,
    )  # fmt: skip


def nnunet_residual():
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    return ResidualEncoderUNet(
        1, 3, (4, 8, 8), nn.Conv3d, 3, (1, 2, 2), (1, 1, 1), 2, (1, 1), conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, deep_supervision=False,
    )  # fmt: skip


# --- segmentation-models-pytorch ---


def _smp(name, encoder="resnet18", **options):
    _without_compiled_torchvision()
    import segmentation_models_pytorch as smp

    return getattr(smp, name)(encoder, encoder_weights=None, in_channels=3, classes=2, **options)


@cache
def _without_compiled_torchvision():
    """torchvision wants operators of its compiled part to be there when it is imported, and a build for GPUs has none
    beside a PyTorch for CPUs. Its networks, which are all that is wanted, do without."""
    if torch.version.cuda:
        return
    source = Path(find_spec("torchvision").origin).with_name("_meta_registrations.py").read_text()
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', source))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _KEPT.append(library)


_KEPT: list[Any] = []
"""Operators are gone once their library is."""


def smp_unet():
    return _smp("Unet", encoder_depth=3, decoder_channels=(16, 8, 4))


def smp_unet_efficientnet():
    return _smp("Unet", "efficientnet-b0", encoder_depth=3, decoder_channels=(8, 8, 4))


def smp_fpn():
    return _smp("FPN", encoder_depth=4, upsampling=2, decoder_pyramid_channels=32, decoder_segmentation_channels=32)


def smp_pspnet():
    return _smp("PSPNet", psp_out_channels=16)


def smp_upernet():
    return _smp("UPerNet", decoder_channels=16)


def smp_linknet():
    return _smp("Linknet", encoder_depth=3)


def smp_deeplab():
    return _smp("DeepLabV3Plus", encoder_depth=4, decoder_channels=16)


# --- the peculiar ---


class Small(nn.Module):
    """One pooling; what is peculiar is put around or into it."""

    def __init__(self, conv=nn.Conv2d, *, channels=1, classes=2, norm=None, up="nearest"):
        super().__init__()
        self.conv, self.up = conv, up
        norm = norm or (nn.BatchNorm2d if conv is nn.Conv2d else nn.BatchNorm3d)
        self.first = nn.Sequential(conv(channels, 4, 3, padding=1), norm(4), nn.ReLU())
        self.second = nn.Sequential(conv(4, 4, 3, padding=1), norm(4), nn.SiLU())
        self.head = conv(8, classes, 1)

    def forward(self, x):
        skip = self.first(x)
        pool = F.max_pool2d if self.conv is nn.Conv2d else F.max_pool3d
        deep = self.second(pool(skip, 2))
        corners = {"align_corners": True} if self.up == "bilinear" else {}
        return self.head(torch.cat((skip, F.interpolate(deep, skip.shape[2:], mode=self.up, **corners)), 1))


class Around(nn.Module):
    """A network whose answer, or question, has another form."""

    def __init__(self, inner, after=None, before=None):
        super().__init__()
        self.inner, self.after, self.before = inner, after, before

    def forward(self, x):
        x = self.before(x) if self.before else x
        y = self.inner(x)
        return self.after(y) if self.after else y


Answer = namedtuple("Answer", "logits features")


class PadsItself(nn.Module):
    """Takes any size: pads to multiples of four, and cuts that off again."""

    def __init__(self):
        super().__init__()
        self.inner = Small()

    def forward(self, x):
        h, w = x.shape[-2:]
        y = self.inner(F.pad(x, (0, -w % 4, 0, -h % 4)))
        return y[..., :h, :w]


class Shuffled(nn.Module):
    """Goes up by a pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.down, self.head = nn.Conv2d(1, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return F.pixel_shuffle(self.head(torch.relu(self.down(x))), 2)


class Squeezed(nn.Module):
    """Weighs channels by what the whole window holds."""

    def __init__(self):
        super().__init__()
        self.inner, self.weigh = Small(classes=4), nn.Linear(4, 4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.inner(x)
        return self.head(y * torch.sigmoid(self.weigh(y.mean((2, 3))))[:, :, None, None])


class Separable(nn.Module):
    """Depthwise convolutions, dilated, with a layer norm over channels."""

    def __init__(self):
        super().__init__()
        self.spread, self.depth = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.norm, self.head = nn.LayerNorm(6), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        y = self.depth(self.spread(x))
        return self.head(F.gelu(self.norm(y.movedim(1, -1)).movedim(-1, 1)))


class Valid(nn.Module):
    """Unpadded convolutions throughout, as the first U-Net had them: the skip is cropped."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 2, 3)

    def forward(self, x):
        skip = torch.relu(self.first(x))
        risen = self.up(torch.relu(self.second(F.max_pool2d(skip, 2))))
        m = (skip.shape[-1] - risen.shape[-1]) // 2
        return self.last(torch.cat((skip[..., m:-m, m:-m], risen), 1))


class Keras(nn.Module):
    """Channels last, in and out, as TensorFlow has them."""

    def __init__(self):
        super().__init__()
        self.inner = Small(channels=3, classes=4)

    def forward(self, x):
        return self.inner(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class OnlyInEval(nn.Module):
    """Gives logits while it is trained, probabilities after."""

    def __init__(self):
        super().__init__()
        self.inner = Small(classes=1)

    def forward(self, x):
        y = self.inner(x)
        return y if self.training else torch.sigmoid(y)


def group_norm():
    return Small(norm=lambda c: nn.GroupNorm(2, c))


def instance_norm_3d():
    return Small(nn.Conv3d, norm=nn.InstanceNorm3d)


def bilinear_corners():
    return Small(up="bilinear")


def dictionary():
    return Around(Small(), lambda y: OrderedDict(out=y))


def list_of_one():
    return Around(Small(), lambda y: [y])


def named():
    return Around(Small(), lambda y: Answer(y, F.avg_pool2d(y, 2)))


def main_last():
    return Around(Small(), lambda y: (F.avg_pool2d(y, 4), F.avg_pool2d(y, 2), y))


def softmax_inside():
    return Around(Small(classes=3), lambda y: y.softmax(1))


def eval_sigmoid():
    return OnlyInEval()


def one_channel():
    return Small(classes=1)


def pads_itself():
    return PadsItself()


def shuffled():
    return Shuffled()


def squeezed():
    return Squeezed()


def separable():
    return Separable()


def valid():
    return Valid()


def keras():
    return Keras()


def _last(answer):
    return answer[-1]


def _first(answer):
    return answer[0]


NETWORKS: dict[str, Foreign] = {
    "monai_unet": Foreign(3, 16, slow=True),
    "monai_unet_2d": Foreign(2, 32, slow=True),
    "monai_unet_group": Foreign(3, 16, 2, slow=True),
    "monai_unet_large_kernels": Foreign(2, 32, slow=True),
    "monai_basic": Foreign(3, 32, slow=True),
    "monai_basic_upsampling": Foreign(2, 32, slow=True),
    "monai_plus_plus": Foreign(2, 32, main=_first, slow=True),
    "monai_attention": Foreign(2, 32, slow=True),
    "monai_segresnet": Foreign(3, 16, slow=True),
    "monai_segresnet_ds": Foreign(3, 16, main=lambda a: a[0] if isinstance(a, (list, tuple)) else a, slow=True),
    "monai_vnet": Foreign(3, 32, slow=True),
    "monai_dynunet": Foreign(3, 16, slow=True),
    "monai_dynunet_supervised": Foreign(2, 32, slow=True),
    "monai_flexible": Foreign(2, 64, slow=True),
    "monai_highresnet": Foreign(2, 24, slow=True),
    "monai_unetr": Foreign(2, 32, needs="einops", slow=True),
    "monai_swin": Foreign(2, 64, needs="einops", slow=True),
    "monai_mednext": Foreign(2, 32, slow=True),
    "monai_autoencoder": Foreign(2, 32),
    "nnunet_plain_2d": Foreign(2, 32, main=_first),
    "nnunet_anisotropic": Foreign(3, 16, main=_first, slow=True),
    "nnunet_residual": Foreign(3, 16, slow=True),
    "smp_unet": Foreign(2, 32, 3, needs="segmentation_models_pytorch"),
    "smp_unet_efficientnet": Foreign(2, 32, 3, needs="segmentation_models_pytorch", slow=True),
    "smp_fpn": Foreign(2, 64, 3, needs="segmentation_models_pytorch", slow=True),
    "smp_pspnet": Foreign(2, 48, 3, needs="segmentation_models_pytorch", slow=True),
    "smp_upernet": Foreign(2, 64, 3, needs="segmentation_models_pytorch", slow=True),
    "smp_linknet": Foreign(2, 32, 3, needs="segmentation_models_pytorch", slow=True),
    "smp_deeplab": Foreign(2, 64, 3, needs="segmentation_models_pytorch", slow=True),
    "group_norm": Foreign(2, 16, slow=True),
    "instance_norm_3d": Foreign(3, 8),
    "bilinear_corners": Foreign(2, 16),
    "dictionary": Foreign(2, 16, main=lambda a: a["out"]),
    "list_of_one": Foreign(2, 16, main=_first, slow=True),
    "named": Foreign(2, 16, main=_first),
    "main_last": Foreign(2, 16, main=_last),
    "softmax_inside": Foreign(2, 16),
    "eval_sigmoid": Foreign(2, 16),
    "one_channel": Foreign(2, 16, slow=True),
    "pads_itself": Foreign(2, 24),
    "shuffled": Foreign(2, 16),
    "squeezed": Foreign(2, 16, slow=True),
    "separable": Foreign(2, 16),
    "valid": Foreign(2, 24),
    "keras": Foreign(2, 16, 3, main=lambda a: a),
}
