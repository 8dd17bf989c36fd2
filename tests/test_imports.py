"""What libraries import and a run does not use stays out of its start, and is there for whoever uses it later."""

import importlib
import importlib.util
import json
import subprocess
import sys

import pytest

from support.volumes import fake_model
from unet_engine.commands.cli import _without_fsspec
from unet_engine.model.shipped import shipped_model

FORBIDDEN = {
    "rich", "fsspec", "psutil", "pandas", "scipy", "dask", "distributed", "torch", "matplotlib", "numba",
    "tifffile", "h5py", "nibabel", "pydicom", "obstore", "skimage", "aiohttp", "jinja2", "IPython", "tqdm", "requests",
    "openvino.tools.ovc", "numpy.testing", "pytest", "pydantic.v1", "unet_export",
}  # fmt: skip
"""What a run over a local Zarr that nobody looks at has no use for."""

_RUN = """
import json, sys
from unet_engine.commands import cli
from unet_engine.profiling.beginning import PLANNING, SAMPLES, Beginning
done, seen = Beginning.done, []
def noted(self, part):
    if part == SAMPLES:  # no other library in a process of its own
        sys.modules["unet_engine.backends.second_opinion"].other_for = lambda *_: None
    if part == PLANNING:
        seen.append(sorted(sys.modules))
    done(self, part)
Beginning.done = noted
cli.main()
print(json.dumps(seen[0]))
"""


def test_a_run_imports_nothing_that_it_does_not_use(ramp, tmp_path):
    """Up to the first window, by the default library where it is there; the second time without ONNX."""
    known = importlib.util.find_spec("openvino") and importlib.util.find_spec("onnx")
    model = shipped_model("cells_3d.onnx") if known else fake_model(tmp_path)
    settings = ["run", "--in", ramp[1], "--model", model, "--overwrite", "--json"]
    settings += ["--window", "16,16,16"] if known else []
    for forbidden in (FORBIDDEN, FORBIDDEN | {"onnx", "google.protobuf"}):
        command = [sys.executable, "-c", _RUN, *map(str, settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = set(json.loads(done.stdout.splitlines()[-1]))
        assert sorted(forbidden & found) == []
        assert {"zarr", "numpy", "pydantic"} <= found


def test_afterwards_fsspec_is_there_for_whoever_imports_it(monkeypatch):
    pytest.importorskip("fsspec")
    for name in [name for name in sys.modules if name.split(".")[0] == "fsspec"]:
        monkeypatch.delitem(sys.modules, name)
    with _without_fsspec():
        assert importlib.util.find_spec("zarr") is not None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("fsspec")
    assert importlib.import_module("fsspec").filesystem("memory")


def test_fsspec_that_is_there_stays():
    fsspec = pytest.importorskip("fsspec")
    with _without_fsspec():
        assert importlib.import_module("fsspec") is fsspec
    assert sys.modules["fsspec"] is fsspec
