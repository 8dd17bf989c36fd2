"""Where the command begins: what an interruption says before the command line itself is imported."""

from __future__ import annotations

import os
import signal
import sys

from unet_engine.commands.telling import INTERRUPTED, NOT_BEGUN, speaks_json


def main() -> None:
    """Entry point. A signal while modules are imported ends the process in a line, and not in a traceback of whatever was
    imported just then; nothing is begun yet. `unet_engine.commands.cli.main` heeds signals by itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and shells have some ignored
            signal.signal(number, _end)
    from unet_engine.commands.cli import main

    main()


def _end(signum: int, frame: object) -> None:
    os.write(2, f"unet-engine: {NOT_BEGUN}\n".encode())
    if speaks_json(sys.argv[1:]):
        error = f'{{"type": "Interrupted", "message": "{NOT_BEGUN}", "exit_code": {INTERRUPTED}}}'
        os.write(1, f'{{"error": {error}}}\n'.encode())
    os._exit(INTERRUPTED)
