"""The viewer in a real Chromium, with WebGL in software: what people see, and what is computed because they look."""

import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import begin
from support.volumes import fake_model, make_volume, result_of
from unet_engine.output.header import Header, read_header

pytestmark = [pytest.mark.slow, pytest.mark.alone]
pytest.importorskip("neuroglancer")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
DATA = Path(__file__).parents[2].parent / "shared" / "data"
PATIENCE = 90


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(
            executable_path=CHROMIUM,
            args=["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"],
        )
        yield opened
        opened.close()


class Open:
    """``unet-engine view`` as a process, and a page of it."""

    def __init__(self, browser, *args):
        self.process = begin("view", *args, "--no-browser", "--json")
        self.facts = json.loads(self.process.stdout.readline() or self.process.communicate()[1])
        self.page = browser.new_page(viewport={"width": 1000, "height": 800})
        self.asked = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.facts["url"])

    def picture(self):
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")).astype(int)

    def until(self, condition):
        """The first picture of which `condition` holds."""
        end = time.monotonic() + PATIENCE
        while not condition(found := self.picture()):
            assert time.monotonic() < end, "not seen in time"
            time.sleep(0.3)
        return found

    def close(self):
        self.page.close()
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        return out


@pytest.fixture
def show(browser):
    opened = []

    def start(*args):
        opened.append(Open(browser, *args))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()


def greys(picture):
    """The panes without tools and frames, where all three colours are the same."""
    part = picture[60:380, 40:460]
    return part[(part.max(axis=2) - part.min(axis=2)) < 4].mean(axis=1)


def coloured(picture):
    part = picture[60:380, 40:460]
    return (part.max(axis=2) - part.min(axis=2)) > 25


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("em/train_image.tif", "em/train_bodies.tif"),
        ("ct/abdomen.nii.gz", "ct/abdomen_labels.nii.gz"),
        ("sat/mosaic_1_image.tif", "sat/mosaic_1_labels.tif"),
    ],
)
def test_real_scans_are_seen_with_their_labels_over_them(show, image, labels):
    if not (DATA / image).is_file():
        pytest.skip("the real data are not there")
    viewer = show(DATA / image, DATA / labels)
    assert [pane["kind"] for pane in viewer.facts["panes"]] == ["image", "labels"]
    seen = viewer.until(lambda picture: coloured(picture).mean() > 0.08)
    assert seen[60:380, 40:460].std() > 20
    outside = [url for url in viewer.asked if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))]
    assert not outside
    viewer.close()


def test_a_click_moves_and_a_number_is_told(show, tmp_path):
    voxels = np.zeros((40, 40, 40), np.uint16)
    voxels[5:35, 5:35, 5:35] = 417
    viewer = show(make_volume(tmp_path / "labels.zarr", voxels), "--as-labels", str(tmp_path / "labels.zarr"))
    viewer.until(lambda picture: coloured(picture).mean() > 0.05)
    before = viewer.page.locator(".neuroglancer-position-dimension-coordinate").first.input_value()
    viewer.page.mouse.move(200, 160)
    viewer.page.mouse.dblclick(200, 160)
    end = time.monotonic() + PATIENCE
    while "417" not in viewer.page.content() and time.monotonic() < end:
        time.sleep(0.3)
    assert "417" in viewer.page.content()
    viewer.page.mouse.click(180, 150, button="right")
    while (
        viewer.page.locator(".neuroglancer-position-dimension-coordinate").first.input_value() == before
        and time.monotonic() < end
    ):
        time.sleep(0.3)
    assert viewer.page.locator(".neuroglancer-position-dimension-coordinate").first.input_value() != before
    viewer.close()


def test_a_region_is_computed_because_it_is_looked_at_and_a_resume_does_the_rest(show, tmp_path):
    voxels = np.zeros((2, 48, 384, 384), np.float32)
    voxels[1, :, 40:] = 1
    scan = make_volume(tmp_path / "scan.zarr", voxels, axes="czyx", chunks=(1, 48, 64, 64))
    model = fake_model(tmp_path, channels_in=2, channels_out=2, activation="softmax", window=(16, 64, 64))
    plain = unet_engine.run(scan, model=model, out=str(tmp_path / "plain.zarr"))
    assert plain.blocks_planned > 3
    out = tmp_path / "looked.zarr"
    viewer = show(scan, "--model", model, "--out", out)
    viewer.until(lambda picture: coloured(picture).mean() > 0.05)
    viewer.until(lambda picture: len(list(Header.of(str(out)).marked())) > 0 or read_header(str(out))["complete"])
    told = json.loads(viewer.close().strip().splitlines()[-1])
    assert told["blocks"] >= 1
    assert unet_engine.run(scan, model=model, out=str(out), resume=True).complete
    np.testing.assert_array_equal(result_of(out), result_of(tmp_path / "plain.zarr"))


def test_channels_in_files_of_their_own_are_seen_together(show, tmp_path):
    """Three of 8 bits as red, green and blue; where two are bright, it is both."""
    voxels = np.zeros((3, 40, 200, 200), np.uint8)
    voxels[0, :, 20:120, 20:120], voxels[1, :, 80:180, 80:180], voxels[2, :, 20:60, 120:180] = 250, 250, 250
    np.save(tmp_path / "s_r.npy", voxels[0])
    other = make_volume(tmp_path / "s_g b.zarr", voxels[1:], ome="0.5", axes="czyx", chunks=(1, 8, 64, 64))
    viewer = show(f"{tmp_path}/s_r.npy+{other}")
    assert [(pane["kind"], pane["channels"], pane["name"]) for pane in viewer.facts["panes"]] == [("image", 3, "s.npy")]
    wanted = {(True, False, False), (False, True, False), (False, False, True), (True, True, False)}
    viewer.until(
        lambda picture: wanted <= {tuple(one) for one in (picture[60:400, 20:480] > 200).reshape(-1, 3).tolist()}
    )
    if where := os.environ.get("PICTURE"):
        viewer.page.screenshot(path=where)
    viewer.close()
