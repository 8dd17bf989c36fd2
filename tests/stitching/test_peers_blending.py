"""`--blend monai` and `--blend nnunet` against the functions of these tools themselves: places, weights, whole
volumes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unet_engine
from support.peers import nnunet_logits
from support.volumes import fake_model, make_volume, result_of
from unet_engine.plan.grid import AxisGrid, Blend
from unet_engine.stitching.weights import axis_weights, covers, floor_of

torch = pytest.importorskip("torch")

OVERLAPS = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75])
Array = np.ndarray[Any, Any]


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Sizes of a volume, sizes of a window in it, and an overlap."""
    axes = draw(st.integers(2, 3))
    window = tuple(draw(st.integers(2, 14)) for _ in range(axes))
    size = tuple(draw(st.integers(w, 40)) for w in window)
    return size, window, draw(OVERLAPS)


def grid(geometry: tuple[tuple[int, ...], tuple[int, ...], float], blend: Blend) -> list[AxisGrid]:
    size, window, overlap = geometry
    return [AxisGrid.with_overlap(n, w, overlap, 0, blend) for n, w in zip(size, window, strict=True)]


def shares(axes: list[AxisGrid]) -> dict[tuple[int, ...], Array]:
    """By the corner of each window, what it is of the result at each of its voxels."""
    floor = floor_of(axes[0])
    total = np.ones([a.size for a in axes])
    if axes[0].divides:
        total = np.zeros([a.size for a in axes])
        for rows in itertools.product(*(covers(a, 0, a.size) for a in axes)):
            there = outer([row >= 0 for row in rows])
            total += np.where(there, np.maximum(outer(rows), floor), 0)
    found = {}
    for index in itertools.product(*(range(a.count) for a in axes)):
        corner = tuple(a.start(k) for a, k in zip(axes, index, strict=True))
        weights = np.maximum(outer([axis_weights(a, k) for a, k in zip(axes, index, strict=True)]), floor)
        found[corner] = weights / total[tuple(slice(c, c + n) for c, n in zip(corner, weights.shape, strict=True))]
    return found


def outer(vectors: Any) -> Array:
    result = np.ones(())
    for vector in vectors:
        result = np.multiply.outer(result, vector)
    return result


def peers_shares(corners: list[tuple[int, ...]], weights: Array, size: tuple[int, ...]) -> dict[tuple[int, ...], Array]:
    """The same of a peer, which divides by the sum of the weights of its windows."""
    places = {c: tuple(slice(a, a + n) for a, n in zip(c, weights.shape, strict=True)) for c in corners}
    total = np.zeros(size)
    for place in places.values():
        total[place] += weights
    return {corner: weights / total[place] for corner, place in places.items()}


def agree(ours: dict[tuple[int, ...], Array], theirs: dict[tuple[int, ...], Array]) -> None:
    assert list(ours) == list(theirs), "windows lie elsewhere, or come in another order"
    for corner, share in ours.items():
        np.testing.assert_allclose(share, theirs[corner], atol=2e-6, rtol=2e-6)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(geometries())
def test_windows_and_weights_are_those_of_monai(geometry: Any) -> None:
    pytest.importorskip("monai")
    from monai.data.utils import compute_importance_map, dense_patch_slices
    from monai.inferers.utils import _get_scan_interval

    size, window, overlap = geometry
    interval = _get_scan_interval(size, window, len(size), (overlap,) * len(size))
    corners = [tuple(int(s.start) for s in slices) for slices in dense_patch_slices(size, window, interval)]
    weights = compute_importance_map(window, mode="gaussian", sigma_scale=0.125).numpy().astype(np.float64)
    agree(shares(grid(geometry, "monai")), peers_shares(corners, weights, size))


@settings(max_examples=60, deadline=None)
@given(geometries())
def test_windows_and_weights_are_those_of_nnunet(geometry: Any) -> None:
    pytest.importorskip("nnunetv2")
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

    size, window, overlap = geometry
    if min(w * (1 - overlap) for w in window) < 1:
        return  # it places several windows at one voxel, which weighs them twice
    corners = list(itertools.product(*compute_steps_for_sliding_window(size, window, 1 - overlap)))
    weights = compute_gaussian(window, 1 / 8, 10, torch.float64, torch.device("cpu")).numpy()
    agree(shares(grid(geometry, "nnunet")), peers_shares(corners, weights, size))


def test_without_a_floor_weights_of_nnunet_are_a_product_and_its_rounding_to_half_is_small() -> None:
    """What is left out of `nnunet`, in numbers: its map in float16 moves no weight that counts by more than a
    thousandth of the result, but along the edges of the volume, where all weights are tiny."""
    pytest.importorskip("nnunetv2")
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    axes = [AxisGrid.with_overlap(n, 32, 0.5, 0, "nnunet") for n in (48, 64, 48)]
    corners = list(itertools.product(*([a.start(k) for k in range(a.count)] for a in axes)))
    half = compute_gaussian((32,) * 3, 1 / 8, 10, device=torch.device("cpu")).numpy().astype(np.float64)
    ours, theirs = shares(axes), peers_shares(corners, half, (48, 64, 48))
    apart = {c: np.abs(share - theirs[c]) for c, share in ours.items()}
    worst = np.zeros((48, 64, 48))
    for corner, values in apart.items():
        place = tuple(slice(c, c + 32) for c in corner)
        worst[place] = np.maximum(worst[place], values)
    assert worst[8:-8, 8:-8, 8:-8].max() < 1e-3
    assert worst.max() < 0.1


# --- whole volumes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Any, Path]]:
    """Untrained networks of 2 and 3 axes, which disagree with themselves a lot where windows meet."""
    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.nets import UNet, UNetConfig
    from unet_export.train.specs import spec_for

    found = {}
    for dims in (2, 3):
        torch.manual_seed(dims)
        chosen = UNetConfig(dims=dims, channels_in=1, classes=4, base=4, depth=2, norm="instance")
        network, path = UNet(chosen).eval(), tmp_path_factory.mktemp("net") / f"net{dims}.onnx"
        export_onnx(network, spec_for(chosen, name="net", window=(16,) * dims), path)
        found[dims] = network, path
    return found


def run(image: Array, model: Path, blend: str, overlap: float, tta: str = "none") -> Array:
    with tempfile.TemporaryDirectory() as folder:
        volume = make_volume(f"{folder}/v.zarr", image)
        out = f"{folder}/o.zarr"
        return result_of(
            unet_engine.run(
                volume, model=str(model), out=out, blend=blend, overlap=overlap, tta=tta, output="logits"
            ).out
        )


def check(got: Array, expected: Array) -> None:
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    assert clear.mean() > 0.99
    assert (got.argmax(0) == expected.argmax(0))[clear].all()


SHAPES = {2: [(61, 40), (70, 16), (9, 40)], 3: [(37, 20, 30), (16, 50, 17), (40, 9, 12)]}


@pytest.mark.parametrize(("dims", "overlap"), [(2, 0.25), (3, 0.25), (3, 0.5)])
def test_a_whole_volume_is_what_monai_makes_of_it(networks: Any, dims: int, overlap: float) -> None:
    inferers = pytest.importorskip("monai.inferers")
    network, model = networks[dims]
    for shape in SHAPES[dims]:
        image = np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
        with torch.inference_mode():
            expected = inferers.sliding_window_inference(
                torch.from_numpy(image)[None, None], (16,) * dims, 2, network, overlap=overlap, mode="gaussian"
            )[0].numpy()
        check(run(image, model, "monai", overlap), expected)


@pytest.mark.parametrize(("dims", "overlap"), [(2, 0.5), (3, 0.25), (3, 0.5)])
def test_a_whole_volume_is_what_nnunet_makes_of_it(networks: Any, dims: int, overlap: float) -> None:
    network, model = networks[dims]
    for shape in SHAPES[3]:  # a 2D network walks through a volume plane by plane
        image = np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)
        expected = nnunet_logits(network, image[None], (16,) * dims, channels=4, step=1 - overlap)
        check(run(image, model, "nnunet", overlap), expected)


def test_mirrored_windows_are_weighed_as_the_peers_weigh_them(networks: Any) -> None:
    inferers = pytest.importorskip("monai.inferers")
    network, model = networks[3]
    image = np.random.default_rng(5).standard_normal((20, 30, 18), np.float32)

    def mirrored(window: Any) -> Any:
        axes = [c for n in range(3) for c in itertools.combinations((2, 3, 4), n + 1)]
        return sum((network(window.flip(a)).flip(a) for a in axes), network(window)) / 8

    with torch.inference_mode():
        expected = inferers.sliding_window_inference(
            torch.from_numpy(image)[None, None], (16,) * 3, 2, mirrored, overlap=0.5, mode="gaussian"
        )[0].numpy()
    check(run(image, model, "monai", 0.5, "mirror"), expected)
    expected = nnunet_logits(network, image[None], (16,) * 3, channels=4, step=0.5, mirror=(0, 1, 2))
    check(run(image, model, "nnunet", 0.5, "mirror"), expected)


@pytest.mark.parametrize("blend", ["monai", "nnunet"])
def test_mirrored_windows_give_a_device_the_bytes_of_the_host(tmp_path: Path, blend: str) -> None:
    volume = make_volume(tmp_path / "v.zarr", np.random.default_rng(7).random((21, 17, 30), np.float32))
    options = {"model": fake_model(tmp_path, channels_out=3), "blend": blend, "tta": "mirror", "output": "logits"}
    results = [
        result_of(unet_engine.run(volume, out=str(tmp_path / f"{device}.zarr"), device=device, **options).out)
        for device in ("cpu", "simulated")
    ]
    np.testing.assert_array_equal(*results)


def test_the_other_ways_to_blend_differ_from_the_peers(networks: Any) -> None:
    """So that what is compared above can fail."""
    inferers = pytest.importorskip("monai.inferers")
    network, model = networks[3]
    image = np.random.default_rng(3).standard_normal((37, 20, 30), np.float32)
    with torch.inference_mode():
        expected = inferers.sliding_window_inference(
            torch.from_numpy(image)[None, None], (16,) * 3, 2, network, overlap=0.5, mode="gaussian"
        )[0].numpy()
    apart = run(image, model, "gaussian", 0.5).argmax(0) != expected.argmax(0)
    assert 0.002 < apart.mean() < 0.1
