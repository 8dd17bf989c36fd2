"""A message to a web address once a command has ended, however it ended: what `--notify` sends.

It is for people who are asleep. So nothing about it can change the run: it is sent when all is done, within `LIMIT`
seconds, and where that does not work, that is told and no more. Addresses of this kind often hold the secret that
opens them, so none of it is shown but scheme and host.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from unet_engine.errors import SettingsError, first_line
from unet_engine.redaction import hide, hide_in_url, redacted
from unet_engine.version import version_of

LIMIT = 10.0
"""Seconds for all tries together."""
PAUSES = (0.5, 1.5, 3.0)
"""Seconds before each further try."""
TRIED_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers of servers that may say something else soon."""
LONGEST = 2000
"""Characters of one text."""
MOST = 50
"""Of a list."""


@dataclass(frozen=True)
class Address:
    """Where a message goes."""

    url: str
    """Without user and password."""
    shown: str
    """As it may be shown."""
    authorization: str | None = None

    @classmethod
    def of(cls, url: str) -> Address:
        """What ``--notify`` was given; its secrets are hidden from now on. Raises `SettingsError`, which shows none of
        them."""
        how = "give an address like https://host/path"
        if any(c.isspace() or ord(c) < 32 or ord(c) == 127 for c in url):
            raise SettingsError(f"--notify: there is white space in the address; {how}")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise SettingsError(f"--notify: this is no address; {how}") from None
        if parts.scheme.lower() not in ("http", "https"):
            raise SettingsError(f"--notify: messages go by http or https; {how}")
        if not host:
            raise SettingsError(f"--notify: the address names no host; {how}")
        _hide(url)
        place = f"[{host}]" if ":" in host else host
        place += f":{port}" if port else ""
        shown = f"{parts.scheme.lower()}://{place}"
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        return cls(shown + (path or "/"), shown, _basic(parts.username, parts.password))


def _hide(url: str) -> None:
    parts = urlsplit(url)
    hide_in_url(url)
    hide(url, *(part for part in parts.path.split("/") if len(part) >= 16), parts.password)
    if len(parts.path) >= 24:
        hide(parts.path)


def _basic(user: str | None, password: str | None) -> str | None:
    from base64 import b64encode

    if user is None:
        return None
    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode()


def send(address: Address, facts: Mapping[str, Any], limit: float = LIMIT) -> str | None:
    """Post `facts` as JSON, without secrets. Returns why that did not work, or None. Never raises, and is back within
    `limit` seconds, whatever the other side does."""
    said: list[str | None] = [f"no answer within {limit:g} s"]

    def post() -> None:
        try:
            body = json.dumps(_short(redacted(_short(dict(facts), 2 * LONGEST))), allow_nan=False).encode()
            said[0] = _tried(address, body, time.monotonic() + limit)
        except Exception as error:
            said[0] = first_line(error)

    try:
        thread = threading.Thread(target=post, daemon=True, name="notify")
        thread.start()
        thread.join(limit)
    except RuntimeError as error:  # no thread to be had
        return str(error)
    return said[0]


def _tried(address: Address, body: bytes, until: float) -> str | None:
    for pause in (*PAUSES, None):
        why, again = _posted(address, body, until)
        if why is None or not again or pause is None or time.monotonic() + pause >= until:
            return why
        time.sleep(pause)
    return None


def _posted(address: Address, body: bytes, until: float) -> tuple[str | None, bool]:
    """Why it did not work, and whether another try may."""
    import http.client
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Staying(HTTPRedirectHandler):
        """A message is sent to the address that was given, and to no other that a server names."""

        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    headers = {"Content-Type": "application/json", "User-Agent": f"unet-engine/{version_of('unet-engine')}"}
    if address.authorization:
        headers["Authorization"] = address.authorization
    request = Request(address.url, body, headers, method="POST")  # `Address` admits http and https alone
    try:
        with build_opener(Staying).open(request, timeout=max(0.1, until - time.monotonic())):
            return None, False
    except HTTPError as error:
        error.close()
        led = "; give the address that it leads to" if 300 <= error.code < 400 else ""
        return f"the server answered {error.code}{led}", error.code in TRIED_AGAIN
    except URLError as error:  # around what went wrong, or words
        return first_line(error.reason if isinstance(error.reason, Exception) else error), True
    except (OSError, http.client.HTTPException) as error:
        return first_line(error), True


def _short(value: Any, longest: int = LONGEST) -> Any:
    """The same with long texts and lists cut off. Done before redaction, which reads every character, and after it:
    half a secret at the end of the first cut is not left by the second."""
    if isinstance(value, str) and len(value) > longest:
        return value[: longest - 1] + "…"
    if isinstance(value, Mapping):
        return {key: _short(part, longest) for key, part in value.items()}
    if isinstance(value, list | tuple):
        kept = [_short(part, longest) for part in value[: MOST + 1]]
        return kept if len(value) <= MOST + 1 else [*kept[:MOST], f"… and {len(value) - MOST} more"]
    return value
