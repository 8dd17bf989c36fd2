"""A matrix of small runs gives the bytes that were stored before the modules moved: outputs and the digests of their
plans.

`same_bytes.json` was made by the commit before (06d64e7) with ``python tests/test_same_bytes.py``. The identity network
stands for all: what it gives is the same on every processor, while its windows are cut, weighted, added and finished as
those of any network.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr

import unet_engine
from unet_engine.backends.fake import FakeBackend
from unet_engine.errors import BackendError

STORED = Path(__file__).with_name("same_bytes.json")
KINDS = {
    "labels": {"output": "labels"},
    "probabilities": {"output": "probabilities"},
    "logits": {"output": "logits", "dtype": "float32"},
}
ROI_3D, ROI_2D = "3:19,5:20,2:23", "7:60,3:41"
EXTRA = {
    "roi": {"roi": ROI_3D},
    "crop": {"blend": "crop", "overlap": 0.25},
    "constant": {"blend": "constant", "padding": "edge", "overlap": 0.3},
    "zscore": {"normalize": "zscore", "threads": 2},
    "simulated": {"device": "simulated", "batch": 3},
    "simulated roi": {"device": "simulated", "roi": ROI_3D},
    "workers": {"workers": 2},
}
CASES = {
    **{f"{axes} {kind}": {"axes": axes, **options} for axes in ("zyx", "yx", "planes")
       for kind, options in KINDS.items()},
    **{f"yx roi {kind}": {"axes": "yx", "roi": ROI_2D, **options} for kind, options in KINDS.items()},
    **{
        f"{name} {kind}": {"axes": "zyx", **more, **options}
        for name, more in EXTRA.items()
        for kind, options in (KINDS.items() if name != "workers" else [("labels", KINDS["labels"])])
    },
    # what windows give outside was not overwritten then
    "masked labels": {"axes": "zyx", "mask": True, "outside": "keep", "output": "labels"},
    "parts labels": {"axes": "zyx", "parts": 3, "output": "labels"},
    "parts logits": {"axes": "zyx", "parts": 2, "output": "logits"},
    "resumed probabilities": {"axes": "zyx", "resumed": True, "output": "probabilities"},
    "resumed logits": {"axes": "zyx", "resumed": True, "output": "logits"},
}  # fmt: skip


def model(folder, axes):
    """Three channels out of two: classes that differ, with the margin of unpadded convolutions."""
    axes = "zyx" if axes == "zyx" else "yx"
    n = len(axes)
    lines = [
        "[spec]", 'name = "net"', f'axes = "{axes}"', "channels_in = 2", "channels_out = 3", 'activation = "softmax"',
        f"window = {[10] * n}", f"window_min = {[6] * n}", f"window_step = {[2] * n}", f"margin = {[1] * n}",
        "background = 0.0",
        "empty = [3.0, -3.0, -3.0]",
    ]  # fmt: skip
    path = folder / "net.fake.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def volume(folder, axes):
    """Two channels with an empty corner, so that windows are skipped."""
    shape = {"zyx": (2, 24, 26, 28), "yx": (2, 70, 45), "planes": (2, 5, 30, 34)}[axes]
    array = np.random.default_rng(4).integers(0, 200, shape, np.uint8)
    array[..., : shape[-2] // 2, : shape[-1] // 2] = 0
    names = "c" + ("zyx" if len(shape) == 4 else "yx")
    stored = zarr.create_array(
        str(folder / "scan.zarr"),
        shape=shape,
        chunks=(1, *(8,) * (len(shape) - 1)),
        dtype=array.dtype,
        dimension_names=list(names),
    )
    stored[...] = array
    mask = zarr.create_array(
        str(folder / "mask.zarr"),
        shape=shape[1:],
        chunks=(8,) * (len(shape) - 1),
        dtype=np.uint8,
        dimension_names=list(names[1:]),
    )
    mask[..., shape[-1] // 3 :] = 1
    return str(folder / "scan.zarr"), str(folder / "mask.zarr")


def digest(folder, axes, *, parts=0, resumed=False, mask=False, **options):
    """Hash of the output's voxels and of what names the run."""
    scan, masked = volume(folder, axes)
    options = {"model": model(folder, axes), "out": str(folder / "out.zarr"), "device": "cpu", **options}
    if mask:
        options["mask"] = masked
    if parts:
        results = [unet_engine.run(scan, part=f"{i}/{parts}", **options) for i in range(parts, 0, -1)]
    elif resumed:
        results = _resumed(scan, options)
    else:
        results = [unet_engine.run(scan, **options)]
    assert results[-1].complete
    stored = zarr.open_array(str(folder / "out.zarr" / "0"), mode="r")
    told = hashlib.sha256(f"{stored.shape} {stored.dtype} {stored.chunks}".encode())
    told.update(np.ascontiguousarray(stored[...]).tobytes())
    return {"voxels": told.hexdigest(), "plan": results[-1].digest}


def _resumed(scan, options):
    """A run whose network fails half way, resumed."""
    calls, start = [], FakeBackend.start

    def failing(self, slot):
        calls.append(slot)
        if len(calls) > 100:
            raise BackendError("enough")
        start(self, slot)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeBackend, "start", failing)
        with pytest.raises(BackendError, match="enough"):
            unet_engine.run(scan, **options)
    result = unet_engine.run(scan, resume=True, **options)
    assert 0 < result.blocks_written < result.blocks_planned
    return [result]


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_are_those_of_before(tmp_path, name):
    assert digest(tmp_path, **CASES[name]) == json.loads(STORED.read_text())[name]


def main():
    stored = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            stored[name] = digest(Path(folder), **case)
        print(name, stored[name]["voxels"][:12], file=sys.stderr)
    STORED.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
