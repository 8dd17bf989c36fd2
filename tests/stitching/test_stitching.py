"""What comes out equals what the theory says: the identity gives the input, MONAI and the whole volume agree, bytes
never vary."""

from __future__ import annotations

import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import HealthCheck, given, settings

import unet_engine
from support.shares import share
from support.stitching import cases
from support.volumes import fake_model, make_volume, result_of
from unet_engine.plan.memory import cut_columns
from unet_engine.stitching.weights import profile

RNG = np.random.default_rng(11)


@given(cases())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_identity_network_gives_the_input_back(blocks: Any, case: dict[str, Any]) -> None:
    """Any shape, window, overlap, block size, with and without lost borders, 2D and 3D, several channels in and out."""
    image = RNG.random((case["channels_in"], *case["shape"]), dtype=np.float32)
    blocks(case["block"])
    with tempfile.TemporaryDirectory() as folder:
        volume = make_volume(f"{folder}/v.zarr", image, axes="c" + case["axes"])
        model = fake_model(
            folder, axes=case["axes"], channels_in=case["channels_in"], channels_out=case["channels_out"],
            margin=case["margin"],
            window=case["window"], window_min=case["window"], window_step=(0,) * len(case["axes"]),
        )  # fmt: skip
        result = unet_engine.run(
            volume, model=model, out=f"{folder}/o.zarr", output="logits", overlap=case["overlap"], blend=case["blend"],
            threads=case["threads"],
        )  # fmt: skip
        got = result_of(result.out)
    expected = np.stack([image[k % case["channels_in"]] for k in range(case["channels_out"])])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert result.windows_inferred == result.windows_planned


# --- one volume, a network that is not the identity -------------------------------------------------------------------


@pytest.fixture(scope="module")
def net3d(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return _network(tmp_path_factory.mktemp("net3d"), dims=3, depth=2, window=(16, 16, 16))


@pytest.fixture(scope="module")
def net2d(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return _network(tmp_path_factory.mktemp("net2d"), dims=2, depth=1, window=(48, 48))


def _network(folder: Path, *, dims: Any, depth: int, window: tuple[int, ...], **config: Any) -> tuple[Any, Path]:
    torch = pytest.importorskip("torch")
    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.nets import UNet, UNetConfig
    from unet_export.train.specs import spec_for

    torch.manual_seed(3)
    chosen = UNetConfig(dims=dims, channels_in=1, classes=3, base=4, depth=depth, norm="none", **config)
    network = UNet(chosen).eval()
    path = folder / "net.onnx"
    export_onnx(network, spec_for(chosen, name="net", window=window), path)
    return network, path


@pytest.fixture(scope="module")
def volume3d(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, npt.NDArray[np.float32]]:
    image = RNG.standard_normal((37, 44, 50), dtype=np.float32)
    return make_volume(str(tmp_path_factory.mktemp("v") / "v.zarr"), image, chunks=(16, 16, 16)), image


def _logits(volume: str, model: Path, out: Path, **options: Any) -> npt.NDArray[Any]:
    return result_of(
        unet_engine.run(volume, model=str(model), out=str(out), output="logits", overwrite=True, **options).out
    )


@pytest.mark.parametrize("overlap", share([0.5, 0.25]))
def test_equals_monai_with_the_same_windows_and_weights(
    net3d: Any, volume3d: Any, tmp_path: Path, overlap: float
) -> None:
    monai = pytest.importorskip("monai.inferers")
    import torch

    network, model = net3d
    volume, image = volume3d
    g = torch.from_numpy(profile(16, "gaussian").astype(np.float32))
    weights = g[:, None, None] * g[None, :, None] * g[None, None, :]
    with torch.inference_mode():
        expected = monai.sliding_window_inference(
            torch.from_numpy(image)[None, None],
            (16, 16, 16),
            1,
            network,
            overlap=overlap,
            roi_weight_map=weights,
            padding_mode="reflect",
        )[0].numpy()
    got = _logits(volume, model, tmp_path / "o.zarr", overlap=overlap)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_crop_equals_whole_volume_inference_where_the_margin_covers_the_receptive_field(
    net2d: Any, tmp_path: Path
) -> None:
    """Stride 24 and 96×120 voxels are multiples of the pooling, so windows see the same pooling grid as the whole."""
    import torch

    network, model = net2d
    image = RNG.standard_normal((96, 120), dtype=np.float32)
    assert max(unet_engine.open_model(model).spec.context or (99,)) <= 12
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)[None, None])[0].numpy()
    got = _logits(make_volume(str(tmp_path / "v.zarr"), image), model, tmp_path / "o.zarr", blend="crop")
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_a_network_that_loses_its_border_agrees_with_the_whole_padded_volume(tmp_path: Path) -> None:
    """Valid convolutions have no border of their own, so on reflected input every window agrees with the whole."""
    import torch

    network, model = _network(tmp_path, dims=2, depth=1, window=(44, 44), padding="valid")
    image = RNG.standard_normal((60, 80), dtype=np.float32)
    margin = unet_engine.open_model(model).spec.margin[0]
    spare = (-(60 + 2 * margin)) % 2
    padded = np.pad(image, margin, mode="reflect")
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.pad(padded, ((0, spare), (0, 0)), mode="reflect"))[None, None])[
            0
        ].numpy()[:, :60, :80]
    got = _logits(make_volume(str(tmp_path / "v.zarr"), image), model, tmp_path / "o.zarr")
    window_out = 44 - 2 * margin
    assert window_out % 4 == 0, "the stride must keep the pooling grid for this comparison"
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_an_roi_gives_the_bytes_of_the_full_run(net3d: Any, volume3d: Any, tmp_path: Path) -> None:
    model, volume = net3d[1], volume3d[0]
    full = _logits(volume, model, tmp_path / "full.zarr")
    for roi in ("0:37,0:44,0:50", "5:30,7:44,3:20", "36:37,0:1,49:50", "16:32,16:32,16:32", "1:3,20:44,17:31"):
        box = tuple(slice(*map(int, part.split(":"))) for part in roi.split(","))
        got = _logits(volume, model, tmp_path / "roi.zarr", roi=roi)
        assert got.tobytes() == full[(slice(None), *box)].tobytes(), roi


def test_threads_and_columns_change_no_byte(
    net3d: Any, volume3d: Any, tmp_path: Path, blocks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, volume = net3d[1], volume3d[0]
    blocks((1, 2, 2))
    reference = _logits(volume, model, tmp_path / "a.zarr", threads=1)
    for threads in (2, 3, 5):
        assert _logits(volume, model, tmp_path / "b.zarr", threads=threads).tobytes() == reference.tobytes()
    for columns in ((1, 2, 1), (1, 2, 3), (2, 2, 2)):
        monkeypatch.setattr("unet_engine.prepare.prepare.fit", lambda plan, *_, c=columns: cut_columns(plan, c))
        plan = unet_engine.make_plan(volume, model=str(model), output="logits")
        assert plan.column_count == prod(columns)
        assert plan.window_count > plan.window_range.size
        assert _logits(volume, model, tmp_path / "c.zarr").tobytes() == reference.tobytes()


def test_another_block_size_agrees_to_rounding(net3d: Any, volume3d: Any, tmp_path: Path, blocks: Any) -> None:
    model, volume = net3d[1], volume3d[0]
    reference = _logits(volume, model, tmp_path / "a.zarr")
    for block in ((1, 1, 1), (2, 3, 1), (9, 9, 9)):
        blocks(block)
        np.testing.assert_allclose(
            _logits(volume, model, tmp_path / "b.zarr"), reference, atol=1e-5 * np.abs(reference).max()
        )


def test_several_lanes_give_the_bytes_of_one(tmp_path: Path, blocks: Any) -> None:
    """Two devices, two columns: the fake back end stands for GPUs. A seam is inferred by both sides and nothing else
    differs."""
    image = RNG.random((20, 40, 40), dtype=np.float32)
    volume, model = make_volume(str(tmp_path / "v.zarr"), image), fake_model(tmp_path)
    blocks((2, 2, 2))
    one = unet_engine.run(volume, model=model, out=str(tmp_path / "one.zarr"), output="logits")
    two = unet_engine.run(volume, model=model, out=str(tmp_path / "two.zarr"), output="logits", device="fake:0,fake:1")
    assert two.device == "fake:0,fake:1"
    assert two.windows_inferred == two.windows_planned > one.windows_planned
    assert result_of(one.out).tobytes() == result_of(two.out).tobytes()


# --- reductions -------------------------------------------------------------------------------------------------------


def test_labels_probabilities_and_logits_agree(net3d: Any, volume3d: Any, tmp_path: Path) -> None:
    model, volume = net3d[1], volume3d[0]
    logits = _logits(volume, model, tmp_path / "l.zarr").astype(np.float64)

    def run(**options: Any) -> npt.NDArray[Any]:
        return result_of(
            unet_engine.run(volume, model=str(model), out=str(tmp_path / "o.zarr"), overwrite=True, **options).out
        )

    labels, coarse, fine = run(), run(output="probabilities"), run(output="probabilities", dtype="float32")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, logits.argmax(axis=0))
    softmax = np.exp(logits - logits.max(axis=0))
    softmax /= softmax.sum(axis=0)
    np.testing.assert_allclose(fine, softmax, atol=1e-6)
    assert coarse.dtype == np.uint8
    assert np.abs(coarse - 255 * softmax).max() <= 0.501
    half = run(output="probabilities", dtype="float16")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, fine.astype(np.float16))


def test_more_than_256_classes_take_uint16(tmp_path: Path) -> None:
    volume = make_volume(str(tmp_path / "v.zarr"), np.zeros((9, 9), np.uint8))
    model = fake_model(tmp_path, axes="yx", channels_out=300)
    result = unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"))
    assert result_of(result.out).dtype == np.uint16


# --- empty regions ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sparse(tmp_path: Path) -> tuple[str, npt.NDArray[np.uint8]]:
    """One bright corner in a volume most of whose chunks were never written, and one chunk written but black."""
    image = np.zeros((16, 64, 96), np.uint8)
    image[4:12, 6:20, 5:22] = RNG.integers(1, 255, (8, 14, 17))
    path = str(tmp_path / "sparse.zarr")
    array = zarr.create_array(
        path, shape=image.shape, chunks=(8, 16, 16), dtype="uint8", config={"write_empty_chunks": False}
    )
    array[...] = image
    return path, image


def test_cost_follows_the_foreground(sparse: Any, tmp_path: Path, blocks: Any) -> None:
    """The spec names what an empty window stands for, so it is not inferred; where blocks are empty they are not even
    read."""
    volume, image = sparse
    blocks((2, 2, 2))
    model = fake_model(tmp_path, name="skips", empty=[-1.0])
    result = unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"), output="logits")
    labels = unet_engine.run(volume, model=model, out=str(tmp_path / "labels.zarr"))
    seen = result_of(labels.out)
    assert seen[image > 100].all()
    assert not seen[:, 40:, 60:].any()
    assert (labels.windows_inferred, labels.windows_skipped) == (result.windows_inferred, result.windows_skipped)
    everything = unet_engine.run(volume, model=fake_model(tmp_path), out=str(tmp_path / "all.zarr"), output="logits")
    assert result.windows_inferred + result.windows_skipped == result.windows_planned
    assert 0 < result.windows_inferred < result.windows_planned / 4
    assert result.bytes_read < everything.bytes_read / 2
    assert labels.bytes_read == result.bytes_read
    files = sum(1 for p in (Path(labels.out) / "0").rglob("*") if p.is_file())
    assert files < 30, "empty chunks were written"


def test_the_constant_of_the_spec_fills_what_is_skipped(sparse: Any, tmp_path: Path, blocks: Any) -> None:
    blocks((2, 2, 2))
    model = fake_model(tmp_path, name="skips", empty=[-5.0])
    got = result_of(unet_engine.run(sparse[0], model=model, out=str(tmp_path / "o.zarr"), output="logits").out)
    np.testing.assert_allclose(got[0, :, 40:, 60:], -5, rtol=1e-6)


@pytest.mark.parametrize("kind", share(["labels", "logits", "probabilities"]))
def test_skipping_is_the_same_with_columns_and_regions(sparse: Any, tmp_path: Path, blocks: Any, kind: str) -> None:
    blocks((2, 2, 2))
    volume, model = sparse[0], fake_model(tmp_path, name="skips", empty=[-5.1], activation="sigmoid")
    full = result_of(unet_engine.run(volume, model=model, out=str(tmp_path / "o.zarr"), output=kind).out)
    two = unet_engine.run(volume, model=model, out=str(tmp_path / "t.zarr"), output=kind, device="fake:0,fake:1,fake:2")
    assert result_of(two.out).tobytes() == full.tobytes()
    part = unet_engine.run(volume, model=model, out=str(tmp_path / "p.zarr"), output=kind, roi="3:13,2:50,11:70")
    assert result_of(part.out).tobytes() == full[..., 3:13, 2:50, 11:70].tobytes()


def test_a_mask_leaves_out_what_it_covers_with_zeros(tmp_path: Path) -> None:
    image = RNG.random((8, 32, 32), dtype=np.float32)
    mask = np.zeros(image.shape, np.uint8)
    mask[:, :12, :12] = 1
    result = unet_engine.run(
        make_volume(str(tmp_path / "v.zarr"), image), mask=make_volume(str(tmp_path / "m.zarr"), mask), output="logits",
        model=fake_model(tmp_path, name="skips", empty=[-1.0]), out=str(tmp_path / "o.zarr"),
    )  # fmt: skip
    got = result_of(result.out)[0]
    np.testing.assert_allclose(got[:, :8, :8], image[:, :8, :8], atol=1e-6)
    np.testing.assert_allclose(got[:, 24:, 24:], -1, rtol=1e-6)
    assert result.windows_skipped > 0
