"""Importing what other tools left, in a cache of the test's own."""

import pytest

from support.command_line import cli


@pytest.fixture
def cache_of_its_own(tmp_path, monkeypatch):
    """Nothing that was imported before is taken from the cache, and nobody is trusted by the user's settings."""
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def imported(source, *options):
    """What the command said, and the model that it made."""
    from unet_engine.model.file import open_model

    said = cli("import", source, "--out", "net.onnx", "--json", *options)
    assert said.code == 0, said.err
    return said, open_model("net.onnx")


def refusal(source, *options):
    """The one line that says why."""
    said = cli("import", source, "--out", "net.onnx", *options)
    assert said.code in (2, 5), said.err
    assert len(said.error) < 600
    assert "Traceback" not in said.err
    return said.error
