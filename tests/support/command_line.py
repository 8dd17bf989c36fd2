"""The command line, in this process and as one of its own."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()"]


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def error(self):
        """The last line on stderr."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""

    @property
    def json(self):
        return json.loads(self.out.strip().splitlines()[-1])


def cli(*args):
    """Run the command line in this process, half a second faster than in one of its own.

    Warnings are on stderr, as a process of its own would show them.
    """
    from unet_engine.commands.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(record=True) as seen,
    ):  # fmt: skip
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", ["unet-engine", *map(str, args)])
        patch.setattr("signal.signal", lambda *_: None)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    noise = "".join(f"{w.category.__name__}: {w.message}\n" for w in seen)
    return Said(code, out.getvalue(), noise + err.getvalue())


def command(*args, **options):
    """Run the command line as a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
        **options,
    )
    return Said(done.returncode, done.stdout, done.stderr)


def begin(*args):
    """Start the command line as a process of its own and come back at once."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        preexec_fn=_heed_hangups,  # noqa: PLW1509  # it only sets a signal
    )  # fmt: skip


def _heed_hangups():
    """Tests may run under nohup, whose children ignore hang-ups too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def environment():
    """The environment in which a Python process finds the same packages as this one, installed or not."""
    extra = [p for p in sys.path if (p and Path(p, "unet_engine").is_dir()) or Path(p, "unet_export").is_dir()]
    paths = [p for p in extra if not p.endswith("-packages")] + os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in paths if p))}
