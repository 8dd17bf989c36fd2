"""What is printed is what was said: brackets and colons in paths, names and messages are theirs, not markup."""

import re
from pathlib import Path

import numpy as np
import pytest

import unet_engine
import unet_export
from support.command_line import cli
from support.volumes import fake_model, make_volume
from unet_engine.commands import doctor, report, screen
from unet_engine.commands.bench import options as bench
from unet_engine.commands.models import _show

NAMES = [
    "a[/b].zarr",
    "[bold]x[/bold].zarr",
    "[/].zarr",
    ":warning:.zarr",
    "[red].zarr",
    r"back\[slash].zarr",
    "[link=x]y.zarr",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_volume_of_any_name_is_run_and_named_exactly(tmp_path, name):
    make_volume(tmp_path / name, np.ones((9, 9, 9), np.uint8))
    model = fake_model(tmp_path, name="n[b]")
    said = cli("run", "--in", name, "--model", model, "--out", f"o{name}", "--replace-nonfinite", "1")
    assert said.code == 0, said.err
    lines = said.err.splitlines()
    assert f"        input  {name}  zyx 9×9×9 uint8" in lines
    assert next(line for line in lines if line.split()[0] == "network").endswith("  n[b].fake.toml on fake (cpu), fp32")
    assert f"of uint8 labels to o{name}" in said.err
    assert lines[-1].startswith(f"o{name}: 8 windows in ")
    made = cli("plan", "--in", name, "--model", model)
    assert f" {name}  zyx" in made.out
    assert f"{name.removesuffix('.zarr')}-n[b].zarr" in made.out


def test_notes_and_what_info_and_finish_say_are_exact(tmp_path):
    path = make_volume(tmp_path / "a[/b].zarr", np.ones((9, 9, 9), ">u2"), zarr_format=2)
    model = fake_model(tmp_path, classes=["[/b]", ":smile:"], channels_out=2, channels_in=1)
    assert f"note: {path} is decoded by zarr's own codecs" in cli("plan", "--in", path, "--model", model).err
    shown = cli("info", model).out
    assert "[/b]" in shown
    assert ":smile:" in shown
    identity = fake_model(tmp_path, name="id")
    assert cli("run", "--in", path, "--model", identity, "--out", "o[/c].zarr", "--part", "1/1").code == 0
    assert "o[/c].zarr" in cli("finish", "o[/c].zarr").err


def test_doctor_shows_what_to_install_to_the_last_bracket(monkeypatch):
    install = "not installed; pip install 'unet-engine[cuda]'"
    failed = doctor.Check("tensorrt", "cuda:0", "fp16", False, None, None, "get unet-engine[tensorrt]")  # noqa: FBT003
    works = doctor.Check("openvino", "cpu", "fp32", True, 1.0, 0.0, "works")  # noqa: FBT003
    monkeypatch.setattr(doctor, "facts", lambda: {"cuda-core": install})
    monkeypatch.setattr(doctor, "examine", lambda done: [works, failed])
    monkeypatch.setenv("COLUMNS", "200")
    said = cli("doctor")
    assert f"cuda-core  {install}" in said.out
    assert "get unet-engine[tensorrt]" in said.out


def test_tables_of_the_gate_and_of_bench_show_names_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    row = {"precision": "bf16", "backend": "openvino", "emulated": False, "passed": False, "speedup": None,
           "least_dice": None,
           "max_error": 0.1, "reason": "Dice of [/b] is 0.9, below 0.99"}  # fmt: skip
    _show([row], screen.stderr())
    assert "Dice of [/b] is 0.9, below 0.99" in capsys.readouterr().err
    sweep = {"name": "n[/b]", "shape": [8, 8], "notes": [], "command": "unet-engine run --in [x].zarr"}
    monkeypatch.setattr("unet_engine.commands.bench.report.table", lambda sweep: [])
    bench._show({"limits": [], "sweeps": [sweep]}, screen.stdout())
    assert "n[/b] on 8×8 voxels" in (said := capsys.readouterr().out)
    assert "best: unet-engine run --in [x].zarr" in said


def test_the_bar_of_a_terminal_shows_addresses_as_they_are(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = screen.stderr()
    watcher = report.Watcher.__new__(report.Watcher)
    watcher._total, watcher._console = 2, terminal
    watcher._figures = lambda: (1, "1 worker at tcp://[::1]:80 [/b]")
    watcher._stop = type("Stop", (), {"wait": staticmethod(lambda seconds: True)})()
    watcher._bar()
    assert "tcp://[::1]:80 [/b]" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)


@pytest.mark.parametrize("text", ["a [/b] :smile:", "tabs\tand\ttabs", "\x1b[31mred", "ü → ∞", "", " x  "])
def test_without_a_terminal_text_is_what_rich_would_print(text, capsys, monkeypatch):
    plain = screen.stdout()
    plain.say(text, "note", "yellow")
    assert "rich" not in vars(plain)
    said = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "")  # not asked for, and rich is asked
    screen.stdout().say(text, "note", "yellow")
    assert capsys.readouterr().out == said


def test_nobody_else_prints_with_rich():
    printing = re.compile(
        r"\bConsole\b|from rich import|rich\.print|rich\.markup|from_markup|\[/(bold|red|green|yellow)\]"
    )
    folders = [Path(package.__file__).parent for package in (unet_engine, unet_export)]
    found = [p.name for folder in folders for p in folder.rglob("*.py") if printing.search(p.read_text())]
    assert sorted(found) == ["progress.py", "screen.py"]  # a bar says no words but its own
