"""The engine's command line as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

COMMAND = [sys.executable, "-c", "from unet_engine.commands.cli import main; main()"]
"""What `unet-engine` is, with the Python that this one is."""


def json_of(*words: object) -> dict[str, Any]:
    """The JSON that a command ends with. Raises SystemExit with its last word where it fails."""
    done = subprocess.run([*COMMAND, *map(str, words), "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))
