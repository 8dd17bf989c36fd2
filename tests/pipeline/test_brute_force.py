"""Random geometry, run by the engine and computed by brute force: the same voxels.

Every case is made from its number alone, so a number is all that is needed to see a failure again. `make test` tries
the first of them; ``make geometries`` tries 2,000.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import unet_engine
from support.brute_force import Array, Tiling, labels, probabilities, stitched
from support.volumes import fake_model
from unet_engine.backends.fake import FakeBackend, FakeDevice, values_of

CASES = int(os.environ.get("GEOMETRIES", "100"))
AT_ONCE = 20


@dataclass(frozen=True)
class Case:
    """A volume, a network and how they are run."""

    spatial: dict[str, int]
    """Size of each spatial axis, z before y before x."""
    stored: str
    dtype: str
    channels_in: int
    channels_out: int
    activation: str
    model_axes: str
    window: tuple[int, ...]
    margin: tuple[int, ...]
    roi: tuple[slice, ...]
    options: dict[str, Any] = field(default_factory=dict)
    shared: tuple[int, ...] | None = None
    """Least voxels that neighbours share, where windows are spread evenly."""

    @property
    def how(self) -> dict[str, Any]:
        """The options of the run: a tiling stands for window, overlap and blend."""
        if self.shared is None:
            return self.options
        window, shared = (",".join(map(str, sizes)) for sizes in (self.window, self.shared))
        rest = {key: value for key, value in self.options.items() if key not in ("overlap", "blend")}
        return {**rest, "tiling": f"{window}:{shared}:{self.options['blend']}"}

    @property
    def tiling(self) -> Tiling:
        planes = len(self.spatial) - len(self.model_axes)
        return Tiling(
            (1,) * planes + self.window,
            (0,) * planes + self.margin,
            self.options["overlap"],
            self.options["blend"],
            self.options["padding"],
            None if self.shared is None else (0,) * planes + self.shared,
        )


def drawn(number: int) -> Case:
    rng = np.random.default_rng(number)

    def choose(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    spatial = choose("zyx", "zyx", "yx")
    model_axes = choose("zyx", "zyx", "yx") if spatial == "zyx" else "yx"
    shape = {a: int(rng.integers(1, 24 if len(model_axes) == 3 else 40)) for a in spatial}
    if len(spatial) > len(model_axes):
        shape["z"] = int(rng.integers(1, 5))
    margin = tuple(int(m) for m in rng.integers(0, choose(1, 3), len(model_axes)))
    window = tuple(int(rng.integers(3, 10)) + 2 * m for m in margin)
    channels_in = int(rng.integers(1, 4))
    axes = spatial + ("c" if channels_in > 1 or rng.random() < 0.3 else "") + ("t" if rng.random() < 0.2 else "")
    activation = choose("softmax", "sigmoid", "none", "probabilities", "probabilities_each")
    channels_out = int(rng.integers(2 if activation == "softmax" else 1, 6))
    roi = tuple(_interval(rng, shape[a]) if rng.random() < 0.3 else slice(0, shape[a]) for a in spatial)
    kind = choose("labels", "probabilities", "logits")
    if kind == "logits" and activation.startswith("probabilities"):
        kind = "probabilities"
    options = {
        "overlap": choose(0.0, 0.25, 0.3, 0.5, 0.75, 0.9),
        "blend": choose("gaussian", "constant", "crop", "monai", "nnunet"),
        "padding": choose("reflect", "constant", "edge"),
        "output": kind,
        "threads": int(rng.integers(1, 4)),
        "normalize": choose("none", "range:-20,150", "zscore"),
    }
    if kind != "labels":
        options["dtype"] = choose("float32", "float32", None) if kind == "probabilities" else "float32"
    if rng.random() < 0.3:
        options |= {"device": "simulated", "batch": int(rng.integers(1, 5))}
    dtype = choose("uint8", "uint16", ">u2", "int16", "float32", "float64", "<i4")
    stored = "".join(rng.permutation(list(axes)))
    evenly = options["blend"] in ("gaussian", "constant", "crop") and rng.random() < 0.4
    shared = tuple(int(rng.integers(0, w - 2 * m)) for w, m in zip(window, margin, strict=True)) if evenly else None
    return Case(
        shape, stored, dtype, channels_in, channels_out, activation, model_axes, window, margin, roi, options, shared
    )  # fmt: skip


def _interval(rng: np.random.Generator, size: int) -> slice:
    start = int(rng.integers(0, size))
    return slice(start, int(rng.integers(start + 1, size + 1)))


# --- a network whose output depends on where in the window a voxel lies, so that a wrong weight shows -----------------


def network(window: Array, channels: int, margin: tuple[int, ...]) -> Array:
    """(channels in, *window) to (channels, *window less margins): two neighbours mixed, and a slope that differs by
    axis and channel. Outputs lie around 0 to 1, so that every activation has something to decide."""
    inner = tuple(slice(m, n - m) for m, n in zip(margin, window.shape[1:], strict=True))
    moved = np.roll(window, 1, axis=-1)
    place = sum(
        (0.05 + 0.03 * a) * np.cos(1.0 + a + np.arange(n)).reshape([-1 if b == a else 1 for b in range(len(margin))])
        for a, n in enumerate(window.shape[1:])
    )
    outputs = [
        0.7 * window[k % len(window)] + 0.2 * moved[(k + 1) % len(window)] + (1 + k % 3) * place + 0.1 * (k % 2) + 0.2
        for k in range(channels)
    ]
    return np.stack([o[inner] for o in outputs])


def _on_host(self: FakeBackend, slot: int) -> Array:
    spec, out = self.setup.model.spec, self._outputs[slot]
    for item, result in zip(self._inputs[slot], out, strict=True):
        result[...] = network(item, spec.channels_out, spec.margin)
    return out


def _on_device(self: FakeDevice, stream: int) -> None:
    spec = self.setup.model.spec
    for item, result in zip(values_of(self.input), values_of(self.output), strict=True):
        result[...] = network(item, spec.channels_out, spec.margin)


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBackend, "_run", _on_host)
    monkeypatch.setattr(FakeDevice, "run", _on_device)


# --- the engine's result, and what it must be ---


def written(case: Case, number: int, folder: Path) -> tuple[str, Array]:
    """The volume as stored, with odd chunks, and as (channels, *spatial) float64."""
    rng = np.random.default_rng([number, 1])
    sizes = {**case.spatial, "c": case.channels_in, "t": 1}
    order = [a for a in "tc" if a in case.stored] + list(case.spatial)
    array = (rng.random([sizes[a] for a in order]) * 120).astype(case.dtype)
    stored = array.transpose([order.index(a) for a in case.stored])
    path = folder / "scan.zarr"
    version = int(rng.integers(2, 4))
    target = zarr.create_array(
        str(path), shape=stored.shape, dtype=stored.dtype, zarr_format=version,
        chunks=tuple(int(rng.integers(1, n + 1)) for n in stored.shape),
        **({"dimension_names": list(case.stored)} if version == 3 else {}),
    )  # fmt: skip
    target[...] = stored
    return str(path), array.reshape(case.channels_in, *case.spatial.values()).astype(np.float64)


def normalised(image: Array, how: str) -> Array:
    if how == "zscore":
        flat = image.reshape(len(image), -1)
        per = (-1, *(1,) * (image.ndim - 1))
        return (image - flat.mean(axis=1).reshape(per)) / flat.std(axis=1).reshape(per)
    low, high = (0.0, 1.0) if how == "none" else map(float, how.partition(":")[2].split(","))
    return (image - low) / (high - low)


def expected(case: Case, image: Array) -> tuple[Array, Array]:
    """(channels, *roi) values or (*roi) labels in the order z, y, x; and where rounding may decide."""
    tiling = case.tiling

    def infer(window: Array) -> Array:
        planes = window.ndim - 1 - len(case.model_axes)
        flat = window.reshape(len(window), *window.shape[1 + planes :])
        found = network(flat, case.channels_out, case.margin)
        return found.reshape(len(found), *(1,) * planes, *found.shape[1:])

    sums = stitched(normalised(image, case.options["normalize"]), infer, tiling, case.channels_out)
    sums = sums[(slice(None), *case.roi)]
    if case.options["output"] == "labels":
        return labels(sums, case.activation)
    if case.options["output"] == "probabilities":
        sums = probabilities(sums, case.activation)
        if case.options["dtype"] is None:
            sums = np.floor(sums * 255 + 0.5)
    return sums, np.zeros(sums.shape[1:], bool)


def check(number: int, folder: Path) -> None:
    case = drawn(number)
    scan, image = written(case, number, folder)
    if case.options["normalize"] == "zscore" and (image.reshape(len(image), -1).std(axis=1) == 0).any():
        return  # refused, as it must be: there is nothing to divide by
    model = fake_model(
        folder, axes=case.model_axes, channels_in=case.channels_in, channels_out=case.channels_out,
        activation=case.activation, window=case.window, window_min=case.window, margin=case.margin,
        window_step=(0,) * len(case.window),
    )  # fmt: skip
    roi = ",".join(f"{s.start}:{s.stop}" for s in case.roi)
    out = unet_engine.run(scan, model=model, out=str(folder / "out.zarr"), axes=case.stored, roi=roi, **case.how).out
    got = np.asarray(zarr.open_array(str(Path(out) / "0"), mode="r")[...])
    names = "".join(a for a in case.stored if a in "zyx")
    lead = got.ndim - len(names)
    got = got.transpose([*range(lead), *(lead + names.index(a) for a in case.spatial)])
    wanted, near = expected(case, image)
    assert got.shape == wanted.shape
    if case.options["output"] == "labels":
        assert near.mean() < 0.5 or near.size < 200
        wrong = (got != wanted) & ~near
    elif got.dtype == np.uint8:
        wrong = np.abs(got.astype(float) - wanted) > 1
    else:
        wrong = np.abs(got - wanted) > 1e-5 * max(1.0, np.abs(wanted).max())
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} voxels, first {np.argwhere(wrong)[0]}: {case}"


@pytest.mark.parametrize("first", range(0, CASES, AT_ONCE))
def test_the_engine_gives_what_brute_force_gives(first: int, tmp_path: Path) -> None:
    for number in range(first, min(first + AT_ONCE, CASES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            check(number, folder)
        except Exception as error:
            error.add_note(f"geometry {number}")
            raise
