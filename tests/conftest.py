"""What the tests share: small volumes, the identity network, a tiny real one, and the command line with all it prints."""

import contextlib
import faulthandler
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import settings as hypothesis_settings

from unet_engine.settings import CONFIG
from unet_engine.spec import ModelSpec

# Machines are shared, so an example may take long for no reason of its own.
hypothesis_settings.register_profile("unhurried", deadline=None)
hypothesis_settings.load_profile("unhurried")

EXIT_SECONDS = 60
"""How long Python may take to end after the tests."""


def pytest_unconfigure():
    """A thread that a test left hanging would keep Python from ending: show it, and fail."""
    faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=sys.__stderr__)


COMMAND = [sys.executable, "-c", "from unet_engine.cli import main; main()"]


def make_volume(
    path, array, *, axes=None, zarr_format=3, chunks=None, ome=None, scale=None, translation=None, unit=None, **options
):
    """Write `array` as a Zarr array at `path`, or, with `ome` "0.4" or "0.5", as an OME-Zarr group with it at ``0``.

    `axes` are stored as dimension names (v3) or in the multiscales; `options` go to `zarr.create_array`. Returns the path as text.
    """
    array = np.asarray(array)
    options = {
        "chunks": chunks or tuple(min(8, n) for n in array.shape),
        "dtype": array.dtype,
        "shape": array.shape,
        **options,
    }
    if ome is None:
        names = list(axes) if axes and zarr_format == 3 else None
        stored = zarr.create_array(path, zarr_format=zarr_format, dimension_names=names, **options)
    else:
        group = zarr.create_group(
            path, zarr_format=2 if ome == "0.4" else 3, attributes=_multiscales(ome, axes, scale, translation, unit)
        )
        stored = group.create_array("0", dimension_names=list(axes) if ome == "0.5" else None, **options)
    stored[...] = array
    return str(path)


def _multiscales(version, axes, scale, translation, unit):
    kinds = {"t": "time", "c": "channel"}
    named = [
        {"name": a, "type": kinds.get(a, "space"), **({"unit": unit} if unit and a in "zyx" else {})} for a in axes
    ]
    moves = [{"type": "scale", "scale": list(scale or (1.0,) * len(axes))}]
    if translation:
        moves.append({"type": "translation", "translation": list(translation)})
    scales = [{"name": "scan", "axes": named, "datasets": [{"path": "0", "coordinateTransformations": moves}]}]
    return (
        {"multiscales": [{**scales[0], "version": "0.4"}]}
        if version == "0.4"
        else {"ome": {"version": "0.5", "multiscales": scales}}
    )


def fake_model(folder, *, latency_ms=0, fail_at=0, kill_at=0, out_of_memory_above=0, hang_once="", name="id", **spec):
    """A model file of the identity network (see `unet_engine.backends.fake`): 3D, 8 voxels wide, taking 4 + 4 k."""
    behaviour = {
        "latency_ms": latency_ms, "fail_at": fail_at, "kill_at": kill_at, "out_of_memory_above": out_of_memory_above,
        "hang_once": str(hang_once),
    }  # fmt: skip
    axes = spec.get("axes", "zyx")
    n = len(axes)
    spec = {
        "name": name, "axes": axes, "channels_in": 1, "channels_out": 1, "activation": "none",
        "window": (8,) * n, "window_min": (4,) * n, "window_step": (4,) * n, "margin": (0,) * n, **spec,
    }  # fmt: skip
    lines = [*(f"{key} = {json.dumps(value)}" for key, value in behaviour.items()), "[spec]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in spec.items()]
    path = Path(folder) / f"{name}.fake.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def result_of(out):
    """The voxels of an output, all read at once."""
    return np.asarray(zarr.open_array(Path(out) / "0", mode="r")[...])


def identity(volume, folder, **options):
    """What the identity network makes of `volume`: windows cut at their middle, so that nothing is rounded twice."""
    import unet_engine

    if "model" not in options:
        options["model"] = fake_model(folder)
    options = {"out": str(Path(folder) / "out.zarr"), "blend": "crop", "output": "logits", **options}
    return result_of(unet_engine.run(volume, **options).out)


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self):
        """The last line on stderr."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""

    @property
    def json(self):
        return json.loads(self.out.strip().splitlines()[-1])


def cli(*args):
    """Run the command line in this process, with warnings on stderr as a process of its own would show them. Half a second faster."""
    from unet_engine.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as seen,
    ):  # fmt: skip
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", ["unet-engine", *map(str, args)])
        patch.setattr("signal.signal", lambda *_: None)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    noise = "".join(f"{w.category.__name__}: {w.message}\n" for w in seen)
    return Said(code, out.getvalue(), noise + err.getvalue())


def command(*args, **options):
    """Run the command line as a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
        **options,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def begin(*args):
    """Start the command line as a process of its own and come back at once."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=_heed_hangups,  # noqa: PLW1509  # it only sets a signal
    )  # fmt: skip


def _heed_hangups():
    """Tests may run under nohup, whose children ignore hang-ups too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def environment():
    """The environment in which a Python process finds the same packages as this one, installed or not."""
    extra = [p for p in sys.path if (p and Path(p, "unet_engine").is_dir()) or Path(p, "unet_export").is_dir()]
    paths = [p for p in extra if not p.endswith("-packages")] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in paths if p))}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Tests run in a folder of their own, where no settings file lies."""
    monkeypatch.chdir(tmp_path)
    assert not Path(CONFIG).exists()


@pytest.fixture
def ramp(tmp_path):
    """A small volume of uint8 in which every voxel differs from its neighbours: (array, path)."""
    array = np.random.default_rng(0).integers(1, 200, (20, 22, 24), np.uint8)
    return array, make_volume(tmp_path / "scan.zarr", array)


@pytest.fixture
def model(tmp_path):
    """The identity network."""
    return fake_model(tmp_path)


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory):
    """A real network in 3D with two poolings and two classes, untrained, as a model file."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from unet_export.geometry import UNetConfig
    from unet_export.nets import UNet
    from unet_export.onnx_export import export_onnx
    from unet_export.specs import spec_for

    torch.manual_seed(0)
    config = UNetConfig(dims=3, classes=2, base=4, depth=2, norm="none")
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    spec: ModelSpec = spec_for(config, name="tiny", window=(16, 16, 16))
    export_onnx(UNet(config).eval(), spec, path)
    return str(path)
