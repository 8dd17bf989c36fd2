"""Model files that run code are opened once the user said so, and never before."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import unet_engine
from support.command_line import cli, command, environment
from support.volumes import make_volume
from unet_engine.errors import ModelError
from unet_engine.model import trust
from unet_engine.model.file import open_model
from unet_engine.model.spec import METADATA_KEY, ModelSpec

torch = pytest.importorskip("torch")

SPEC = ModelSpec(
    name="net", axes="zyx", channels_in=1, channels_out=2, window=(8, 8, 8), window_min=(8, 8, 8),
    window_step=(0, 0, 0),
    margin=(0, 0, 0),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_trusted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trust, "_here", set())


@pytest.fixture
def volume(tmp_path):
    return make_volume(tmp_path / "scan.zarr", np.ones((8, 8, 8), np.uint8))


def network():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 2, 3, padding=1).eval()


class _Leaves:
    """Leaves a file behind as it is unpickled."""

    def __init__(self, where):
        self.where = where

    def __reduce__(self):
        return os.mkdir, (self.where,)


@pytest.fixture
def hostile(tmp_path):
    """A ``.pt2`` with a valid spec that makes a folder as PyTorch unpickles it: (file, folder)."""
    import io

    held = io.BytesIO()
    torch.save(_Leaves(str(tmp_path / "owned")), held)
    good, bad = tmp_path / "good.pt2", tmp_path / "net.pt2"
    program = torch.export.export(network(), (torch.zeros(1, 1, 8, 8, 8),))
    torch.export.save(program, good, extra_files={METADATA_KEY: SPEC.model_dump_json()})
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            # the example inputs are loaded with torch.load
            pickled = entry.filename.endswith(".pt") and "sample_inputs" in entry.filename
            target.writestr(entry.filename, held.getvalue() if pickled else source.read(entry))
    return bad, tmp_path / "owned"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "net.pt"
    made = torch.jit.trace(network(), torch.zeros(1, 1, 8, 8, 8))
    torch.jit.save(made, str(path), _extra_files={METADATA_KEY: SPEC.model_dump_json()})
    return path


@pytest.mark.slow
def test_the_hostile_file_does_run_code_in_pytorch(hostile):
    """What the tests below rest on."""
    path, owned = hostile
    code = f"import torch; torch.export.load({str(path)!r})"
    subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=False)
    assert owned.exists()


@pytest.mark.parametrize("verb", ["plan", "run", "export", "bench", "info"])
def test_nothing_in_a_pt2_is_run_unasked(verb, hostile, volume, tmp_path):
    path, owned = hostile
    arguments = {
        "export": [path, "--out", tmp_path / "o.onnx", "--window", "8,8,8"], "info": [path],
        "bench": ["--in", volume, "--model", path, "--seconds", "60"],
    }.get(verb, ["--in", volume, "--model", path])  # fmt: skip
    said = cli(verb, *arguments)
    assert not owned.exists()
    assert not (tmp_path / "config").exists()
    if verb == "info":
        assert (said.code, "net" in said.out) == (0, True)
        return
    assert said.code == ModelError.exit_code
    assert "--trust" in said.error
    assert "unet-engine export" in said.error
    assert len(said.err.strip().splitlines()) == 1


def test_nor_as_the_reference_of_quantize(hostile, tissue, tiny_onnx):
    path, owned = hostile
    spec = open_model(tiny_onnx).spec.model_dump_json()
    with zipfile.ZipFile(path) as source:
        held = {e.filename: source.read(e) for e in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in held.items():
            target.writestr(name, spec if name.endswith(METADATA_KEY) else data)
    said = cli(
        "quantize", tiny_onnx, "--calibrate", tissue, "--reference", path, "--out", "o.onnx", "--precision", "bf16"
    )
    assert not owned.exists()
    assert said.code == ModelError.exit_code
    assert "--trust" in said.error


def test_trust_is_given_once_per_file(script, volume, tmp_path):
    options = ["plan", "--in", volume, "--model", script]
    assert command(*options).code == ModelError.exit_code
    said = command(*options, "--trust")
    assert said.code == 0, said.err
    assert "is trusted from now on" in said.err
    assert command(*options).code == 0
    store = tmp_path / "config/unet-engine" / trust.STORE
    assert store.stat().st_mode & 0o077 == 0
    assert store.parent.stat().st_mode & 0o077 == 0
    made = torch.jit.trace(network(), torch.ones(1, 1, 8, 8, 8) * 3)
    torch.jit.save(made, str(script), _extra_files={METADATA_KEY: SPEC.model_dump_json() + " "})
    assert cli(*options).code == ModelError.exit_code  # another file of the same name


def test_from_python(script, volume):
    with pytest.raises(ModelError, match="--trust"):
        unet_engine.make_plan(volume, model=str(script))
    unet_engine.make_plan(volume, model=str(script), trust=True)
    unet_engine.make_plan(volume, model=str(script))


def test_a_file_beside_the_data_trusts_nobody(script, volume):
    Path("unet-engine.toml").write_text(f'model = "{script.name}"\ntrust = true')
    said = cli("plan", "--in", volume)
    assert said.code == 2
    assert "trust is given by hand alone" in said.error
    Path("unet-engine.toml").write_text(f'model = "{script.name}"')
    assert cli("plan", "--in", volume).code == ModelError.exit_code
    (script.parent / "trusted").write_text(open_model(script).sha256)
    assert cli("plan", "--in", volume).code == ModelError.exit_code


@pytest.mark.parametrize("home", ["read-only", "none"])
def test_where_it_cannot_be_kept_it_holds_for_this_process(home, script, volume, monkeypatch, tmp_path):
    if home == "none":
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.setattr("os.path.expanduser", lambda path: path)
    else:
        (tmp_path / "config").write_text("a file")
    model = open_model(script).trust()
    assert model.trusted
    open_model(script).check_trust()
    trust._here.clear()
    with pytest.raises(ModelError, match="--trust"):
        open_model(script).check_trust()


def test_what_one_exports_oneself_is_trusted(tmp_path):
    from unet_export.conversion.onnx_export import export_torch
    from unet_export.train.geometry import UNetConfig
    from unet_export.train.nets import UNet
    from unet_export.train.specs import spec_for

    config = UNetConfig(dims=2, classes=2, base=4, depth=1, norm="none")
    for name in ("net.pt", "net.pt2"):
        export_torch(UNet(config).eval(), spec_for(config, name="t", window=(16, 16)), tmp_path / name)
        open_model(tmp_path / name).check_trust()


def test_weights_alone_run_nothing(tmp_path):
    """What pretends to be plain weights and is not."""
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": _Leaves(str(tmp_path / "owned"))}, tmp_path / "w.pth")
    (tmp_path / "factory.py").write_text("import torch\ndef build(): return torch.nn.Linear(1, 1)\n")
    said = cli(
        "export", tmp_path / "w.pth", "--factory", "factory:build", "--out", tmp_path / "o.onnx", "--window", "8,8"
    )
    assert not (tmp_path / "owned").exists()
    assert said.code == ModelError.exit_code


def test_other_formats_need_no_trust(tiny_onnx, tissue):
    assert cli("plan", "--in", tissue, "--model", tiny_onnx, "--json").code == 0
