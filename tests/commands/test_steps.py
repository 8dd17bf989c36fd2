"""Progress of passes: a bar on a terminal, a line every few seconds elsewhere, nothing for programs."""

import io
import sys
import time

import numpy as np
import pytest

from support.command_line import cli
from support.volumes import make_volume
from support.waiting import wait_until
from unet_engine.commands import steps
from unet_engine.commands.screen import Screen
from unet_engine.execution.hands import Here
from unet_engine.postprocess.base import ALONE, Boxes, Steps, Watched
from unet_engine.postprocess.source import Source
from unet_engine.postprocess.table import VOXELS, Table, table


def screen(*, terminal):
    file = io.StringIO()
    file.isatty = lambda: terminal
    return Screen(file)


@pytest.mark.parametrize("crew", [ALONE, Here()])
def test_all_steps_are_counted_those_done_earlier_as_well(crew):
    told, done = [], []
    items = Steps("read", 5, (n if n % 2 else None for n in range(5)))
    Watched(crew, lambda *said: told.append(said) or told.append).each(done.append, items)
    assert (sorted(done), told) == ([1, 3], [("read", 5), 1, 2, 3, 4, 5])


def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(steps, "LINE_EVERY", 0.02)
    for terminal in (True, False):
        console = screen(terminal=terminal)
        with steps.steps_on(console) as begun:
            count = begun("read", 40)
            count(10)
            wait_until(lambda: "10/40 boxes read" in console.rich.file.getvalue())  # noqa: B023  # waited for at once
        said = console.rich.file.getvalue()
        assert ("━" in said) == terminal


def test_a_pass_tells_its_boxes(tmp_path):
    labels = make_volume(tmp_path / "l.zarr", np.ones((40, 300, 400), np.uint8), chunks=(40, 300, 64))
    told = []
    table(
        Source.of(labels), str(tmp_path / "a.csv"), Watched(ALONE, lambda *said: told.append(said) or (lambda _: None))
    )
    count = Boxes((40, 300, 400), (40, 300, 64 * (VOXELS // (40 * 300 * 64)))).number
    assert told == [("read", count)]
    assert count > 1


def test_programs_see_no_progress(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "LINE_EVERY", 0.001)
    real = Table.look
    labels = make_volume(tmp_path / "l.zarr", np.ones((9, 9, 9), np.uint8))
    said = "0/1 boxes read"
    for flags, wait in (
        ((), lambda: wait_until(lambda: said in sys.stderr.getvalue())),
        (("--json",), lambda: time.sleep(0.3)),
    ):
        monkeypatch.setattr(Table, "look", lambda *given, wait=wait: (wait(), real(*given))[1])
        told = cli("table", labels, tmp_path / f"a{len(flags)}.csv", *flags)
        assert told.code == 0, told.err
        assert (said in told.err) == (not flags)
