"""Models of other tools in place of a model file: what can be refused is refused before one is imported."""

import sys
from pathlib import Path

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import make_volume
from unet_engine.errors import ModelError
from unet_export.importers import base, sources
from unet_export.importers.base import Wanted, read


class Never:
    """A source that must not be read."""

    name = "a source"
    extra = ""

    def read(self, path, wanted, tell):
        pytest.fail("imported")

    def content(self, path):
        pytest.fail("imported")


@pytest.fixture
def places(tmp_path, monkeypatch):
    (tmp_path / "trained").mkdir()
    monkeypatch.setattr(sources, "recognised", lambda path: Never())
    scan = make_volume(tmp_path / "scan.zarr", np.zeros((8, 8, 8), np.uint8))
    return {"SCAN": scan, "MODEL": str(tmp_path / "trained"), "HERE": str(tmp_path)}


@pytest.mark.parametrize(
    ("args", "module", "said"),
    [
        ("run --in SCAN --model MODEL --out HERE/a.nii.gz", "nibabel", "pip install 'unet-engine[nifti]'"),
        ("plan --in SCAN --model MODEL --out HERE/a.ome.tif", "imagecodecs", "pip install 'unet-engine[tiff]'"),
        ("run --in SCAN --model MODEL --out HERE/a.zarr --components", "cc3d", "pip install 'unet-engine[components]'"),
        ("run --in HERE/b.h5:/x --model MODEL --out HERE/a.zarr", "h5py", "b.h5"),
        ("view SCAN --model MODEL --no-browser", "neuroglancer", "pip install 'unet-engine[view]'"),
        ("view SCAN --model MODEL --table HERE/t.csv --no-browser", None, "t.csv"),
    ],
)
def test_what_is_missing_is_told_before_a_network_is_imported(places, monkeypatch, args, module, said):
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    elif args.startswith("view"):
        pytest.importorskip("neuroglancer")
    for name, place in places.items():
        args = args.replace(name, place)
    found = cli(*args.split())
    assert found.code, found.out
    assert said in found.error


@pytest.mark.parametrize("importer", sources.IMPORTERS, ids=lambda one: one.name)
def test_the_extra_that_a_kind_of_network_needs_is_named(importer, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    monkeypatch.setattr(base, "sys", type("Nothing", (), {"modules": {}}))
    wanted = Wanted(checkpoint="trained", out="")
    if not importer.extra:
        assert importer.name.startswith("Core ML")
        return
    with pytest.raises(ModelError, match=rf"pip install 'unet-engine\[{importer.extra}\]'") as refused:
        read(importer, wanted, print)
    assert "torch, onnxscript, onnxruntime" in str(refused.value)


def test_every_extra_of_a_source_brings_what_it_is_said_to_need():
    import tomllib

    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for extra in {importer.extra for importer in sources.IMPORTERS} - {""}:
        told = " ".join([*extras[extra], *(extras["export"] if "unet-engine[export]" in extras[extra] else ())])
        for name in (*base._ALL, *base._OWN.get(extra, ())):
            assert name.replace("_", "-") in told, extra
