"""Networks of one model file are judged one by one, and run in a lower precision together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.volumes import make_volume, result_of
from unet_engine.model.file import open_model
from unet_engine.model.writing import write_members


@pytest.mark.slow
def test_each_member_is_judged_and_all_run_in_what_all_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    for module in ("onnxscript", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(module)
    from unet_export.conversion.onnx_export import export_onnx
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.specs import spec_for

    monkeypatch.setattr("unet_export.quantize.fallback.Attempt.gains", True)  # time is not what is tested here
    config = UNetConfig(dims=2, classes=2, base=4, depth=1, norm="none")
    parts = []
    for seed in range(2):
        torch.manual_seed(seed)
        part = tmp_path / f"{seed}.onnx"
        export_onnx(UNet(config).eval(), spec_for(config, name="tiny", window=(16, 16)), part)
        parts.append((part, f"fold_{seed}", 1.0))
    file = write_members(tmp_path / "all.onnx", parts).path
    volume = make_volume(tmp_path / "scan.zarr", np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32))
    said = cli(
        "quantize", file, "--calibrate", volume, "--precision", "int8", "--windows", 3, "--held-out", 3,
        "--min-dice", "0.01", "--json",
    )  # fmt: skip
    assert [(row["member"], row["precision"]) for row in said.json] == [("fold_0", "int8"), ("fold_1", "int8")]
    before, model = open_model(parts[0][0]), open_model(file)
    assert model.networks[0].sha256 == before.sha256
    judged = [verdict for network in model.networks for verdict in network.verdicts]
    assert len({verdict.network for verdict in judged}) == 2
    fast = unet_engine.run(volume, model=file, precision="int8", out=str(tmp_path / "o.zarr"), output="logits")
    exact = unet_engine.run(volume, model=file, precision="fp32", out=str(tmp_path / "e.zarr"), output="logits")
    assert fast.precision == "int8"
    assert 0 < np.abs(result_of(fast.out) - result_of(exact.out)).max() < 1
