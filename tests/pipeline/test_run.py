"""A whole run from Python: what it returns, what it writes beside the voxels, what it costs in memory."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import unet_engine
from support.command_line import COMMAND
from support.paths import BENCHMARKS
from support.volumes import fake_model, make_volume, result_of
from unet_engine.errors import BackendError


def test_the_api_has_the_names_of_the_commands(tmp_path: Path) -> None:
    volume, model = make_volume(str(tmp_path / "v.zarr"), np.zeros((9, 17, 20), np.uint8)), fake_model(tmp_path)
    plan = unet_engine.make_plan(volume, model=model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["id.fake.toml", "v.zarr"], "planning writes nothing"
    result = unet_engine.run(volume, model=model)
    assert isinstance(plan, unet_engine.Plan)
    assert isinstance(result, unet_engine.Result)
    assert isinstance(unet_engine.open_model(model), unet_engine.ModelFile)
    assert result.digest == plan.digest
    assert (result.windows_planned, result.blocks_planned) == (plan.window_count, plan.block_count)


def test_the_function_run_is_not_hidden_by_a_module() -> None:
    """Whatever was imported first."""
    code = "import unet_engine.api, unet_engine; assert callable(unet_engine.run)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_output_lies_beside_the_input_named_after_both(tmp_path: Path) -> None:
    image = np.zeros((9, 17, 20), np.uint8)
    volume = make_volume(str(tmp_path / "scan.zarr"), image, axes="zyx", ome="0.5")
    assert unet_engine.run(volume, model=fake_model(tmp_path)).out == str(tmp_path / "scan-id.zarr")
    assert unet_engine.run(volume + "/0", model=fake_model(tmp_path), overwrite=True).out == str(
        tmp_path / "scan-id.zarr"
    )


def test_provenance_says_how_the_output_came_about(tmp_path: Path) -> None:
    image = np.arange(9 * 17 * 20, dtype=np.uint16).reshape(9, 17, 20)
    volume = make_volume(
        str(tmp_path / "v.zarr"), image, axes="zyx", ome="0.5", scale=(4.0, 2.0, 2.0), unit="nanometer"
    )
    result = unet_engine.run(volume, model=fake_model(tmp_path), normalize="minmax", roi="1:9,2:17,4:20")
    attributes = dict(zarr.open_group(result.out, mode="r").attrs)
    made = attributes["unet_engine"]
    assert made["complete"] is True
    assert made["digest"] == result.digest
    assert made["identity"]["backend"] == "fake 1"
    assert made["model"]["sha256"] == unet_engine.open_model(fake_model(tmp_path)).sha256
    np.testing.assert_allclose(made["normalization"]["scale"], [1 / (image.size - 1)])
    assert made["summary"]["windows_inferred"] == result.windows_inferred
    scales = attributes["ome"]["multiscales"][0]
    assert [a["name"] for a in scales["axes"]] == ["z", "y", "x"]
    assert scales["axes"][0]["unit"] == "nanometer"
    transforms = {t["type"]: t[t["type"]] for t in scales["datasets"][0]["coordinateTransformations"]}
    assert transforms == {"scale": [4, 2, 2], "translation": [4, 4, 8]}


def test_nothing_but_the_result_is_left_in_a_complete_output(tmp_path: Path) -> None:
    volume = make_volume(str(tmp_path / "v.zarr"), np.ones((9, 17, 20), np.uint8))
    result = unet_engine.run(volume, model=fake_model(tmp_path))
    left = {p.relative_to(result.out).parts[:2] for p in Path(result.out).rglob("*") if p.is_file()}
    assert left == {("zarr.json",), ("0", "zarr.json"), ("0", "c")}


def test_a_network_that_fails_names_block_and_window_and_the_run_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_engine.prepare.draft.default_block", lambda *_: (2, 2, 2))
    image = np.random.default_rng(0).random((16, 24, 32), dtype=np.float32)
    volume, out = make_volume(str(tmp_path / "v.zarr"), image), str(tmp_path / "o.zarr")
    with pytest.raises(BackendError, match=r"window \(\d, \d, \d\)"):
        unet_engine.run(volume, model=fake_model(tmp_path, fail_at=70), out=out, output="logits", threads=1)
    assert list((tmp_path / "o.zarr" / "0" / ".journal").rglob("*.*.*")), "blocks before the failure stay committed"


def test_nan_from_the_network_is_an_error_not_a_label(tmp_path: Path) -> None:
    """Float16 engines that overflow are a known complaint: their labels must never look like a result."""
    volume = make_volume(str(tmp_path / "v.zarr"), np.full((9, 9, 9), 3e38, np.float32))
    with pytest.raises(BackendError, match=r"NaN or Inf in block \(0, 0, 0\).*use --precision fp32"):
        unet_engine.run(volume, model=fake_model(tmp_path), normalize="range:0,0.001", out=str(tmp_path / "o.zarr"))


def test_normalisation_is_global(tmp_path: Path) -> None:
    """One shift and scale for the whole volume, so a flat region stays flat across windows."""
    image = np.random.default_rng(1).integers(0, 200, (12, 40, 40)).astype(np.uint16)
    image[:, :20] = 100
    volume = make_volume(str(tmp_path / "v.zarr"), image)
    got = result_of(unet_engine.run(volume, model=fake_model(tmp_path), normalize="zscore", output="logits").out)[0]
    np.testing.assert_allclose(got, (image - image.mean()) / image.std(), atol=1e-4)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # of one volume alone, `test_memory.py` shows it each time
def test_memory_is_bounded_by_the_budget_and_close_to_the_prediction(tmp_path: Path) -> None:
    """Eight times the voxels in the same memory; the prediction holds within 15 % on the larger one."""
    model = fake_model(
        tmp_path, name="big", window=(32,) * 3, window_min=(32,) * 3, window_step=(0,) * 3, channels_out=4
    )
    rows = []
    for n, memory in ((96, None), (192, 1)):
        image = np.random.default_rng(0).integers(0, 255, (n, n, n), dtype=np.uint8)
        volume = make_volume(str(tmp_path / f"{n}.zarr"), image, chunks=(32, 32, 32))
        limit = ["--memory", str(int(1.1 * rows[0]["predicted_rss_bytes"]))] if memory else []
        rows.append(_command(["run", "--in", volume, "--model", model, "--json", *limit]))
    small, large = (r["peak_rss_bytes"] for r in rows)
    assert large < 1.15 * max(small, rows[0]["predicted_rss_bytes"])
    assert 0.8 < large / rows[1]["predicted_rss_bytes"] < 1.15


def _command(arguments: list[str]) -> dict[str, Any]:
    return _told(arguments)[0]


def _told(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The result, and the lines that people see."""
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True)
    decoded: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return decoded, done.stderr.splitlines()


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_segments_its_tissue_and_shows_it(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "my demo"
    facts, lines = _told(["demo", str(folder), "--json"])
    assert min(facts["dice"].values()) > 0.85
    with Image.open(folder / "demo.png") as picture:
        assert picture.width > 3 * 192
        assert len(picture.getcolors(2**20)) > 50
    assert (folder / "unet-engine.toml").is_file()
    ran, yours = lines[-2:]
    assert shlex.split(ran)[:4] == ["next:", "unet-engine", "run", "--in"]
    assert shlex.split(ran)[4] == str(folder / "scan.zarr")
    assert yours.startswith("yours: unet-engine run --in VOLUME --model MODEL")


@pytest.mark.slow
def test_the_demo_may_be_repeated(tmp_path: Path) -> None:
    first, second = (_command(["demo", str(tmp_path / "demo"), "--json"])["dice"] for _ in range(2))
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("script", ["end_to_end.py", "memory.py"])
def test_benchmarks_run_at_toy_size(script: str, tmp_path: Path) -> None:
    path = BENCHMARKS / script
    command = [sys.executable, str(path), "--quick", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "|" in done.stdout
    assert json.loads((tmp_path / "rows.json").read_text())


# --- what a type cannot hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_numbers_beyond_float16_are_no_infinities(tmp_path: Path, device: str) -> None:
    volume = make_volume(str(tmp_path / "v.zarr"), np.full((9, 10, 11), 7e4, np.float32))
    options = {"model": fake_model(tmp_path), "output": "logits", "device": device, "overwrite": True}
    with pytest.raises(BackendError, match=r"block \(0, 0, 0\) .*float16 cannot hold; use --dtype float32"):
        unet_engine.run(volume, dtype="float16", **options)
    np.testing.assert_allclose(result_of(unet_engine.run(volume, dtype="float32", **options).out), 7e4, rtol=1e-6)
