"""Trying one fault: what the command says, how it ends, what it leaves."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from support.catalogue.fault import Fault
from support.catalogue.scene import PLAIN, copy
from support.command_line import COMMAND, Said, cli, environment

SECONDS = 10
"""What any of them may take where nothing else runs."""
LOOKED_AT = 2**24
"""Bytes of a file: some are as long as no disk is."""


def trial(fault: Fault, base: Path, here: Path, *, process: bool = False) -> None:
    """Make the fault in a folder below `here`, run the command, and look at all that is promised of it. What takes too
    long is tried once more, as the machine may be busy."""
    for folder in (here / "1", here / "2"):
        folder.mkdir()
        took = _trial(fault, base, folder, process=process)
        if took < SECONDS * _busy():
            return
    pytest.fail(f"took {took:.1f} s")


def _trial(fault: Fault, base: Path, here: Path, *, process: bool) -> float:
    copy(base, here, (*PLAIN, *fault.needs))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        if fault.make:
            fault.make(here)
        before = state(here)
        begun = time.monotonic()
        said = as_process(fault, here) if process or fault.alone else cli(*fault.command)
        took = time.monotonic() - begun
    look(fault, said)
    after = state(here)
    lost = {p for p in before if after.get(p) != before[p] and not _in(p, fault.changes)}
    assert not lost, f"changed or lost: {sorted(lost)[:5]}"
    new = {p for p in after.keys() - before.keys() if not _in(p, fault.leaves) and not _in(p, fault.changes)}
    assert not new, f"left behind: {sorted(new)[:5]}"
    return took


def look(fault: Fault, said: Said) -> None:
    whole = f"\nexit code {said.code}\n{said.out[-300:]}\n{said.err[-1500:]}"
    assert said.code == fault.code, whole
    for word in ("Traceback", "this is a bug", "Warning", "Exception ignored"):
        assert word not in said.err + said.out, whole
    if not fault.says:
        return
    assert said.error.startswith("unet-engine: "), whole
    if fault.spoken is not None:
        assert len(said.err.strip().splitlines()) == fault.spoken, whole
    for word in fault.says:
        assert word in said.error, f"{word!r} is not said: {whole}"
    assert len(said.error) < 1200, whole
    assert ";" in said.error or " use " in said.error or ": give " in said.error, f"no remedy: {whole}"


def as_process(fault: Fault, here: Path) -> Said:
    command = [*COMMAND, *fault.command]
    given = {**environment(), **fault.environment}
    line = ["bash", "-c", fault.shell.format(shlex.join(command))] if fault.shell else command
    done = subprocess.run(
        line,
        capture_output=True,
        timeout=6 * SECONDS * _busy(),
        env=given,
        cwd=here,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


def _busy() -> float:
    """How many times longer all takes, as others want the processors, too."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def state(here: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a folder by its path: kind and mode, and the content of files."""
    found = {}
    for root, folders, files in os.walk(here):
        for name in (*folders, *files):
            path = Path(root, name)
            known = path.lstat()
            content = b""
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as opened:
                    content = opened.read(LOOKED_AT)
            found[os.path.relpath(path, here)] = (known.st_mode, content, known.st_size if content else 0)
    return found


def _in(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in names)
