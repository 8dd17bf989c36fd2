"""Where the user's cache lies, and that nobody else may write to it, for all that keep something there."""

from pathlib import Path

import pytest

from unet_engine.backends import engine_cache
from unet_engine.errors import BackendError
from unet_engine.storage import cache


@pytest.mark.parametrize(
    ("named", "users", "wanted"),
    [("/a/b", "/c", "/a/b"), ("", "/c", "/c/unet-engine"), (None, "", "/home/me/.cache/unet-engine")],
)
def test_where_it_lies(monkeypatch, named, users, wanted):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", users)
    monkeypatch.delenv(cache.FOLDER, raising=False)
    if named is not None:
        monkeypatch.setenv(cache.FOLDER, named)
    assert cache.place() == Path(wanted)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "new"))
    assert engine_cache.folder() == tmp_path / "new"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "new").chmod(0o770)
    assert not cache.made(tmp_path / "new")
    with pytest.raises(BackendError, match="could put an engine there; chmod 700 it"):
        engine_cache.folder()
