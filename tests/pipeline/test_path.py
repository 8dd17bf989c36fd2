"""How far it is from the command to the network: a newcomer should be able to follow a window."""

import sys

from support.command_line import cli
from unet_engine.backends.fake import FakeBackend


def test_few_frames_and_files_lie_between_the_command_and_the_network(ramp, model, monkeypatch):
    paths, start = [], FakeBackend.start

    def noted(self, slot):
        frame, path = sys._getframe(1), []
        while frame:
            name = frame.f_globals.get("__name__", "")
            if name.startswith("unet_engine."):
                path.append((name, frame.f_code.co_name))
            frame = frame.f_back
        paths.append(path)
        start(self, slot)

    monkeypatch.setattr(FakeBackend, "start", noted)
    assert cli("run", "--in", ramp[1], "--model", model, "--out", "out.zarr").code == 0
    longest = max((p for p in paths if any(f == "run_column" for _, f in p)), key=len)
    called = [f for _, f in longest][::-1]
    called = called[called.index("run_command") :]
    assert len(called) + 1 <= 9, called  # and `start` itself
    assert len({name for name, _ in longest} - {"unet_engine.commands"}) <= 6
