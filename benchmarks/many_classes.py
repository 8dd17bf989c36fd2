"""104 classes, a scan of twice the network's resolution: nnU-Net's predictor with its export against a run here.

    python benchmarks/many_classes.py --work DIR [--shape 192 256 256] [--rounds 3] [--threads 1] [--json FILE]

The network is a light one (`train_peers.py`, nnunet_many: 8 to 32 features, windows of 48 cubed at 6 mm), trained by
nnU-Net for a few minutes; the scan is the abdomen of the shared data at 3 mm, mirrored at its ends to the shape. Both
go from file to file, without mirrored windows, in float32, each in a process of its own, in turn. Of both it is told
what the network took, and what the rest: theirs around ``predict_logits_from_preprocessed_data``, ours by the run's
profile.
"""

from __future__ import annotations

import argparse
import json
import resource
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


CASE = Case("nnU-Net, 104 classes", "nnunet_many", _scan, _by_nnunet((0,), mirrored=False), "nnUNetPredictor")


def side(which: str, options: argparse.Namespace) -> dict[str, Any]:
    figures = _theirs(options) if which == "theirs" else _ours(options)
    return {**figures, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


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
    predict = CASE.theirs(source_of(CASE, options), options.volume, options)
    begun = time.perf_counter(), time.process_time()
    labels = predict()
    whole = time.perf_counter() - begun[0], time.process_time() - begun[1]
    np.save(options.folder / "theirs.npy", labels)
    return {"seconds": whole[0], "processor": whole[1], "network": network}


def _ours(options: argparse.Namespace) -> dict[str, Any]:
    import zarr

    from unet_engine.api import run

    model, out = str(model_of(CASE, options)), str(options.folder / "out.zarr")
    begun = time.perf_counter(), time.process_time()
    result = run(
        str(options.volume), model=model, out=out, device="cpu", precision="fp32", threads=options.threads, blend="nnunet",
        tta="none", overwrite=True, profile=str(options.folder / "profile.json"),
    )  # fmt: skip
    whole = time.perf_counter() - begun[0], time.process_time() - begun[1]
    np.save(options.folder / "ours.npy", zarr.open_group(out, mode="r")["0"][...])
    return {"seconds": whole[0], "processor": whole[1], "stages": result.stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--work", type=Path, required=True, help="keeps the trained network and the imported file")
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
    model_of(CASE, options)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name)
        volume = _scan(options, folder)
        rows: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            for which in SIDES:
                rows.append({"side": which, **_measured(which, volume, folder)})
                print(json.dumps(rows[-1]), flush=True)
        theirs, ours = (np.load(folder / f"{which}.npy") for which in SIDES)
    found = {
        "equal": float((ours == theirs).mean()),
        "dice": _dice(ours, theirs),
        "shape": list(ours.shape),
        "rows": rows,
    }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(summary(found))


def _measured(which: str, volume: Path, folder: Path) -> dict[str, Any]:
    given = [*sys.argv[1:], "--side", which, "--volume", str(volume), "--folder", str(folder)]
    done = subprocess.run([sys.executable, __file__, *given], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def summary(found: dict[str, Any]) -> str:
    dice = list(found["dice"].values())
    lines = [
        f"{found['shape']}: {found['equal']:.6f} of labels equal, Dice {np.mean(dice):.6f} on average of {len(dice)} classes"
    ]
    for which in SIDES:
        rows = [row for row in found["rows"] if row["side"] == which]
        seconds, processor = ([row[key] for row in rows] for key in ("seconds", "processor"))
        peak = max(row["peak"] for row in rows) / 2**20
        lines.append(f"{which}: {_spread(seconds)} s, {_spread(processor)} s of processor, peak {peak:.0f} MiB")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
