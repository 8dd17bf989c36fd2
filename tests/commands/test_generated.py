"""Code that `dataclass` generates is compiled once for a user."""

import builtins
import dataclasses
import typing

import pytest

from unet_engine.backends import engine_cache
from unet_engine.commands import generated


@pytest.fixture(autouse=True)
def compiled(tmp_path, monkeypatch):
    """Texts that were compiled; of a process that has imported nothing."""
    texts = []

    def compile_(text, *args, **keywords):
        texts.append(text)
        return compile(text, *args, **keywords)

    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(generated, "ALL_THERE", "nothing.of.it")
    monkeypatch.setattr(generated, "compile", compile_, raising=False)
    return texts


def made(default=3):
    with generated.known_code():

        @dataclasses.dataclass(frozen=True)
        class Record:
            a: int
            b: int = default

    return Record


def test_a_second_process_compiles_nothing_and_has_the_same_records(compiled):
    first = made()
    assert compiled
    compiled.clear()
    second = made()
    assert not compiled
    for record in (first, second):
        assert repr(record(1)).endswith("Record(a=1, b=3)")
        assert record(1) == record(1, 3) != record(2)
        assert hash(record(1)) == hash(record(1))
        with pytest.raises(dataclasses.FrozenInstanceError):
            record(1).a = 2
    assert made(default=4)(1).b == 4  # values are no part of the text


def test_types_that_are_text_are_compiled_once_and_are_the_same(compiled):
    def hints():
        with generated.known_code():

            class Typed(typing.TypedDict):
                a: "int | None"
                b: "list['int | None']"

        return typing.get_type_hints(Typed)

    first = hints()
    assert compiled
    compiled.clear()
    assert hints() == first == {"a": int | None, "b": list[int | None]}
    assert not compiled
    with generated.known_code(), pytest.raises(SyntaxError):
        typing.ForwardRef("not a type")


def test_afterwards_everything_is_as_it_was():
    made()
    assert "exec" not in vars(dataclasses)
    assert "compile" not in vars(typing)
    inside = []

    def fail():
        with generated.known_code():
            inside.append(dataclasses.exec)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside[0] is not builtins.exec
    assert "exec" not in vars(dataclasses)


@pytest.mark.parametrize("damage", ["cut", "no table", "unreadable"])
def test_what_was_damaged_is_made_again(damage, compiled):
    made()
    [file] = engine_cache.folder().glob("*.generated")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "no table":
        engine_cache.store("generated", generated._key(), b"i\x01\x00\x00\x00")
    else:
        engine_cache.store("generated", generated._key(), b"\xff")
    compiled.clear()
    assert made()(1).b == 3
    assert compiled


def test_a_cache_that_cannot_be_used_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "file"))
    assert made()(1).b == 3


def test_where_all_is_imported_nothing_is_read(monkeypatch):
    monkeypatch.setattr(generated, "ALL_THERE", "builtins")
    monkeypatch.setattr(generated, "_load", lambda: pytest.fail("read"))
    assert made()(1).b == 3
