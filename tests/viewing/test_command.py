"""``unet-engine view`` on the command line."""

import json
import signal
import urllib.request

import numpy as np
import pytest

from support.command_line import begin, cli
from support.volumes import fake_model, make_volume
from unet_engine.output.header import Header
from unet_engine.viewing import view as module
from unet_engine.viewing.view import Wish, panes_of

VOXELS = np.random.default_rng(0).integers(1, 200, (12, 14, 16), np.uint8)


@pytest.fixture
def scan(tmp_path):
    return make_volume(tmp_path / "scan.zarr", VOXELS)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "PATH"),
        (["nowhere.zarr"], 3, "does not exist"),
        (["SCAN", "--output", "labels"], 2, "--output is for a model"),
        (["SCAN", "--out", "o.zarr"], 2, "--out is for a model"),
        (["SCAN", "--as-labels", "other.zarr"], 2, "other.zarr is not among what is shown"),
        (["SCAN", "--as-labels", "SCAN", "--as-image", "SCAN"], 2, "take one"),
        (["SCAN", "--model", "none.onnx"], 5, "none.onnx"),
        (["SCAN", "--part", "1/2"], 2, "--part"),
        (["SCAN", "--port", "70000"], 2, "--port"),
        (["SCAN", "--table", "t.csv"], 3, "none of what is shown is labels"),
        (["SCAN", "--as-labels", "SCAN", "--table", "t.csv"], 3, "make it with: unet-engine table"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_one_line(scan, args, code, said):
    if "--table" in args:
        pytest.importorskip("neuroglancer")
    found = cli("view", *[scan if arg == "SCAN" else arg for arg in args])
    assert found.code == code, found.err
    assert said in found.error
    assert "Traceback" not in found.err


def test_without_the_package_it_says_what_to_install(scan, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "neuroglancer", None)
    found = cli("view", scan)
    assert found.code == 1
    assert "pip install 'unet-engine[view]'" in found.error


def test_panes_of_one_name_are_told_apart(tmp_path):
    paths = tuple(make_volume(tmp_path / folder / "labels.zarr", VOXELS) for folder in ("a", "b", "c/a"))
    names = [pane.name for pane in panes_of(Wish(paths), print)]
    assert names == ["labels.zarr", "b/labels.zarr", "a/labels.zarr"]
    again = panes_of(Wish((paths[0],) * 3), print)
    assert len({pane.name for pane in again}) == 3


def test_the_url_is_told_and_ctrl_c_closes_it_in_order(scan, tmp_path):
    pytest.importorskip("neuroglancer")
    out = tmp_path / "out.zarr"
    process = begin("view", scan, "--model", fake_model(tmp_path), "--out", out, "--json", "--no-browser")
    try:
        facts = json.loads(process.stdout.readline())
        assert [pane["kind"] for pane in facts["panes"]] == ["image", "labels"]
        with urllib.request.urlopen(facts["url"], timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert json.loads(rest)["complete"] is False
    assert "run --resume does the rest" in err
    assert not list(Header.of(str(out)).marked())


@pytest.fixture
def shown(monkeypatch):
    """Paths of what a viewer would show, which is closed at once."""
    paths = []

    class Desk:
        def __init__(self, panes, port=0):
            paths.extend(pane.path for pane in panes)

        def facts(self):
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(module, "Desk", Desk)
    return paths


def test_a_complete_output_is_shown_as_it_is(scan, tmp_path, shown):
    import unet_engine

    model, out = fake_model(tmp_path), str(tmp_path / "out.zarr")
    unet_engine.run(scan, model=model, out=out)
    found = cli("view", scan, "--model", model, "--out", out, "--json")
    assert found.code == 0, found.err
    assert shown == [scan, out]
    assert found.json["complete"] is True


def test_a_channel_of_a_case_is_shown_with_the_others_that_the_network_takes(tmp_path, shown):
    """What the run reads is shown; the first file alone was, and the picture of a window failed."""
    import unet_engine

    both = [str(tmp_path / f"case_000{i}.npy") for i in range(2)]
    for path in both:
        np.save(path, np.ones((8, 8, 8), np.float32))
    model = fake_model(tmp_path, channels_in=2, channels_out=2, activation="softmax")
    out = str(tmp_path / "out.zarr")
    unet_engine.run(both[0], model=model, out=out)
    found = cli("view", both[0], "--model", model, "--out", out, "--json")
    assert found.code == 0, found.err
    assert shown == ["+".join(both), out]
