"""What programs get: JSON of every command, errors too, and the schemas they can be checked against."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import jsonschema
import numpy as np
import pytest

from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.commands.cli import app
from unet_engine.commands.schemas import SCHEMAS
from unet_engine.errors import SettingsError
from unet_engine.model.file import open_model
from unet_engine.settings.settings import Settings


def valid(name, value):
    schema = SCHEMAS[name]()
    jsonschema.Draft202012Validator.check_schema(schema)
    found = sorted(jsonschema.Draft202012Validator(schema).iter_errors(value), key=str)
    return [error.message for error in found]


@pytest.fixture
def scan(tmp_path):
    return make_volume(tmp_path / "scan.zarr", np.random.default_rng(0).random((12, 14, 16), np.float32))


PLAIN = {"completion", "manual"}
"""What is read by a shell, and by man."""


def test_every_command_speaks_json():
    for name, command in app.commands.items():
        if name in PLAIN:
            continue
        assert any("--json" in option.opts for option in command.params), name


@pytest.mark.parametrize("before", [True, False])
def test_json_may_stand_before_the_command(scan, before):
    said = cli(*(["--json", "info", scan] if before else ["info", scan, "--json"]))
    assert said.json["shape"] == [12, 14, 16]
    assert len(said.out.splitlines()) == 1


@pytest.mark.parametrize(("said", "asked"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_environment_may_ask_for_json(monkeypatch, scan, said, asked):
    monkeypatch.setenv("UNET_ENGINE_JSON", said)
    found, failed = cli("info", scan), cli("info", f"{scan}.none")
    assert (found.code, failed.code) == (0, 3)
    if asked:
        assert json.loads(found.out.splitlines()[-1])["shape"] == [12, 14, 16]
        assert json.loads(failed.out.splitlines()[-1])["error"]["exit_code"] == 3
    else:
        assert not found.out.startswith("{")
        assert failed.out == ""


def test_json_before_a_command_that_writes_it_to_a_file_means_stdout():
    bench = app.commands["bench"]
    for args, there in (([], "-"), (["--json", "f.json"], "f.json"), (["--json=f.json"], "f.json")):
        above = click.Context(app)
        above.meta["unet_engine.json"] = True
        assert bench.make_context("bench", args, parent=above).params["json_file"] == there
    said = cli("--json", "bench", "--seconds", "0.001")
    assert (said.code, said.json["error"]["type"]) == (2, "SettingsError")


@pytest.mark.parametrize(
    ("args", "kind", "code"),
    [
        (["info", "nowhere.zarr"], "InputError", 3),
        (["run", "--in", "nowhere.zarr", "--model", "none.onnx"], "InputError", 3),
        (["run", "--overlap", "2", "--in", "SCAN"], "SettingsError", 2),
        (["run", "--nonsense"], "UsageError", 2),
        (["nonsense"], "UsageError", 2),
        (["finish", "SCAN"], "OutputError", 8),
        (["view", "nowhere.zarr"], "InputError", 3),
        (["components", "nowhere.zarr", "o.zarr"], "InputError", 3),
    ],
)  # fmt: skip
def test_an_error_is_a_line_of_json_too_and_the_same_line_is_told_to_people(scan, args, kind, code):
    args = [scan if arg == "SCAN" else arg for arg in args]
    said = cli("--json", *args)
    assert said.code == code
    assert valid("error", said.json) == []
    assert said.json["error"]["type"] == kind
    assert said.json["error"]["exit_code"] == code
    assert said.error == f"unet-engine: {said.json['error']['message']}"
    assert not cli(*args).out  # unasked there is nothing for programs


FAILING = {
    "bench": ["--seconds", "0.001"], "components": ["no.zarr", "o.zarr"], "convert": ["no.zarr", "o.tif"], "demo": ["SCAN"],
    "doctor": ["--nonsense"], "export": ["no.pt", "--out", "o.onnx"], "finish": ["SCAN"],
    "import": ["no", "--out", "o.onnx"], "info": ["no.zarr"], "plan": ["--in", "no.zarr"], "polygons": ["no", "o.geojson"],
    "pyramid": ["no.zarr"], "quantize": ["no.onnx", "--calibrate", "SCAN"], "run": ["--in", "no.zarr"],
    "schema": ["nonsense"], "table": ["no.zarr", "o.csv"], "view": ["no.zarr"],
}  # fmt: skip


def only_one_object(said):
    """What is on stdout: one line, and nothing beside it that a program would have to skip."""
    (line,) = said.out.splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", sorted(set(app.commands) - PLAIN))
def test_every_command_that_fails_leaves_one_object_and_nothing_else(scan, name):
    said = cli("--json", name, *(scan if arg == "SCAN" else arg for arg in FAILING[name]))
    assert said.code > 0
    found = only_one_object(said)
    assert valid("error", found) == []
    assert found["error"]["exit_code"] == said.code


def test_every_command_that_works_leaves_one_object_and_nothing_else(scan, tmp_path):
    model = fake_model(tmp_path, activation="sigmoid")
    plane = make_volume(tmp_path / "plane.zarr", np.eye(16, dtype=np.uint8))
    run = ("run", "--in", scan, "--model", model)
    for args in (
        (*run, "--out", "o.zarr", "--verbose", "--profile", "profile"), (*run, "--out", "o.zarr", "--resume"),
        (*run, "--out", "p.zarr", "--dry-run"), ("plan", "--in", scan, "--model", model), ("info", scan), ("info", model),
        ("info", "o.zarr"), ("finish", "o.zarr"), ("components", "o.zarr", "c.zarr"), ("table", "c.zarr", "c.csv"),
        ("polygons", plane, "p.geojson"), ("convert", "o.zarr", "o.tif"), ("pyramid", "o.zarr"), ("schema", "result"),
        ("doctor", "--fix"),
    ):  # fmt: skip
        said = cli("--json", *args)
        assert said.code == 0, (args, said.err)
        only_one_object(said)


def test_results_and_records_are_what_their_schemas_say(scan, tmp_path):
    lines = tmp_path / "lines.jsonl"
    model = fake_model(tmp_path)
    said = cli("run", "--in", scan, "--model", model, "--out", tmp_path / "o.zarr", "--results", lines, "--json")
    assert valid("result", said.json) == []
    assert valid("result", {**said.json, "seconds": "soon"})
    failed = cli("run", "--in", tmp_path / "no.zarr", "--model", model, "--results", lines)
    assert failed.code == 3
    for line in map(json.loads, lines.read_text().splitlines()):
        assert valid("record", line) == []
    several = cli(
        "run", "--in", scan, scan, "--model", model, "--dry-run", "--out", tmp_path / "{stem}-{model}.zarr", "--json"
    )
    for line in map(json.loads, several.out.splitlines()):
        assert valid("record", line) == [] or valid("error", line) == []


GOOD = """
model = ["a.onnx", "b.onnx"]
memory = "8GiB"
window = "64,64,64"
overlap = "auto"
nodata = [0, "nan"]
strict = true
"""


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (GOOD, True), ("window = [64, 64, 64]\noverlap = 0.25\nmemory = 8000000", True), ("overlap = 1.5", False),
        ("windows = 3", False), ("precision = 'fp64'", False), ("threads = 0", False),
        ("output = 'labels'\ndtype = 'float16'", True),
    ],
)  # fmt: skip
def test_the_schema_of_settings_takes_what_settings_take(text, right, tmp_path):
    values = tomllib.loads(text)
    assert (valid("settings", values) == []) == right
    if right and "dtype" not in values:
        Settings.of(input="x.zarr", **values)
    elif not right:
        with pytest.raises(SettingsError):
            Settings.of(input="x.zarr", **values)


def test_settings_are_explained():
    fields = SCHEMAS["settings"]()["properties"]
    assert set(fields) == set(Settings.model_fields)
    assert "Bytes of RAM" in fields["memory"]["description"]


@pytest.mark.parametrize(
    "spec", [{}, {"normalization": {"mode": "percentile", "low": 1, "high": 99}, "channels_out": 2}]
)
def test_the_schema_of_specs_takes_specs(tmp_path, spec):
    model = open_model(fake_model(tmp_path, **spec))
    assert valid("spec", json.loads(model.spec.model_dump_json(exclude_none=True))) == []
    assert valid("spec", {"name": "x"})


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_printed(name):
    said = cli("schema", name)
    assert (
        json.loads(said.out) == json.loads(cli("schema", name, "--json").out) == json.loads(json.dumps(SCHEMAS[name]()))
    )


ROOT = Path(__file__).parents[2]


def test_what_agents_are_told_is_there():
    text = (ROOT / "AGENTS.md").read_text()
    for place in re.findall(r"\]\(([^)#]+)\)|`((?:docs|tests|prepare|unet_engine|cpp_ext)/?[\w/.]*)`", text):
        name = next(filter(None, place))
        assert any((ROOT / base / name).exists() for base in ("", "engine", "engine/unet_engine")), name
    for line in re.findall(r"^unet-engine (.*)$", text, re.M):
        words = shlex.split(line.replace("--json", "", 1))
        command = app.commands[words[0]]
        known = {opt for option in command.params for opt in option.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
    for target in re.findall(r"`make (\w+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_the_table_of_exit_codes_has_all_of_them():
    codes = {
        int(n)
        for row in re.findall(r"^\| ([\d, ]+) \|", (ROOT / "docs/programs.md").read_text(), re.M)
        for n in row.split(",")
    }
    assert codes == {0, *SCHEMAS["error"]()["properties"]["error"]["properties"]["exit_code"]["enum"]}
