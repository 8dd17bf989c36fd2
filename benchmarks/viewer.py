"""How soon one sees something: the first picture of a sparse volume of 1 TiB, and the first window of a network where
one looks, in Chromium with WebGL in software.

    python benchmarks/viewer.py [--rounds 3]

Prints medians (least to most) over the rounds, and what the processors did meanwhile: other work on the machine makes
times longer, that less. The page of Neuroglancer alone, with 64³ voxels and nothing of ours, is what no engine behind it
can be sooner than; processor time is also told by process.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import zarr
from command_line import COMMAND
from PIL import Image
from playwright.sync_api import Browser, Error, Page, sync_playwright

from unet_engine.model.shipped import shipped_model

SIDE = 10240
ARGUMENTS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox"]
BARE = """
import json, threading
import neuroglancer, numpy
neuroglancer.set_server_bind_address("127.0.0.1", 0)
viewer = neuroglancer.Viewer()
with viewer.txn() as state:
    space = neuroglancer.CoordinateSpace(names="xyz", units="m", scales=[1, 1, 1])
    voxels = numpy.random.default_rng(0).integers(0, 255, (64, 64, 64), numpy.uint8)
    state.layers["voxels"] = neuroglancer.ImageLayer(source=neuroglancer.LocalVolume(voxels, space))
    state.position, state.cross_section_scale = [32, 32, 32], 0.2
print(json.dumps({"url": viewer.get_viewer_url()}), flush=True)
threading.Event().wait()
"""
VIEW = [*COMMAND, "view", "--no-browser", "--json"]


def sparse(folder: Path) -> Path:
    """A volume of 1 TiB of which the middle is stored, where all planes that are shown first go through."""
    path = folder / "sparse.zarr"
    array = zarr.create_array(path, shape=(SIDE,) * 3, chunks=(64,) * 3, dtype="uint8")
    voxels = np.random.default_rng(0).integers(0, 255, (128, 768, 768), np.uint8)
    array[5056:5184, 4736:5504, 4736:5504] = voxels
    return path


def tissue(folder: Path) -> Path:
    """Noise that the network of the demo takes; what it makes of it does not matter."""
    path = folder / "tissue.zarr"
    voxels = np.random.default_rng(1).integers(0, 255, (128, 256, 256), np.uint8)
    zarr.create_array(path, data=voxels, chunks=(64,) * 3)
    return path


def seen(browser: Browser, command: list[str], there: Callable[[np.ndarray], bool]) -> dict[str, float]:
    """Seconds until the address is told, and from then until `there` holds of the upper left pane."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        told = time.perf_counter()
        own, before = _busy([psutil.Process(process.pid)]), _by_kind()
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        pictures = frames(page)
        page.goto(url, wait_until="commit")
        while not any(there(picture) for picture in pictures):
            pictures.clear()
            if time.perf_counter() > told + 120:
                raise TimeoutError(f"nothing was seen of {command}")
            page.wait_for_timeout(20)
        shown, after = time.perf_counter(), _by_kind()
        page.close()
        spent = {kind: after[kind] - before.get(kind, 0.0) for kind in after}
        return {
            "address": told - begun, "address, cpu": own, "then seen": shown - told,
            "then seen, cpu": sum(spent.values()), **{f"of it {kind}": spent[kind] for kind in KINDS},
        }  # fmt: skip
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def frames(page: Page) -> list[np.ndarray]:
    """The upper left pane each time that the page has another picture. Screenshots would keep the processor busy."""
    found: list[np.ndarray] = []
    session = page.context.new_cdp_session(page)

    def take(event: dict[str, str]) -> None:
        picture = Image.open(io.BytesIO(base64.b64decode(event["data"]))).convert("RGB")
        found.append(np.asarray(picture)[70:380, 60:460].astype(int))
        with suppress(Error):  # the page is closed meanwhile
            session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

    session.on("Page.screencastFrame", take)
    session.send("Page.startScreencast", {"format": "jpeg", "quality": 80})
    return found


def _busy(processes: list[psutil.Process]) -> float:
    """Seconds of processors."""
    found = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            found += times.user + times.system
    return found


KINDS = ("drawing", "page", "rest of the browser", "server")


def _by_kind() -> dict[str, float]:
    """Seconds of processors, by what a process does."""
    found = dict.fromkeys(KINDS, 0.0)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            kind = "drawing" if "--type=gpu-process" in line else "page" if "--type=renderer" in line else None
            found[kind or ("server" if line.startswith(sys.executable) else "rest of the browser")] += _busy([process])
    return found


def speckled(picture: np.ndarray) -> bool:
    """Noise is seen, and no even ground."""
    return bool(picture[145:185, 170:210].std() > 20)


def grey(picture: np.ndarray) -> bool:
    """The stored middle is seen, of grey without a colour, and black around it where nothing is stored."""
    plain = picture.max(axis=2) - picture.min(axis=2) < 10
    middle = (slice(145, 185), slice(170, 210))
    seen = plain & (picture[..., 0] > 60) & (picture[..., 0] < 200)
    return bool(seen[middle].mean() > 0.6 and (picture.max(axis=2) < 20).mean() > 0.3)


def coloured(picture: np.ndarray) -> bool:
    """More than the lines of the axes."""
    return bool(((picture.max(axis=2) - picture.min(axis=2)) > 25).mean() > 0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {
        "Neuroglancer alone": [], "1 TiB, sparse": [], "labels of the demo's network": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as text, sync_playwright() as started:
        folder = Path(text)
        volume, scan = sparse(folder), tissue(folder)
        browser = started.chromium.launch(executable_path=given.chromium, args=ARGUMENTS)
        for number in range(given.rounds):
            found["Neuroglancer alone"].append(seen(browser, [sys.executable, "-c", BARE], speckled))
            found["1 TiB, sparse"].append(seen(browser, [*VIEW, str(volume)], grey))
            model = ["--model", str(shipped_model("cells_3d.onnx")), "--out", str(folder / f"{number}.zarr")]
            found["labels of the demo's network"].append(
                seen(browser, [*VIEW, str(scan), *model, "--ignore-spacing"], coloured)
            )
        browser.close()
    for name, rounds in found.items():
        for key in rounds[0]:
            values = sorted(one[key] for one in rounds)
            print(f"{name:>30}  {key:<26} {statistics.median(values):6.2f} s ({values[0]:.2f} to {values[-1]:.2f})")


if __name__ == "__main__":
    main()
