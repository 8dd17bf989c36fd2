"""Variables of the environment: each setting may be said by one, and means what it means as an option."""

import re
from pathlib import Path

import click
import numpy as np
import pytest

from support.command_line import cli
from support.volumes import make_volume
from unet_engine.commands.cli import app
from unet_engine.errors import SettingsError
from unet_engine.settings.settings import Settings, from_environment

SAID = {
    "input": "v.zarr", "model": "net.onnx", "folds": "0,1", "weights": "2,1", "out": "o.zarr", "into": "cells", "device": "cpu",
    "gpus": "2", "backend": "openvino", "precision": "bf16", "window": "8,9,10", "overlap": "0.25",
    "overlap_tolerance": "0.99", "blend": "crop", "blend_at": "outputs", "split_concat": "yes", "tiling": "8,8,8:2,2,2:crop",
    "tolerance": "0.98", "tiling_budget": "0.5", "truth": "t.zarr", "coarse": "auto", "coarse_miss": "0.01",
    "coarse_budget": "0.2", "padding": "edge", "tta": "mirror:yx", "channels": "multilabel", "threshold": "0.4",
    "output": "logits", "dtype": "float16", "components": "true", "connectivity": "26", "min_size": "5", "fill_holes": "on",
    "largest": "3", "pyramid": "1", "levels": "4", "roi": "0:4,:,2:", "axes": "czyx", "image": "A/1/0", "level": "1",
    "timepoint": "2:5", "input_channels": "DAPI,2", "normalize": "zscore", "activation": "sigmoid", "head": "main",
    "replace_nonfinite": "-1.5", "grid": "model", "mask": "m.zarr", "outside": "255", "nodata": "0,nan", "memory": "3GiB",
    "batch": "4", "threads": "3", "window_threads": "2", "workers": "2", "scheduler": "tcp://a:1", "protocol": "ucx",
    "cluster": "c.yaml", "part": "2/3", "hang_seconds": "9.5", "tls_ca": "a", "tls_cert": "b", "tls_key": "c",
    "dashboard": "127.0.0.1:8787", "dashboard_token": "geheim-12345", "profile": "p", "resume": "y", "verify": "t",
    "overwrite": "Yes", "durable": "no", "trust": "yes", "ignore_spacing": "yes", "strict": "TRUE",
}  # fmt: skip


def test_each_setting_has_its_line_here():
    assert list(SAID) == list(Settings.model_fields)


@pytest.fixture
def alone(monkeypatch):
    """Settings that exclude one another are not looked at: each is said alone."""
    monkeypatch.setattr("unet_engine.settings.settings.check", lambda settings: None)


def of_option(name, text):
    """What the command line makes of it."""
    option = next(one for one in app.commands["run"].params if one.name == name)
    words = [option.opts[0]] if option.is_flag and not option.secondary_opts else [option.opts[0], text]
    given = app.commands["run"].make_context("run", words).params[name]
    return given[0] if name == "input" else given


@pytest.mark.parametrize("name", SAID)
def test_a_variable_means_what_the_option_means(alone, monkeypatch, name):
    wanted = Settings.of(**{"input": "v.zarr", name: of_option(name, SAID[name])})
    monkeypatch.setenv(f"UNET_ENGINE_{name.upper()}", SAID[name])
    base = {} if name == "input" else {"input": "v.zarr"}
    found = Settings.of(**base)
    assert found.model_dump() == wanted.model_dump()
    assert name == "input" or getattr(found, name) != getattr(Settings(input="v.zarr"), name)
    assert any(note.startswith("from the environment: ") for note in found.notes) == (name != "dashboard_token")


@pytest.mark.parametrize("name", [name for name in SAID if name != "input"])
def test_what_is_given_wins(alone, monkeypatch, name):
    wanted = Settings.of(**{"input": "v.zarr", name: of_option(name, SAID[name])})
    monkeypatch.setenv(f"UNET_ENGINE_{name.upper()}", "nonsense")
    again = Settings.of(**{"input": "v.zarr", name: of_option(name, SAID[name])})
    assert again.model_dump() == wanted.model_dump()
    assert not again.notes


def test_a_slip_of_the_keyboard_is_told(monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_OVERLAPP", "0.25")
    assert "UNET_ENGINE_OVERLAPP is in the environment and no setting: ignored" in Settings.of(input="v.zarr").notes


def test_no_variable_that_is_read_is_taken_for_a_slip(monkeypatch):
    names = set()
    for file in [*Path(__file__).parent.parent.glob("engine/**/*.py"), *Path(__file__).parent.parent.glob("docs/*.md")]:
        names |= set(re.findall(r"\bUNET_ENGINE_[A-Z_]*[A-Z]\b", file.read_text()))
    for name in names | {option.envvar for option in app.commands["run"].params if option.envvar}:
        monkeypatch.setenv(name, "")
    assert len(names) > 9
    assert not [note for note in Settings.of(input="v.zarr").notes if "no setting" in note]


def test_two_that_exclude_one_another_are_told_with_where_they_were_said(monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_OVERWRITE", "yes")
    with pytest.raises(SettingsError, match="--overwrite is said by UNET_ENGINE_OVERWRITE"):
        Settings.of(input="v.zarr", resume=True)


def test_the_name_of_the_option_counts_too(monkeypatch):
    monkeypatch.setenv("UNET_ENGINE_IN", "v.zarr")
    assert from_environment()["input"] == "v.zarr"


@pytest.mark.parametrize("pattern", ["*.zarr", "v.zarr"])
def test_patterns_and_options_of_the_run_may_stand_there(tmp_path, monkeypatch, model, pattern):
    monkeypatch.chdir(tmp_path)
    for name in "vw" if "*" in pattern else "v":
        make_volume(f"{name}.zarr", np.zeros((8, 8, 8), np.uint8))
    for name, value in {
        "IN": pattern,
        "MODEL": model,
        "OUT": "{stem}-o.zarr",
        "RESULTS": "r.jsonl",
        "QUIET": "yes",
    }.items():
        monkeypatch.setenv(f"UNET_ENGINE_{name}", value)
    said = cli("run")
    assert said.code == 0, said.err
    assert said.err == ""
    assert Path("v-o.zarr").exists()
    assert len(Path("r.jsonl").read_text().splitlines()) == (2 if "*" in pattern else 1)


def test_every_option_of_a_run_has_a_variable():
    for option in app.commands["run"].params:
        if isinstance(option, click.Option) and option.name not in (*SAID, "help", "as_json"):
            assert option.envvar == f"UNET_ENGINE_{option.name.upper()}"
