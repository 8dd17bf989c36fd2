"""104 classes, a scan of twice the network's resolution: nnU-Net's predictor with its export against a run here.

    python benchmarks/many_classes.py --work DIR [--width light|usual] [--shape 192 256 256] [--sides theirs ours]
        [--rounds 3] [--threads 1] [--json FILE]

The network is a light one (`train_peers.py`, nnunet_many: 8 to 32 features, windows of 48 cubed at 6 mm), trained by
nnU-Net for a few minutes, or one of its usual size, untrained (nnunet_usual: 32 to 320 features, windows of
96×128×128); the scan is the abdomen of the shared data at 3 mm, mirrored at its ends to the shape. Both go from file to
file, without mirrored windows, in float32, each in a process of its own, in turn. Of both it is told what the network
took, and what the rest: theirs around ``predict_logits_from_preprocessed_data``; of ours processor time, all of it less
that of as many windows in the bare network, which is measured behind the run in its process. Where nnU-Net does not fit
into memory, ``--sides ours`` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from models import SIDES, _dice, model_of
from peer_cases import Case, _by_nnunet, source_of

from unet_engine.machine import peak_resident_bytes


def _scan(options: argparse.Namespace, folder: Path) -> Path:
    import nibabel

    scan = nibabel.load(options.shared / "data" / "ct" / "abdomen.nii.gz")
    voxels = np.asarray(scan.dataobj, np.int16)
    shape = options.shape[::-1]  # the file has x first
    for axis, size in enumerate(shape):
        more = size - voxels.shape[axis]
        voxels = np.pad(voxels, [(0, max(more, 0)) if a == axis else (0, 0) for a in range(3)], mode="symmetric")
    path = folder / "scan_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels[tuple(slice(n) for n in shape)], scan.affine), path)
    return path


CASES = {
    width: Case(f"nnU-Net, 104 classes, {width}", network, _scan, _by_nnunet((0,), mirrored=False), "nnUNetPredictor")
    for width, network in (("light", "nnunet_many"), ("usual", "nnunet_usual"))
}
BARE = 2**21
"""Voxels, about, in the windows that the bare network is measured with, behind one to warm it up."""


def side(which: str, options: argparse.Namespace) -> dict[str, Any]:
    figures = _theirs(options) if which == "theirs" else _ours(options)
    return {**figures, "peak": peak_resident_bytes()}


def _theirs(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads(options.threads)
    network = {"seconds": 0.0, "processor": 0.0}
    plain = nnUNetPredictor.predict_logits_from_preprocessed_data

    def timed(self: Any, data: Any) -> Any:
        begun = time.perf_counter(), time.process_time()
        found = plain(self, data)
        network["seconds"] += time.perf_counter() - begun[0]
        network["processor"] += time.process_time() - begun[1]
        return found

    nnUNetPredictor.predict_logits_from_preprocessed_data = timed
    predict = CASES[options.width].theirs(source_of(CASES[options.width], options), options.volume, options)
    begun = time.perf_counter(), time.process_time()
    labels = predict()
    whole = time.perf_counter() - begun[0], time.process_time() - begun[1]
    np.save(options.folder / "theirs.npy", labels)
    return {"seconds": whole[0], "processor": whole[1], "network": network}


def _ours(options: argparse.Namespace) -> dict[str, Any]:
    import zarr

    from unet_engine.api import run

    model, out = str(model_of(CASES[options.width], options)), str(options.folder / "out.zarr")
    begun = time.perf_counter(), time.process_time()
    result = run(
        str(options.volume), model=model, out=out, device="cpu", precision="fp32", threads=options.threads, blend="nnunet",
        tta="none", overwrite=True, profile=str(options.folder / "profile.json"),
    )  # fmt: skip
    whole = time.perf_counter() - begun[0], time.process_time() - begun[1]
    np.save(options.folder / "ours.npy", zarr.open_group(out, mode="r")["0"][...])
    bare = result.windows_inferred * _bare(model, options.threads)
    return {
        "seconds": whole[0], "processor": whole[1], "stages": result.stages, "windows": result.windows_inferred,
        "network": {"processor": bare}, "apart": (whole[1] - bare) / bare,
    }  # fmt: skip


def _bare(model: str, threads: int) -> float:
    """Seconds of processor for a window."""
    from unet_engine.backends.base import Setup
    from unet_engine.backends.libraries import choose_backend
    from unet_engine.backends.opening import as_host, open_network
    from unet_engine.model.file import open_model

    opened = open_model(model)
    window = opened.spec.window
    network = open_network(choose_backend(opened, "cpu"), Setup(opened, window, threads=threads))
    given = np.random.default_rng(0).standard_normal((1, opened.spec.channels_in, *window), np.float32)
    with as_host(network) as host:
        host.infer(given)
        count = max(1, round(BARE / np.prod(window)))
        begun = time.process_time()
        for _ in range(count):
            host.infer(given)
        found = (time.process_time() - begun) / count
    network.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, required=True, help="keeps the trained network and the imported file")
    parser.add_argument("--width", choices=CASES, default="light")
    parser.add_argument("--sides", choices=SIDES, nargs="+", default=SIDES)
    parser.add_argument("--shape", type=int, nargs=3, default=(192, 256, 256))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of either side")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a network of a few steps")
    for hidden in ("--side", "--volume", "--folder"):
        parser.add_argument(hidden, type=str if hidden == "--side" else Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work, options.shared = options.work.resolve(), options.shared.resolve()
    if options.side:
        print(json.dumps(side(options.side, options)))
        return
    model_of(CASES[options.width], options)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        volume = _scan(options, folder)
        rows: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            for which in options.sides:
                rows.append({"side": which, **_measured(which, volume, folder)})
                print(json.dumps(rows[-1]), flush=True)
        made = [np.load(folder / f"{which}.npy") for which in SIDES if which in options.sides]
    found: dict[str, Any] = {"shape": list(made[0].shape), "load": os.getloadavg()[1], "rows": rows}
    if len(made) == len(SIDES):
        found |= {"equal": float((made[1] == made[0]).mean()), "dice": _dice(made[1], made[0])}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(summary(found))


def _measured(which: str, volume: Path, folder: Path) -> dict[str, Any]:
    given = [*sys.argv[1:], "--side", which, "--volume", str(volume), "--folder", str(folder)]
    done = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summary(found: dict[str, Any]) -> str:
    lines = [f"{found['shape']}, load {found['load']:.0f}"]
    if "dice" in found:
        dice = list(found["dice"].values())
        lines[0] += (
            f": {found['equal']:.6f} of labels equal, Dice {np.mean(dice):.6f} on average of {len(dice)} classes"
        )
    for which in SIDES:
        rows = [row for row in found["rows"] if row["side"] == which]
        if not rows:
            continue
        seconds, processor = ([row[key] for row in rows] for key in ("seconds", "processor"))
        peak = max(row["peak"] for row in rows) / 2**20
        lines.append(f"{which}: {_spread(seconds)} s, {_spread(processor)} s of processor, peak {peak:.0f} MiB")
        network = [row["network"]["processor"] for row in rows]
        lines[-1] += f"; network {_spread(network)} s of processor"
        if which == "ours":
            lines[-1] += f", all else {_spread([row['apart'] for row in rows], 2)} of it"
    return "\n".join(lines)


def _spread(values: list[float], digits: int = 1) -> str:
    least, middle, most = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({least} to {most})"


if __name__ == "__main__":
    main()
