"""A volume of another spacing, with mirrors and several networks: what the same run makes of the resampled volume."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import unet_engine
from support.command_line import cli
from support.shares import share
from support.volumes import make_volume, result_of
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY
from unet_engine.prepare.resampling import grids, seen
from unet_engine.volumes.formats import open_volume

HOW = {"spacing": [1.5, 0.8, 1.0], "spacing_unit": "millimeter", "resampling": {"image": 1, "output": 1}}


def with_spec(path, target, **changed):
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = json.dumps({**json.loads(entry.value), **changed})
    onnx.save(model, target)
    return str(target)


@pytest.fixture
def case(tmp_path, tiny_onnx, tissue):
    """A scan, a model that wants it at another spacing, the same scan at that spacing, and a model that takes it so."""
    image = result_of_volume(tissue)[:36, :56, :56].astype(np.float32)
    scan = make_volume(
        tmp_path / "v.zarr", image, axes="zyx", ome="0.5", scale=(1.0,) * 3, unit="millimeter", chunks=(16, 16, 16)
    )
    network = with_spec(tiny_onnx, tmp_path / "net.onnx", **HOW)
    spec = open_model(network).spec
    volume = open_volume(scan, None)
    there = seen(volume, grids(volume, spec, [], ignore=False), spec)
    whole = there.read(unet_engine.plan.box.Box.of_shape(there.shape))[0]
    moved = make_volume(tmp_path / "w.zarr", whole, axes="zyx")
    plain = with_spec(tiny_onnx, tmp_path / "plain.onnx", normalization={"mode": "none"}, spacing=None)
    return scan, network, moved, plain


def result_of_volume(path):
    volume = open_volume(path, None)
    return volume.read(unet_engine.plan.box.Box.of_shape(volume.shape))[0]


def run(folder, scan, model, **options):
    options = {"output": "logits", "device": "cpu", **options}
    return unet_engine.run(scan, model=model, out=str(folder / f"{len(list(folder.iterdir()))}.zarr"), **options)


@pytest.mark.parametrize(
    ("tta", "several"), share([("mirror:zx", True), ("turns", False), ("mirror:zx", False), ("turns", True)])
)
def test_mirrors_turns_and_networks(tmp_path, case, tta, several):
    scan, network, moved, plain = case
    network, plain = (f"{m},{m}" if several else m for m in (network, plain))
    found = run(tmp_path, scan, network, tta=tta, grid="model", weights="2,1" if several else None)
    expected = run(tmp_path, moved, plain, tta=tta, weights="2,1" if several else None)
    assert found.windows_planned == expected.windows_planned
    np.testing.assert_array_equal(result_of(found.out), result_of(expected.out))
    back = run(tmp_path, scan, network, tta=tta, weights="2,1" if several else None)
    assert back.windows_inferred == found.windows_inferred
    part = run(tmp_path, scan, network, tta=tta, roi="4:30,0:41,9:56", weights="2,1" if several else None)
    np.testing.assert_array_equal(result_of(part.out), result_of(back.out)[:, 4:30, :41, 9:56])


def test_the_gate_judges_at_the_networks_spacing_and_a_run_takes_its_verdict(tmp_path, case):
    pytest.importorskip("openvino")
    scan, network, _, _ = case
    options = "--windows", "4", "--held-out", "4", "--precision", "bf16", "--min-dice", "0.5", "--json"
    said = cli("quantize", network, "--calibrate", scan, *options)
    assert said.code == 0, said.err
    assert "is brought from 36×56×56 voxels" in said.err
    if open_model(network).verdicts:
        plan = cli("plan", "--in", scan, "--model", network, "--json")
        assert json.loads(plan.out)["precision"] in ("bf16", "fp32")


@pytest.mark.slow
def test_overlaps_are_tried_at_the_networks_spacing_with_mirrors(tmp_path, case):
    scan, network, moved, plain = case
    options = {"overlap": "auto", "overlap_tolerance": 0.9, "tta": "mirror:x", "output": "labels"}
    found = run(tmp_path, scan, f"{network},{network}", **options)
    expected = run(tmp_path, moved, f"{plain},{plain}", **options)
    assert found.overlap_choice["chosen"] == expected.overlap_choice["chosen"]
    assert found.overlap_choice["windows"] == expected.overlap_choice["windows"]
