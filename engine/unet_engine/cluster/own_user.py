"""What keeps other users of this machine out of the processes of a run: certificates that only they know, and a folder
that only its user may write.

Loopback is no wall: every user of a machine can connect to it, and whoever can talk to Dask may have it run code.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from unet_engine.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Security


def own_certificates() -> Security:
    """Certificates made for one run, for client, scheduler and workers. They are handed on in memory; who brings none
    of them is not talked to."""
    from distributed import Security

    try:
        return Security.temporary()
    except ImportError as error:
        raise ClusterError(
            "processes of one run talk over TLS, which needs cryptography; run: pip install cryptography, "
            "or give certificates of your own with --tls-ca, --tls-cert and --tls-key"
        ) from error


def own_folder() -> str:
    """Where workers keep what Dask wants a folder for, and from where they may import: writable by this user alone.

    It is the same for all runs, so that Dask finds and removes what killed ones left. Raises `ClusterError` where it
    cannot be made.
    """
    import dask

    base = Path(dask.config.get("temporary-directory") or tempfile.gettempdir())
    folder = base / f"unet-engine-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder):
            return str(folder)
        return tempfile.mkdtemp(prefix="unet-engine-", dir=base)  # somebody else was there first
    except OSError as error:
        raise ClusterError(
            f"{folder} cannot be made: {error.strerror}; set TMPDIR to a folder that can be written"
        ) from error


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, no link, that nobody else may write."""
    found = folder.lstat()
    if not hasattr(os, "getuid"):
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
