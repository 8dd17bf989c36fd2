"""A matrix of networks: their FP16 and INT8 graphs parse and build in TensorRT-RTX for two architectures, without a
GPU.

Where there is a GPU the same graphs run and are compared with PyTorch.
"""

import numpy as np
import pytest

from support import networks
from support.shares import share
from unet_engine import machine
from unet_engine.backends import tensorrt_api
from unet_engine.backends.libraries import record
from unet_engine.devices.base import Region, host_array
from unet_engine.devices.opening import open_device

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
if not record("tensorrt").installed or "rtx" not in tensorrt_api.module().__name__:
    pytest.skip("TensorRT-RTX is not installed", allow_module_level=True)

from unet_engine.model.onnx_half import to_half  # noqa: E402
from unet_engine.model.onnx_layers import Graph  # noqa: E402
from unet_engine.model.shipped import shipped_model  # noqa: E402
from unet_engine.model.spec import ModelSpec  # noqa: E402
from unet_export.conversion.exporters import from_module  # noqa: E402
from unet_export.quantize.qdq import quantizable, thresholds, to_qdq  # noqa: E402
from unet_export.train.geometry import UNetConfig  # noqa: E402
from unet_export.train.nets import UNet  # noqa: E402

TARGETS = ("SM80", "SM89")


def ours(dims, norm):
    return lambda: UNet(UNetConfig(dims=dims, classes=2, base=4, depth=2, norm=norm))


def monai(name, **options):
    def make():
        nets = pytest.importorskip("monai.networks.nets")
        return getattr(nets, name)(**options)

    return make


def nnunet(name, dims, **options):
    def make():
        module = pytest.importorskip("dynamic_network_architectures.architectures.unet")
        conv, norm = (
            (torch.nn.Conv3d, torch.nn.InstanceNorm3d) if dims == 3 else (torch.nn.Conv2d, torch.nn.InstanceNorm2d)
        )
        stages = {
            "n_stages": 3,
            "features_per_stage": (4, 8, 16),
            "conv_op": conv,
            "kernel_sizes": 3,
            "strides": (1, 2, 2),
        }
        layers = {"norm_op": norm, "norm_op_kwargs": {"affine": True}, "nonlin": torch.nn.LeakyReLU, "conv_bias": True}
        return getattr(module, name)(
            input_channels=1, num_classes=2, n_conv_per_stage_decoder=1, **stages, **layers, **options
        )

    return make


_MONAI_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
MATRIX = {
    "ours 2d none": (2, ours(2, "none")),
    "ours 2d batch": (2, ours(2, "batch")),
    "ours 2d instance": (2, ours(2, "instance")),
    "ours 3d none": (3, ours(3, "none")),
    "ours 3d batch": (3, ours(3, "batch")),
    "ours 3d instance": (3, ours(3, "instance")),
    "group, up-convolution": (3, networks.group),
    "instance, trilinear": (3, networks.instance_trilinear),
    "attention gate": (3, networks.attention),
    "demo 2d": (2, "cells_2d.onnx"),
    "demo 3d": (3, "cells_3d.onnx"),
    "MONAI UNet": (3, monai("UNet", **_MONAI_3D, channels=(4, 8, 16), strides=(2, 2), num_res_units=2)),
    "MONAI DynUNet": (
        3, monai("DynUNet", **_MONAI_3D, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2],
                 filters=[4, 8, 16]),
    ),
    "MONAI SegResNet": (3, monai("SegResNet", **_MONAI_3D, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))),
    "nnU-Net PlainConvUNet": (3, nnunet("PlainConvUNet", 3, n_conv_per_stage=1)),
    "nnU-Net PlainConvUNet 2d": (2, nnunet("PlainConvUNet", 2, n_conv_per_stage=1)),
    "nnU-Net ResidualEncoderUNet": (3, nnunet("ResidualEncoderUNet", 3, n_blocks_per_stage=1)),
}  # fmt: skip


def graph_of(name):
    """(window, ONNX graph, PyTorch network or None)."""
    dims, source = MATRIX[name]
    window = (32, 32) if dims == 2 else (16, 16, 16)
    if isinstance(source, str):
        return window, onnx.load(shipped_model(source)), None
    torch.manual_seed(0)
    network = source().eval()
    spec = ModelSpec(
        name="net", axes="yx" if dims == 2 else "zyx", channels_in=1, channels_out=2, window=window,
        window_min=(8,) * dims, window_step=(8,) * dims, margin=(0,) * dims,
    )  # fmt: skip
    return window, from_module(network, spec), network


@pytest.mark.parametrize("name", share(MATRIX))
def test_fp16_and_int8_graphs_parse_and_build(name):
    window, proto, network = graph_of(name)
    graph = Graph(proto)
    x = np.random.default_rng(0).standard_normal((1, *window), dtype=np.float32)
    limits = thresholds(graph, [n.input[0] for n in quantizable(graph)], [x])
    shapes = tensorrt_api.Shapes((1, 1, *window), (1, 1, *window), (2, 1, *window))
    for typed in (to_half(proto), to_half(to_qdq(graph, limits))):
        data = typed.SerializeToString()
        for target in TARGETS:
            engine, _ = tensorrt_api.build(data, shapes, target=target)
            assert len(engine) > 1000
        if machine.gpu_count() and network is not None:
            _compare_on_gpu(data, network, x[None])


def _compare_on_gpu(data, network, x):
    """The engine built for this GPU against PyTorch; INT8 without calibration on real data is only roughly the same."""
    device = open_device("cuda:0")
    engine, _ = tensorrt_api.build(data, tensorrt_api.Shapes(x.shape, x.shape, x.shape))
    loaded = tensorrt_api.module().Runtime(tensorrt_api.logger()).deserialize_cuda_engine(engine)
    context = loaded.create_execution_context()
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    context.set_input_shape(loaded.get_tensor_name(0), x.shape)
    on_host, on_device = [], []
    for i, size in enumerate((x.nbytes, expected.nbytes)):
        on_host.append(device.pinned(size, "test"))
        on_device.append(device.allocate(size, "test"))
        context.set_tensor_address(loaded.get_tensor_name(i), on_device[i].address)
    stream, done = device.stream("compute"), device.event()
    host_array(on_host[0]).view(np.float32).reshape(x.shape)[...] = x
    device.copy(stream, Region.of(on_device[0]), Region.of(on_host[0]))
    assert context.execute_async_v3(stream.handle)
    device.copy(stream, Region.of(on_host[1]), Region.of(on_device[1]))
    device.record(done, stream)
    device.synchronize(done)
    got = host_array(on_host[1]).view(np.float32).reshape(expected.shape)
    assert np.abs(got - expected).max() < 0.2 * np.abs(expected).max()
