"""``bench --tilings``: what tilings cost and how they agree, as a table and a picture."""

from xml.etree import ElementTree

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.untrained import untrained
from support.volumes import make_volume
from unet_engine.commands.bench.command import Request, _tilings
from unet_engine.commands.bench.page import _tilings as section
from unet_engine.commands.bench.page import by_tiling

pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tilings")
    noise = np.random.default_rng(0).normal(size=(48, 56, 60)).astype(np.float32)
    volume, model = make_volume(folder / "scan.zarr", noise, chunks=(16, 16, 16)), untrained(folder, name="benched")
    said: list[str] = []
    return volume, model, _tilings(Request(model, volume, tilings=50), said.append), said


@pytest.mark.slow
def test_what_bench_finds_is_what_a_run_takes(scene):
    volume, model, found, said = scene
    assert any("are looked at" in line for line in said)
    identity = unet_engine.make_plan(volume, model=model, tiling="auto").identity
    assert (identity["window"], identity["shared"]) == (list(found["window"]), list(found["shared"]))
    assert len(found["table"]) == len(found["frontier"])


@pytest.mark.slow
def test_every_tiling_of_the_table_is_in_the_picture(scene):
    found = scene[2]
    picture = ElementTree.fromstring(by_tiling(found))
    points = [node for node in picture.iter() if node.tag.endswith("circle")]
    assert len(points) >= len(found["frontier"]) + 1, "and the model's own"
    text = "".join(section(found))
    assert text.count("<tr") == len(found["frontier"]) + 1
    assert text.count("class=best") == 1


def test_nothing_is_looked_at_of_the_demo_models():
    said = cli("bench", "--tilings", 0.1)
    assert said.code == 2
    assert "give --model and --in too" in said.error
