"""The files of docs/operations.md are what the page shows, are what their tools take, and do what they say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from support.command_line import environment
from support.paths import DOCS
from support.volumes import fake_model, make_volume, result_of
from unet_engine.commands.cli import run_command
from unet_engine.settings.settings import Settings

FILES = sorted((DOCS / "operations").iterdir())
PAGE = (DOCS / "operations.md").read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_shows_the_file(path):
    assert f"\n{path.read_text().rstrip()}\n```" in PAGE


def manifest(name):
    return yaml.safe_load((DOCS / "operations" / name).read_text())


def commands():
    """The `unet-engine run` of each file and of the page, with what its tool fills in."""
    pod = manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    yield "cronjob.yaml", pod["containers"][0]["args"][1:]
    part, report = manifest("argo.yaml")["spec"]["templates"][0]["steps"]
    for (step,) in (part, report):
        more = step["arguments"]["parameters"][0]["value"].replace("{{item}}", "3")
        args = manifest("argo.yaml")["spec"]["templates"][1]["container"]["args"][1:]
        yield (
            "argo.yaml",
            [re.sub(r"{{workflow.*?}}", "/data/x.zarr", a).replace("{{inputs.parameters.more}}", more) for a in args],
        )
    for name in ("nightly.sh", "main.nf", "Snakefile"):
        text = (DOCS / "operations" / name).read_text()
        text = text[text.index("unet-engine run --in") :].split('"""')[0]
        text = re.sub(r'"\n\s+"', " ", text).replace("\\\n", " ").strip().removesuffix('"')
        text = text.replace("${task.memory.toBytes().intdiv(10) * 9}", "1000000000").replace(
            "{resources.mem_mib}", "900"
        )
        text = text.replace("$task.cpus", "8").replace("{threads}", "8").replace("{output}", "r.html")
        yield name, shlex.split(text)[2:]
    own = PAGE
    for path in FILES:
        own = own.replace(path.read_text().rstrip(), "")
    own = own.replace("\\\n", " ")
    for line in re.findall(r"^unet-engine run .*$|\bunet-engine run [^\"`…]*(?=\")", own, re.M):
        yield "the page", shlex.split(line)[2:]


@pytest.mark.parametrize(("name", "args"), [pytest.param(*c, id=f"{i} {c[0]}") for i, c in enumerate(commands())])
def test_options_and_settings_are_those_of_run(name, args):
    given = run_command.make_context("run", list(args), resilient_parsing=False).params
    assert given["input"]
    assert not given["more"]
    Settings.of(**{key: given[key] for key in Settings.model_fields if key not in ("input", "out") and given.get(key)},
                input="scan.zarr")  # fmt: skip


def test_manifests_fit_their_schema():
    kubernetes = pytest.importorskip("kubernetes_validate")
    for version in ("1.30", "1.37"):
        kubernetes.validate(manifest("cronjob.yaml"), version, strict=True)


def test_the_workflow_fits_the_schema_of_argo():
    models = pytest.importorskip("hera.workflows.models", reason="pip install hera checks the workflow")
    workflow = models.Workflow.model_validate(manifest("argo.yaml"))
    names = {template.name for template in workflow.spec.templates}
    assert workflow.spec.entrypoint in names
    assert {step.template for steps in workflow.spec.templates[0].steps for step in steps.root} <= names


def test_no_code_is_tried_again_that_cannot_get_better():
    """All files know the same ones: what needs a person."""
    told = {
        frozenset(manifest("cronjob.yaml")["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]) - {11},
        frozenset(map(int, re.findall(r'"(\d+)"', manifest("argo.yaml")["spec"]["templates"][1]["retryStrategy"]["expression"]))),
        frozenset(map(int, re.search(r"exitStatus in \[(.*?)\]", (DOCS / "operations/main.nf").read_text())[1].split(","))),
    }  # fmt: skip
    assert told == {frozenset({2, 3, 4, 5, 7, 9})}


def test_the_table_of_cron_names_the_script():
    line = (DOCS / "operations" / "crontab").read_text().splitlines()[-1]
    minute, hour, *rest = line.split(maxsplit=5)
    assert (int(minute), int(hour), rest[:3]) == (15, 2, ["*", "*", "*"])
    subprocess.run(["bash", "-nc", rest[3]], check=True)
    assert rest[3].endswith("nightly.sh /data/lab")


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder as the script wants it, with the command on the path."""
    make_volume(tmp_path / "lab" / "scans" / "a.zarr", np.full((8, 8, 8), 3, np.uint8))
    make_volume(tmp_path / "lab" / "scans" / "b.zarr", np.full((8, 8, 8), 5, np.uint8))
    shutil.move(fake_model(tmp_path), tmp_path / "lab" / "net.fake.toml")
    tool = tmp_path / "bin" / "unet-engine"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable}\nfrom unet_engine.commands.cli import main\nmain()\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path / "lab"


def test_the_nightly_script_does_what_is_new(lab, tmp_path):
    script = tmp_path / "nightly.sh"  # the identity network in place of a file that is not there
    script.write_text((DOCS / "operations" / "nightly.sh").read_text().replace("net.onnx", "net.fake.toml"))
    for _ in range(2):
        subprocess.run(
            ["bash", script, lab], check=True, env={**environment(), "PATH": os.environ["PATH"]}, timeout=100
        )
    lines = [json.loads(line) for line in (lab / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done"] * 2 + ["already complete"] * 2
    assert result_of(lab / "labels" / "a.zarr").shape == (8, 8, 8)


GRAMMAR = """
import org.codehaus.groovy.control.*
def unit = new CompilationUnit()
unit.addSource(new File(args[0]))
unit.compile(Phases.CONVERSION)
"""


@pytest.mark.slow
def test_the_script_for_nextflow_is_groovy(tmp_path):
    """Nextflow's language is Groovy's. The tool itself is fetched from its makers' server, and does not run here."""
    groovy = shutil.which("groovy") or pytest.skip("groovy is not installed (apt install groovy)")
    (tmp_path / "parse.groovy").write_text(GRAMMAR)
    java = Path(shutil.which("java")).resolve().parents[1]
    good = (DOCS / "operations" / "main.nf").read_text()
    for text, right in ((good, True), (good.replace("workflow {", "workflow {{("), False)):
        (tmp_path / "main.nf").write_text(text)
        done = subprocess.run([groovy, "parse.groovy", "main.nf"], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "JAVA_HOME": str(java)}, check=False)  # fmt: skip
        assert (done.returncode == 0) == right, done.stderr


@pytest.mark.slow
def test_snakemake_runs_the_rules(lab):
    pytest.importorskip("snakemake", reason="pip install snakemake runs the rules")
    text = (DOCS / "operations" / "Snakefile").read_text().replace("net.onnx", "net.fake.toml")
    (lab / "Snakefile").write_text(text)
    done = subprocess.run([sys.executable, "-m", "snakemake", "--cores", "2"], cwd=lab, capture_output=True, text=True,
                          check=False, timeout=250)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (lab / "reports").iterdir()} == {"a.html", "b.html"}
