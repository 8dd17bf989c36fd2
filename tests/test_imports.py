"""What libraries import and a run does not use stays out of its start, and is there for whoever uses it later."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import pytest

from support.volumes import fake_model
from unet_engine.imports import later, lean
from unet_engine.model.shipped import shipped_model

FORBIDDEN = {
    "rich", "fsspec", "psutil", "yaml.loader", "pandas", "scipy", "dask", "distributed", "torch", "matplotlib", "numba",
    "tifffile", "h5py", "nibabel", "pydicom", "obstore", "skimage", "aiohttp", "jinja2", "IPython", "tqdm", "requests",
    "openvino.tools.ovc", "openvino.opset1.ops", "numpy.testing", "pytest", "pydantic.v1", "unet_export",
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


def test_afterwards_everything_is_as_it_was():
    before, scan = list(sys.meta_path), importlib.metadata.entry_points
    known = sys.modules.get("fsspec")
    with lean():
        assert sys.meta_path != before
        assert importlib.metadata.entry_points(group="console_scripts") == scan(group="console_scripts")
        kept = importlib.metadata.entry_points
    assert sys.meta_path == before
    assert importlib.metadata.entry_points is scan
    assert kept(group="console_scripts") == scan(group="console_scripts")
    assert sys.modules.get("fsspec") is known
    pytest.importorskip("fsspec").filesystem("memory")


def test_a_module_that_waits_loads_itself(tmp_path, monkeypatch):
    (tmp_path / "waits_for_it.py").write_text("import sys\nsys.was_loaded.append(1)\nVALUE = 3\n")
    seen = []
    monkeypatch.setattr(sys, "was_loaded", seen, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    spec = later("waits_for_it", None, None)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not seen
    assert (module.VALUE, seen) == (3, [1])
    assert later("nothing_of_that_name", None, None) is None
