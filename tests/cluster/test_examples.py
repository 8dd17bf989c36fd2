"""The examples of docs/cluster.md are files, are what the page shows, and do what they say. `test_slurm` submits those
for SLURM."""

import os
import shlex
import subprocess
import sys

import click
import numpy as np
import pytest
import yaml

import unet_engine
from support.command_line import environment
from support.outputs import chunks
from support.paths import DOCS
from support.volumes import fake_model, make_volume
from unet_engine.commands.cli import run_command

EXAMPLES = sorted((DOCS / "examples").iterdir())
MANIFESTS = [path for path in EXAMPLES if path.name.startswith("kubernetes")]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_page_shows_the_file(path):
    assert f"\n{path.read_text().rstrip()}\n```" in (DOCS / "cluster.md").read_text()


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.suffix in (".sh", ".sbatch")], ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_fit_the_schema_of_kubernetes(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert all({"apiVersion", "kind", "metadata", "spec"} <= document.keys() for document in documents)
    schema = pytest.importorskip("kubernetes_validate")
    for document in documents:
        for version in ("1.30", "1.37"):
            schema.validate(document, version, strict=True)


@pytest.mark.slow
def test_the_command_of_the_indexed_job(tmp_path):
    """As its pods would run it, but for the paths and with two of them."""
    volume = make_volume(tmp_path / "scan.zarr", np.random.default_rng(3).integers(0, 255, (30, 31, 32), np.uint8))
    alone = unet_engine.run(volume, model=fake_model(tmp_path), out=str(tmp_path / "alone.zarr"))
    pod = yaml.safe_load((DOCS / "examples" / "kubernetes-array.yaml").read_text())["spec"]["template"]["spec"]
    [container] = pod["containers"]
    model = fake_model(tmp_path)
    line = container["args"][0].replace("/data/net.onnx", model).replace("/data", str(tmp_path)).replace('/16"', '/2"')
    program = tmp_path / "unet-engine"
    program.write_text(f"#!{sys.executable}\nfrom unet_engine.commands.cli import main\nmain()\n")
    program.chmod(0o755)
    pods = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}", "THREADS": "1", "MEMORY": str(2**30)}
    for index in ("0", "1"):
        subprocess.run(
            [*container["command"], line], env={**pods, "JOB_COMPLETION_INDEX": index}, check=True, timeout=60
        )
    assert chunks(tmp_path / "labels.zarr") == chunks(alone.out)


def test_the_options_on_the_page_exist():
    known = {name for option in run_command.params if isinstance(option, click.Option) for name in option.opts}
    lines = [line for line in (DOCS / "cluster.md").read_text().splitlines() if line.startswith("unet-engine run ")]
    assert len(lines) >= 2
    for line in lines:
        assert {word for word in shlex.split(line) if word.startswith("--")} <= known
