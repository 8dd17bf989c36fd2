"""What every end of a command has in common, known before the command line is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code of what was ended by a signal."""
NOT_BEGUN = "interrupted before anything was written; run the same command again"
"""What is said of what was ended so early."""
JSON = "UNET_ENGINE_JSON"
"""Environment variable: as ``--json`` of every command."""


def speaks_json(args: Sequence[str]) -> bool:
    """Whether a command of these arguments ends with JSON, where it fails as well."""
    return "--json" in args or os.environ.get(JSON, "").strip().lower() in {"1", "true", "t", "yes", "y", "on"}
