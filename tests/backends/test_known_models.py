"""What an ONNX file says is read once for a user, and is what the file says now."""

import os
import shutil
from pathlib import Path

import pytest

from unet_engine.backends import engine_cache, known_models
from unet_engine.backends.known_models import open_known
from unet_engine.errors import ModelError
from unet_engine.model.file import open_model
from unet_engine.model.shipped import shipped_model

pytest.importorskip("onnx")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Calls of `open_model`."""
    calls = []

    def open_(*asked):
        calls.append(asked)
        return open_model(*asked)

    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_models, "open_model", open_)
    return calls


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    shutil.copy(shipped_model("cells_2d.onnx"), path)
    return path


def test_a_model_is_opened_once_and_is_the_same(net, opened):
    models = [open_known(str(net)) for _ in range(3)]
    assert len(opened) == 1
    assert models[0] == models[1] == models[2] == open_model(str(net))
    open_known(str(net), (64, 64))
    assert len(opened) == 2


def test_other_bytes_are_another_model_whatever_the_file_system_says(net, opened, tmp_path):
    first = open_known(str(net))
    about = net.stat()
    data = bytearray(net.read_bytes())
    place = data.index(b"raw_data") if b"raw_data" in data else len(data) // 2
    data[place] ^= 1  # of a weight, or a name
    net.write_bytes(data)
    os.utime(net, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert net.stat().st_size == about.st_size
    try:
        changed = open_known(str(net))
    except ModelError:
        changed = None
    assert len(opened) == 2
    assert changed is None or changed.sha256 != first.sha256
    net.with_suffix(".toml").write_text('activation = "none"\n')
    open_known(str(shipped_model("cells_2d.onnx")))
    assert len(opened) == 3


@pytest.mark.parametrize("damage", ["cut", "another class", "no pickle", "folder of others", "code"])
def test_what_was_damaged_or_is_of_other_code_is_read_again(damage, net, opened, monkeypatch, tmp_path):
    sha256 = open_known(str(net)).sha256
    [kept] = engine_cache.folder().glob("*.model")
    key = known_models._key(str(net), ())
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-9])
    elif damage == "another class":
        engine_cache.store("model", key, b"\x80\x04N.")
    elif damage == "no pickle":
        engine_cache.store("model", key, b"cos\nnothing\n.")
    elif damage == "folder of others":
        (tmp_path / "cache").chmod(0o777)
    else:
        monkeypatch.setattr(known_models, "_code", lambda: [["file.py", 1, 2]])
    assert open_known(str(net)).sha256 == sha256
    assert len(opened) == 2


def test_errors_are_those_of_opening(opened, tmp_path):
    for name in ("none.onnx", ".", "a.onnx,"):
        with pytest.raises(ModelError) as ours:
            open_known(name)
        with pytest.raises(ModelError) as theirs:
            open_model(name)
        assert str(ours.value) == str(theirs.value)
    Path("bad.onnx").write_bytes(b"\xff" * 99)
    for _ in range(2):
        with pytest.raises(ModelError):
            open_known("bad.onnx")
    assert not list((tmp_path / "cache").glob("*.model"))
