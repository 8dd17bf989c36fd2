"""What must not be shown: passwords, keys and tokens, in URLs, in the environment and in what libraries say.

All text for people goes through `guarded` streams, the messages of our errors are redacted as they are made, and what
is written into files goes through `redacted`. What is a secret is told by where it stands: before the ``@`` of a URL,
as a value behind its ``?``, beside a name such as ``token``; and wherever else the same text shows up.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"

_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)(?:[^\s/?#]*|[^\s/?#:@]*:(?!\d+/)[^\s?#@]*)@")
"""Of a URL. Keys of S3 have slashes that people forget to quote; a number between colon and slash is a port."""
_URL = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://[^\s'\"<>]*")
_VALUE = re.compile(r"([?&;#]([\w.%~$-]+)=)([^\s&;#'\"<>)]*)")
_HARMLESS = {"versionid", "version", "region", "endpoint", "format"}
"""Names of values in URLs that are no secrets."""
_SECRET_NAME = (
    r"[\w.-]*(?:password|passwd|secret|token|signature|credential|api[-_]?key|access[-_]?key|account[-_]?key|sas)[\w-]*"
)
_SAID = re.compile(rf"(?i)(\b{_SECRET_NAME}\s*=\s*)([\"']?)[^\s&;,\"')]+\2")
_QUOTED = re.compile(rf"(?i)([\"'](?:{_SECRET_NAME}|key|sig|auth|pass)[\"']\s*:\s*)([\"'])(?:(?!\2).)*\2")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
_VARIABLE = re.compile(r"(?i)(secret|token|password|passwd|_key|credential|connection_string)s?$")
SHORTEST = 6
"""Characters of what is hidden wherever it stands; shorter ones are words."""

_known: set[str] = set()
_shown: set[str] = set()


def hide(*secrets: str | None) -> None:
    """Hide these texts wherever they show up, from now on."""
    for secret in secrets:
        if secret and len(secret) >= SHORTEST:
            _known.update((secret, quote(secret, safe=""), quote(secret), unquote(secret)))


def hide_in_url(*urls: str | None) -> None:
    """Hide the parts of URLs that are secrets wherever they show up: libraries quote them without the URL."""
    for url in urls:
        for found in _URL.findall(url or ""):
            if user := _USER.match(found):
                hide(*user[0].partition("://")[2][:-1].split(":", 1))
            hide(*(value for _, name, value in _VALUE.findall(found) if name.lower() not in _HARMLESS))


def show_on_terminals(secret: str) -> None:
    """Show this one where a person reads along: in a link, and never where the text goes to a file."""
    _shown.add(secret)


def redacted(value: Any, *, terminal: bool = False) -> Any:
    """Text without its secrets; lists and mappings with all their text so. Other values are what they were."""
    return _redacted(value, _secrets(), terminal=terminal)


def _redacted(value: Any, secrets: Sequence[str], *, terminal: bool = False) -> Any:
    if isinstance(value, str):
        return _text(value, secrets, terminal=terminal)
    if isinstance(value, Mapping):
        return {_redacted(k, secrets): _redacted(v, secrets) for k, v in value.items()}
    if isinstance(value, list):
        return [_redacted(v, secrets) for v in value]
    if isinstance(value, tuple):
        return tuple(_redacted(v, secrets) for v in value)
    return value


def _text(text: str, secrets: Sequence[str], *, terminal: bool) -> str:
    text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    text = _URL.sub(lambda found: _VALUE.sub(lambda v: _value(v, terminal=terminal), found[0]), text)
    text = _SAID.sub(lambda found: _kept(found, terminal=terminal), text)
    text = _QUOTED.sub(rf"\g<1>\g<2>{HIDDEN}\g<2>", text)
    text = _BEARER.sub(rf"\g<1> {HIDDEN}", text)
    for secret in secrets:
        if secret in text and not (terminal and secret in _shown):
            text = text.replace(secret, HIDDEN)
    return text


def _value(found: re.Match[str], *, terminal: bool) -> str:
    keep = found[2].lower() in _HARMLESS or (terminal and found[3] in _shown)
    return found[0] if keep else f"{found[1]}{HIDDEN}"


def _kept(found: re.Match[str], *, terminal: bool) -> str:
    value = found[0].removeprefix(found[1])
    return found[0] if terminal and value in _shown else f"{found[1]}{found[2]}{HIDDEN}{found[2]}"


def _secrets() -> list[str]:
    """All that is hidden wherever it stands, the longest first: one may be part of another."""
    return sorted({*_known, *_from_environment()}, key=len, reverse=True)


def _from_environment() -> set[str]:
    """Values of variables whose names say that they are secrets. A path is none: it says where one lies."""
    return {
        value
        for name, value in os.environ.items()
        if _VARIABLE.search(name) and len(value) >= SHORTEST + 2 and not value.startswith(("/", "~", "."))
    }


class _Guarded:
    """A text stream that writes everything redacted. All else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str | bytes) -> int:
        if isinstance(text, bytes):  # of click, which knows no buffer of ours
            text = text.decode(errors="replace")
        self._stream.write(_text(text, _secrets(), terminal=self._stream.isatty()))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # who wrote bytes there would go past us
            raise AttributeError(name)
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Redact all that is written to stdout and stderr of this process from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Guarded):
            setattr(sys, name, _Guarded(stream))
