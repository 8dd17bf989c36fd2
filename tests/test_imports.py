"""What libraries import and a run does not use stays out of its start, and is there for whoever uses it later."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import pytest

from support.volumes import fake_model
from unet_engine import imports
from unet_engine.imports import lean
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


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """A package that waits, and how often it was loaded; it imports a module of its own, which may not be loaded twice."""
    folder = tmp_path / "waits_for_it"
    folder.mkdir()
    (folder / "__init__.py").write_text("from waits_for_it.inside import VALUE\n")
    (folder / "inside.py").write_text("import sys\nsys.was_loaded.append(1)\nVALUE = 3\n")
    loaded = []
    monkeypatch.setattr(sys, "was_loaded", loaded, raising=False)
    monkeypatch.setattr(imports, "LATER", {"waits_for_it"})
    monkeypatch.syspath_prepend(tmp_path)
    with lean():
        import waits_for_it
    assert "waits_for_it" not in sys.modules
    yield waits_for_it, loaded
    imports._USED.discard("waits_for_it")
    for name in [name for name in sys.modules if name.startswith("waits_for_it")]:
        del sys.modules[name]


@pytest.mark.parametrize("first", ["use", "module", "part", "list"])
def test_a_module_that_waits_is_loaded_once_whoever_asks_first(waiting, first):
    module, loaded = waiting
    assert not loaded
    if first == "use":
        assert module.VALUE == 3
    elif first == "list":
        assert "VALUE" in dir(module)
    else:
        importlib.import_module("waits_for_it" if first == "module" else "waits_for_it.inside")
    import waits_for_it

    assert (module.VALUE, waits_for_it.VALUE, module.inside, loaded) == (3, 3, waits_for_it.inside, [1])
    with pytest.raises(AttributeError):
        _ = module.nothing_of_that_name


def test_a_module_may_be_used_while_others_wait(tmp_path, monkeypatch):
    (tmp_path / "used_at_once.py").write_text("VALUE = 3\n")
    monkeypatch.setattr(imports, "LATER", {"used_at_once"})
    monkeypatch.syspath_prepend(tmp_path)
    with lean():
        from used_at_once import VALUE
    assert VALUE == 3
    del sys.modules["used_at_once"]


def test_operations_of_openvino_are_there_for_whoever_uses_them():
    backend = pytest.importorskip("unet_engine.backends.openvino")
    from openvino import opset13

    assert callable(opset13.reduce_min)
    assert callable(importlib.import_module("openvino.opset6.ops").assign)
    assert callable(importlib.import_module("openvino.opset8").adaptive_avg_pool)
    for number in range(1, 17):
        assert callable(getattr(backend.ov, f"opset{number}").add)
