"""Dask's dashboard: where it listens, which token it asks for, and the link for the user."""

from __future__ import annotations

import re
import secrets
import socket
import warnings
from dataclasses import dataclass
from typing import Any

from unet_engine.errors import ClusterError, SettingsError
from unet_engine.redaction import show_on_terminals
from unet_engine.settings.settings import Settings


@dataclass(frozen=True)
class Dashboard:
    """The pages of a scheduler of ours."""

    place: tuple[str, int] | None
    """Host and port, 0 for any; None for no pages at all."""
    token: str
    shown: bool
    """Whether the link carries the token. One that the user chose may be in use elsewhere and is not printed."""
    notes: tuple[str, ...] = ()

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """Arguments of Dask's `Scheduler`, and its class as ``cls``. It always opens a port for pages; without `place`
        it is closed again."""
        from unet_engine.cluster.token_gate import guarded_scheduler

        return {
            "cls": guarded_scheduler(self.token if self.place else None),
            "dashboard": self.place is not None,
            "dashboard_address": [self.place or ("127.0.0.1", 0)],
        }

    def link(self, port: int) -> str | None:
        """Where the pages are, once they listen on `port`."""
        import dask

        if self.place is None:
            return None
        host = self.place[0]
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        scheme = "https" if dask.config.get("distributed.scheduler.dashboard.tls.cert") else "http"
        shown = f"?token={self.token}" if self.shown else ""
        if self.shown:
            show_on_terminals(self.token)
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/status{shown}"


def dashboard(settings: Settings) -> Dashboard:
    """What `settings` ask for. Raises `SettingsError` for a malformed place and `ClusterError` for one that is
    taken."""
    place, notes = _place(settings.dashboard), tuple[str, ...]()
    if place and not _has_bokeh():
        place, notes = (
            None,
            ("no dashboard: bokeh is not installed; pip install 'unet-engine[dashboard]', or --dashboard none",),
        )
    return Dashboard(
        place, settings.dashboard_token or secrets.token_urlsafe(), settings.dashboard_token is None, notes
    )


def _has_bokeh() -> bool:
    """Whether there is a bokeh that Dask can use: it says so by failing to import, and warns where the version is not
    to its liking."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import distributed.dashboard.scheduler  # noqa: F401
        except ImportError:
            return False
    return True


def _place(given: str | None) -> tuple[str, int] | None:
    if given == "none":
        return None
    host, _, text = (given or "127.0.0.1:0").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
        raise SettingsError(f"--dashboard {given!r} is not host:port; write e.g. 127.0.0.1:8787, or none")
    host, port = host.strip("[]"), int(text)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:  # the latter for a name that none can be
        # Dask would take another port and print a warning
        raise ClusterError(
            f"--dashboard {given}: cannot listen there: {getattr(error, 'strerror', None) or error}; give another "
            "port, or leave it out"
        ) from error
    return host, port
