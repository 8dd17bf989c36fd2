"""Networks of other people, from their weights to labels: exported, run, and compared with their own framework over
the whole image, at more than one size of window."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import unet_engine  # noqa: E402
from support import foreign_networks as foreign  # noqa: E402
from support.brute_force import Array, Tiling, stitched  # noqa: E402
from support.volumes import make_volume, result_of  # noqa: E402
from unet_engine.model.file import open_model  # noqa: E402
from unet_engine.model.spec import ModelSpec  # noqa: E402
from unet_export.conversion.export import Export, export  # noqa: E402

pytestmark = pytest.mark.long

FACTORIES = [
    pytest.param(name, marks=pytest.mark.slow) if case.slow else name for name, case in foreign.NETWORKS.items()
]


def made(name: str, folder: Path) -> tuple[Any, Path, list[str]]:
    """The network with weights of its own, its file, and what the export told."""
    case = foreign.NETWORKS[name]
    if case.needs and find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} is not installed")
    torch.manual_seed(0)
    network = getattr(foreign, name)().eval()
    torch.save(network.state_dict(), folder / "weights.pth")
    told: list[str] = []
    out = folder / "net.onnx"
    export(
        Export(
            str(folder / "weights.pth"), str(out), factory=f"support.foreign_networks:{name}",
            window=(case.window,) * case.dims, channels=case.channels,
        ),
        told.append,
    )  # fmt: skip
    return network, out, told


def reference(network: Any, name: str, spec: ModelSpec, image: Array, window: tuple[int, ...]) -> Array:
    """(channels, *spatial): what the framework gives, stitched by brute force."""
    main = foreign.NETWORKS[name].main
    last = name == "keras"

    def infer(cut: Array) -> Array:
        x = torch.from_numpy(np.ascontiguousarray(cut, np.float32))[None]
        with torch.inference_mode():
            y = main(network(x.movedim(1, -1) if last else x))
        return (y.movedim(-1, 1) if last else y)[0].numpy()

    return stitched(image, infer, Tiling(window, spec.margin, 0.25, "gaussian", "reflect"), spec.channels_out)


def windows(spec: ModelSpec) -> list[tuple[int, ...]]:
    """The spec's own, and where sizes are free the next ones: an odd and an even number of steps away."""
    if not any(spec.window_step):
        return [spec.window]
    steps = [(1,) * len(spec.axes), (2, 3, 1)[: len(spec.axes)]]
    return [
        spec.window,
        *(tuple(w + k * s for w, k, s in zip(spec.window, by, spec.window_step, strict=True)) for by in steps),
    ]


@pytest.mark.parametrize("name", FACTORIES)
def test_a_foreign_network_gives_what_its_framework_gives(name: str, tmp_path: Path) -> None:
    network, path, told = made(name, tmp_path)
    spec = open_model(path).spec
    image = np.random.default_rng(5).standard_normal(
        (spec.channels_in, *(w + 5 + 2 * a for a, w in enumerate(spec.window))), dtype=np.float32
    )
    scan = make_volume(tmp_path / "scan.zarr", image, axes="c" + spec.axes)
    output = "probabilities" if spec.activation.startswith("probabilities") else "logits"
    for window in windows(spec):
        expected = reference(network, name, spec, image.astype(np.float64), window)
        result = unet_engine.run(
            scan, model=str(path), out=str(tmp_path / "out.zarr"), window=window, overlap=0.25, output=output,
            dtype="float32", normalize="none", device="cpu", precision="fp32", overwrite=True,
        )  # fmt: skip
        got = result_of(result.out)
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max(), (window, told)


def test_some_of_each_framework_are_tried_each_time() -> None:
    quick = [name for name, case in foreign.NETWORKS.items() if not case.slow]
    assert len(quick) >= 15
    assert len(foreign.NETWORKS) >= 45
    for framework in ("monai", "nnunet", "smp"):
        assert any(name.startswith(framework) for name in quick)
