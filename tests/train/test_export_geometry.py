"""What `geometry` says of a U-Net is what PyTorch does."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_engine.errors import SettingsError
from unet_export.train import geometry
from unet_export.train.geometry import UNetConfig

torch = pytest.importorskip("torch")
nets = pytest.importorskip("unet_export.train.nets")

LAYOUTS = [
    UNetConfig(dims=dims, classes=3, base=2, depth=depth, norm=norm, padding=padding)
    for dims, depth, norm, padding in [
        (2, 0, "none", "same"),
        (2, 3, "batch", "same"),
        (3, 2, "instance", "same"),
        (2, 0, "none", "valid"),
        (2, 2, "batch", "valid"),
        (3, 1, "instance", "valid"),
    ]
]


def label(config):
    return f"{config.dims}d-depth{config.depth}-{config.norm}-{config.padding}"


@pytest.mark.parametrize("config", LAYOUTS, ids=label)
def test_admissible_sizes_run_and_lose_the_margin_and_no_other_size_runs(config):
    model = nets.UNet(config).eval()
    least, step = geometry.window_rule(config)
    margin = geometry.output_margin(config)
    for size in range(least, least + step + 2):
        window = (size,) + (least,) * (config.dims - 1)
        x = torch.zeros(1, 1, *window)
        if (size - least) % step == 0:
            geometry.check_window(config, window)
            with torch.inference_mode():
                assert model(x).shape == (1, 3, *(n - 2 * margin for n in window))
        else:
            with pytest.raises(SettingsError, match=f"use {least} \\+ k\\*{step}"):
                geometry.check_window(config, window)
            with pytest.raises(RuntimeError), torch.inference_mode():
                model(x)


def test_the_classic_2d_unet_turns_572_into_388():
    config = UNetConfig(dims=2, classes=2, base=64, depth=4, padding="valid")
    geometry.check_window(config, (572, 572))
    assert 572 - 2 * geometry.output_margin(config) == 388


@given(depth=st.integers(0, 6), k=st.integers(0, 9))
def test_valid_sizes_divide_at_every_pooling_and_leave_something(depth, k):
    config = UNetConfig(dims=2, depth=depth, padding="valid")
    least, step = geometry.window_rule(config)
    size = least + k * step
    for _ in range(depth):
        size -= 4
        assert size > 0
        assert size % 2 == 0
        size //= 2
    size -= 4
    for _ in range(depth):
        size = 2 * size - 4
        assert size > 0
    assert size == least + k * step - 2 * geometry.output_margin(config)


@pytest.mark.parametrize("config", LAYOUTS[:2] + LAYOUTS[3:5] + [UNetConfig(base=1, depth=1, norm="none")], ids=label)
def test_an_output_voxel_sees_nothing_beyond_the_radius_and_some_see_that_far(config):
    radius = geometry.receptive_radius(config)
    margin = geometry.output_margin(config)
    least, step = geometry.window_rule(config)
    reach = max(radius + 1 + step, margin)
    size = least + -(-max(0, 2 * reach + step - least) // step) * step
    torch.manual_seed(0)
    model = nets.UNet(config).eval().double()
    for parameter in model.parameters():
        # Positive weights let every path through every ReLU, so that reach is not hidden by chance.
        parameter.data.abs_()
    x = torch.rand(1, 1, *[size] * config.dims, dtype=torch.float64)
    middle = size // 2
    distance = torch.stack(torch.meshgrid(*[(torch.arange(size) - middle).abs()] * config.dims, indexing="ij")).amax(0)
    tight = []
    with torch.inference_mode():
        before = model(x)
        for offset in range(step):
            centre = [middle + offset] + [middle] * (config.dims - 1)
            shifted = torch.roll(distance, offset, 0)
            shifted[:offset] = size  # what rolled around is far away
            at = (0, slice(None), *(c - margin for c in centre))
            beyond = model(torch.where(shifted > radius, x + 100, x))
            assert torch.equal(beyond[at], before[at])
            edge = model(torch.where(shifted == radius, x + 100, x))
            tight.append(not torch.equal(edge[at], before[at]))
    assert any(tight)


def test_instance_norm_sees_the_whole_window():
    assert geometry.receptive_radius(UNetConfig(norm="instance")) is None


@pytest.mark.parametrize("config", LAYOUTS, ids=label)
def test_flops_are_those_that_pytorch_counts(config):
    from torch.utils.flop_counter import FlopCounterMode

    least, step = geometry.window_rule(config)
    window = tuple(least + step * (1 + axis) for axis in range(config.dims))
    model = nets.UNet(config).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 1, *window))
    assert geometry.flops(config, window) == counter.get_total_flops()


def test_flops_of_the_net_that_benchmarks_use():
    assert round(geometry.flops(UNetConfig(), (64, 64, 64)) / 1e9, 1) == 29.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dims": 4}, "2 or 3 dimensions"),
        ({"classes": 0}, "classes is 0"),
        ({"depth": -1}, "depth is -1"),
        ({"norm": "layer"}, "norm 'layer'"),
        ({"padding": "full"}, "padding 'full'"),
    ],
)
def test_a_layout_without_sense_is_refused(wrong, message):
    with pytest.raises(SettingsError, match=message):
        UNetConfig(**wrong)


def test_geometry_specs_and_tissue_do_not_import_torch():
    code = (
        "import sys, unet_export.train.geometry, unet_export.train.specs, unet_export.train.tissue; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
