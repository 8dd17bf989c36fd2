"""A volume of another spacing than the network's: brought to it block by block, and the result back onto the scan's
grid. The reference does both with SciPy on whole volumes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unet_engine
from support.volumes import fake_model, make_volume, result_of

ndimage = pytest.importorskip("scipy.ndimage")
NEAR = 2e-5


@dataclass(frozen=True)
class Case:
    """A scan, the shape that the network's spacing gives it, and orders."""

    shape: tuple[int, ...]
    new: tuple[int, ...]
    image: int = 3
    output: int = 1
    channels: int = 2
    classes: int = 3
    window: tuple[int, ...] | None = None
    overlap: float = 0.5

    @property
    def axes(self) -> str:
        return "zyx"[-len(self.shape) :]

    def scan(self, folder: str, array: Any, **options: Any) -> str:
        # spacings in ratio of the shapes, so that rounding gives `new` back
        return make_volume(
            f"{folder}/v.zarr", array, axes="c" + self.axes, ome="0.5", unit="millimeter",
            scale=(1.0, *(1.0 for _ in self.shape)), chunks=(1, *(min(7, n) for n in self.shape)), **options,
        )  # fmt: skip

    def model(self, folder: str, **spec: Any) -> str:
        n = len(self.shape)
        window = self.window or (8,) * n
        return fake_model(
            folder, axes=self.axes, channels_in=self.channels, channels_out=self.classes, window=window,
            window_min=window, window_step=(0,) * n, activation=spec.pop("activation", "softmax"),
            spacing=[a / b for a, b in zip(self.shape, self.new, strict=True)], spacing_unit="millimeter",
            resampling={"image": self.image, "output": self.output, "apart": "never"}, **spec,
        )  # fmt: skip

    def run(self, folder: str, model: str, out: str = "o.zarr", **options: Any) -> unet_engine.Result:
        options = {"overlap": self.overlap, **options}
        return unet_engine.run(f"{folder}/v.zarr", model=model, out=f"{folder}/{out}", **options)


def zoomed(channels: Any, shape: tuple[int, ...], order: int) -> Any:
    found = []
    for channel in np.asarray(channels, np.float64):
        same = channel.shape == shape
        zoom = [n / s for n, s in zip(shape, channel.shape, strict=True)]
        found.append(channel if same else ndimage.zoom(channel, zoom, order=order, mode="nearest", grid_mode=True))
    return np.stack(found)


def fed(case: Case, array: Any) -> Any:
    """What the identity network gives on its own grid."""
    there = zoomed(array, case.new, case.image)
    return np.stack([there[k % case.channels] for k in range(case.classes)])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(2, 3))
    most = 24 if n == 3 else 40
    shape = tuple(draw(st.integers(2, most)) for _ in range(n))
    new = tuple(draw(st.integers(max(1, s // 3), min(most, 3 * s))) for s in shape)
    return Case(
        shape, new, draw(st.sampled_from((0, 1, 3))), draw(st.sampled_from((0, 1, 3))), draw(st.integers(1, 2)),
        draw(st.integers(2, 4)), tuple(draw(st.integers(4, 9)) for _ in range(n)),
        draw(st.sampled_from((0.0, 0.3, 0.5, 0.75))),
    )  # fmt: skip


def noise(case: Case, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((case.channels, *case.shape)).astype(np.float32)


@given(cases(), st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_geometry_is_as_scipy_resamples_it(case: Case, scan: bool) -> None:  # noqa: FBT001
    array = noise(case)
    expected = fed(case, array)
    with tempfile.TemporaryDirectory() as folder:
        case.scan(folder, array)
        result = case.run(folder, case.model(folder), grid="scan" if scan else "model", output="logits")
        got = result_of(result.out)
    if scan and case.shape != case.new:
        expected = zoomed(expected, case.shape, case.output)
    np.testing.assert_allclose(got, expected, atol=NEAR)
