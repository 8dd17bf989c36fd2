"""Code of modules is kept for the next process, and what Python would import is what is imported."""

import importlib
import os
import sys

import pytest

from unet_engine.backends import engine_cache
from unet_engine.commands import bytecode
from unet_engine.commands.bytecode import Finder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two at the beginning of the path; in the second lie a module and a package."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    (second / "kept_package").mkdir(parents=True)
    (second / "kept_alone.py").write_text("VALUE = 1\n")
    (second / "kept_package" / "__init__.py").write_text("from kept_package import inside\n")
    (second / "kept_package" / "inside.py").write_text("VALUE = 2\n")
    for folder in (second, first):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield first, second
    _forget()


def _forget():
    for name in [name for name in sys.modules if name.startswith("kept_")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def imported(file):
    """What a process gets that begins with what is kept in `file`: the modules, and which of them came from there."""
    _forget()
    finder = Finder(file)
    sys.meta_path.insert(0, finder)
    try:
        modules = [importlib.import_module(name) for name in ("kept_alone", "kept_package", "kept_package.inside")]
    finally:
        sys.meta_path.remove(finder)
    finder.store()
    alone, package, inside = modules
    assert package.inside is inside
    return (alone.VALUE, inside.VALUE), [type(m.__loader__) is bytecode._Kept for m in modules]


def test_the_second_process_finds_all_of_it(folders, tmp_path):
    file = tmp_path / "some.code"
    assert imported(file) == ((1, 2), [False] * 3)
    assert imported(file) == ((1, 2), [True] * 3)
    package = sys.modules["kept_package"]
    assert package.__spec__.submodule_search_locations == [str(folders[1] / "kept_package")]
    assert package.__file__ == str(folders[1] / "kept_package" / "__init__.py")
    assert package.__loader__.get_source("kept_package").startswith("from kept_package")


def test_another_source_is_another_module(folders, tmp_path):
    file, source = tmp_path / "some.code", folders[1] / "kept_package" / "inside.py"
    imported(file)
    before = source.stat()
    source.write_text("VALUE = 3\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # a file system that counts nanoseconds
    assert imported(file) == ((1, 3), [True, True, False])
    assert imported(file) == ((1, 3), [True] * 3)


@pytest.mark.parametrize("shadow", ["module", "package"])
def test_what_is_found_earlier_on_the_path_wins(folders, tmp_path, shadow):
    file = tmp_path / "some.code"
    imported(file)
    if shadow == "module":
        (folders[0] / "kept_alone.py").write_text("VALUE = 4\n")
    else:
        (folders[1] / "kept_alone").mkdir()
        (folders[1] / "kept_alone" / "__init__.py").write_text("VALUE = 4\n")
    assert imported(file)[0] == (4, 2)
    assert imported(file)[1] == [True] * 3


def test_without_its_source_a_module_is_gone(folders, tmp_path):
    file = tmp_path / "some.code"
    imported(file)
    (folders[1] / "kept_alone.py").unlink()
    with pytest.raises(ModuleNotFoundError):
        imported(file)


@pytest.mark.parametrize("damage", ["cut", "code", "index", "length", "empty", "another table"])
def test_what_is_damaged_is_imported_as_ever(folders, tmp_path, damage):
    file = tmp_path / "some.code"
    imported(file)
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[:-7]
    elif damage == "empty":
        data = data[:0]
    elif damage == "another table":
        index = b"i\x01\x00\x00\x00"
        data = index + bytecode.hashlib.sha256(index).digest() + len(index).to_bytes(8, "little") + bytecode._MAGIC
    else:
        data[{"code": 9, "index": -bytecode._TAIL - 9, "length": -len(bytecode._MAGIC) - 1}[damage]] ^= 64
    file.write_bytes(data)
    values, kept = imported(file)
    assert values == (1, 2)
    assert not all(kept)
    assert imported(file) == ((1, 2), [True] * 3)


def test_of_too_much_only_what_was_used_is_kept(folders, tmp_path, monkeypatch):
    file = tmp_path / "some.code"
    imported(file)
    monkeypatch.setattr(bytecode, "MOST", 10)
    (folders[1] / "kept_alone.py").write_text("VALUE = 1 + 4\n")
    assert imported(file)[0] == (5, 2)
    assert imported(file)[1] == [True] * 3


def test_a_folder_of_others_is_not_asked(tmp_path, monkeypatch):
    before = list(sys.meta_path)
    monkeypatch.setattr(bytecode, "ALL_THERE", "nothing.of.it")
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    engine_cache.folder().chmod(0o777)
    bytecode.keep_code()
    assert sys.meta_path == before
    monkeypatch.setattr(bytecode, "ALL_THERE", "sys")
    (tmp_path / "cache").chmod(0o700)
    bytecode.keep_code()  # of this process all is imported
    assert sys.meta_path == before


def test_a_command_that_is_called_twice_in_a_process_asks_nobody_without_end(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(bytecode, "ALL_THERE", "a module that is not there")
    monkeypatch.setattr(bytecode.atexit, "register", lambda *_: None)
    for _ in range(2):
        bytecode.keep_code()
    assert sum(isinstance(finder, Finder) for finder in sys.meta_path) <= 1
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
