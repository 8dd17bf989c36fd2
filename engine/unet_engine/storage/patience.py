"""Patience with stores that are reached over a network: what passes is asked for again, with pauses that grow and are
drawn at random; what does not is told in one line, with key and cause.

A pause is drawn between half of and all of what it may be, so that many workers do not come back at the same moment. A
store that says how long it wants to be left alone (``Retry-After``) is left alone so long.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from unet_engine.errors import StoreError
from unet_engine.units import span

SECONDS = "UNET_ENGINE_STORE_SECONDS"
"""Environment variable: how long a request is asked for again; 0 for once only."""
STALLED = "UNET_ENGINE_STORE_STALLED"
"""Environment variable: how long no byte may come before a request is given up, and asked for again."""
_DEFAULTS = {SECONDS: 60.0, STALLED: 30.0}
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds. Each may be twice as long as the one before."""
LONGEST_WISH = 120.0
"""Seconds that a store may ask to be left alone for, at most."""

T = TypeVar("T")


class Answered(Exception):
    """An answer of a web server that is none to the question."""

    def __init__(self, status: int, code: str = "", retry_after: str | None = None) -> None:
        super().__init__(f"{status} {code}")
        self.status, self.code, self.retry_after = status, code, retry_after


class Broken(Exception):
    """An answer that is shorter or longer than it says, or than was asked for."""


@dataclass(frozen=True)
class Trouble:
    """What went wrong with one request."""

    words: str
    passes: bool
    """Whether it may be gone in a moment."""
    refused: bool = False
    """Whether credentials were not taken, which other ones may be."""
    wish: float = 0.0
    """Seconds for which the store wants to be left alone."""
    unmet: bool = False
    """Whether nobody was there at all: more often a slip of the user than a fault of the network."""
    lacking: bool = False
    """Whether the store says that it has no such thing to do."""


def limit(name: str) -> float:
    """The seconds that the environment sets under `name`."""
    try:
        found = float(os.environ.get(name, ""))
    except ValueError:
        return _DEFAULTS[name]
    return found if 0 <= found < 1e6 else _DEFAULTS[name]


_ONCE: ContextVar[bool] = ContextVar("asked once only", default=False)


@contextmanager
def once_only() -> Iterator[None]:
    """What is asked meanwhile, by this thread, is not asked again: to tidy up behind a store that did not answer."""
    token = _ONCE.set(True)
    try:
        yield
    finally:
        _ONCE.reset(token)


async def patiently(ask: Callable[[], Awaitable[T]], what: str, renew: Callable[[], None] = lambda: None) -> T:
    """What `ask` gives, asked again while it fails in a way that may pass. `renew` is called once where credentials
    were refused: others may be there by now. What is no trouble of a store is raised as it is.

    Raises `StoreError` naming `what`.
    """
    begun, tries, renewed = time.monotonic(), 0, False
    while True:
        tries += 1
        try:
            return await ask()
        except Exception as error:
            found = trouble(error)
            if found is None:
                raise
            pause = max(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)), found.wish)
            pause *= random.uniform(1.0, 1.2) if found.wish else random.uniform(0.5, 1.0)
            spent = time.monotonic() - begun
            left = (0 if _ONCE.get() else limit(SECONDS)) / (4 if found.unmet else 1) - spent - pause
            again = found.passes and left > 0
            if found.refused and not renewed:
                renewed = again = True
                renew()
            if not again:
                often = f", asked {tries} times in {span(spent)}" if tries > 1 else ""
                raise StoreError(
                    key=what, cause=found.words + often, refused=found.refused, lacking=found.lacking
                ) from error
        await asyncio.sleep(pause)


async def in_time(answer: Awaitable[T], more: float = 0.0) -> T:
    """What `answer` gives. Raises `TimeoutError` where it does not come within the time that a store may be silent for,
    and `more` seconds."""
    return await asyncio.wait_for(answer, limit(STALLED) + more)


# --- what errors mean ---


def trouble(error: BaseException) -> Trouble | None:
    """What `error`, of whatever library, says of the store; None where it says something else: that nothing is there,
    or that the question was wrong."""
    if isinstance(error, StoreError | FileNotFoundError | IsADirectoryError | NotADirectoryError | KeyError):
        return None
    if type(error).__module__.startswith("obstore") and type(error).__name__ in _CONDITIONS:
        return None
    for cause in _causes(error):
        if found := _trouble(cause):
            return found
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _trouble(error: BaseException) -> Trouble | None:
    status, code, wish = _status(error)
    if status is not None:
        return _of_status(status, code, wish) if status >= 300 and status not in (404, 410) else None
    if isinstance(error, Broken):
        return Trouble(str(error), passes=True)
    if isinstance(error, TimeoutError):
        return Trouble(f"no answer within {limit(STALLED):g} s", passes=True)
    if isinstance(error, PermissionError):
        return Trouble(_brief(error), passes=False, refused=True)
    if isinstance(error, ConnectionError) or getattr(error, "errno", None) in _NETWORK:
        return Trouble(_brief(error), passes=True, unmet=isinstance(error, ConnectionRefusedError))
    return _of_library(error)


_CONDITIONS = ("AlreadyExistsError", "PreconditionError")
"""What obstore raises where a request was done on a condition that does not hold."""
_NETWORK = {
    errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ECONNRESET,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE,
}  # fmt: skip


def _status(error: BaseException) -> tuple[int | None, str, float]:
    """The status of the answer that `error` tells of, what the store calls that, and for how long it wants to be left
    alone."""
    if isinstance(error, Answered):
        return error.status, error.code, _seconds(error.retry_after)
    said: Any = getattr(error, "response", None)
    if isinstance(said, dict) and "ResponseMetadata" in said:  # botocore
        about = said["ResponseMetadata"]
        code = str(said.get("Error", {}).get("Code", ""))
        return about.get("HTTPStatusCode"), code, _seconds(about.get("HTTPHeaders", {}).get("retry-after"))
    kind = type(error).__module__.partition(".")[0]
    if kind == "obstore":
        found = re.search(r"status code: (\d{3})", str(error))
        named = re.search(r"<Code>([^<]{1,80})</Code>", str(error))
        return (int(found[1]) if found else None), named[1] if named else "", 0.0
    if kind in ("aiohttp", "gcsfs", "azure", "huggingface_hub", "requests", "httpx"):
        for name in ("status",) if kind == "aiohttp" else ("status", "status_code", "code"):
            number = getattr(error, name, None) or getattr(said, name, None)
            if str(number).isdigit():
                return int(str(number)), "", _seconds((getattr(error, "headers", None) or {}).get("Retry-After"))
    return None, "", 0.0


def _seconds(said: Any) -> float:
    """What stands behind ``Retry-After``; dates are not looked at (RFC 9110, 10.2.3)."""
    return min(float(said), LONGEST_WISH) if str(said).isdigit() else 0.0


_PASSING = (408, 425, 429)
_PASSING_CODES = ("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "BadDigest")


def _of_status(status: int, code: str, wish: float) -> Trouble:
    try:
        words = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        words = str(status)
    words += f" ({code})" if code else ""
    refused = status in (401, 403) or code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
    passes = (status >= 500 and status not in (501, 505)) or status in _PASSING or code.startswith(_PASSING_CODES)
    return Trouble(words, passes=passes and not refused, refused=refused, wish=wish, lacking=status == 501)


def _of_library(error: BaseException) -> Trouble | None:
    kind, name, text = type(error).__module__.partition(".")[0], type(error).__name__, str(error)
    if kind == "obstore":
        if name in ("PermissionDeniedError", "UnauthenticatedError"):
            return Trouble(_brief(error), passes=False, refused=True)
        if name != "GenericError" or "builder error" in text:
            return None if name == "NotSupportedError" else _final(error)
        passes = any(word in text for word in _OF_OBSTORE)
        return Trouble(_of_obstore(text), passes=passes, unmet="kind: Connect" in text)
    if kind == "aiohttp" and name != "InvalidURL":
        return _of_aiohttp(error, name)
    if kind in ("botocore", "aiobotocore"):
        passes = name in _OF_BOTOCORE
        return Trouble(_brief(error), passes=passes, unmet=name == "EndpointConnectionError") if passes else None
    return None


def _of_aiohttp(error: BaseException, name: str) -> Trouble:
    if "Redirect" in name:
        what = "without end" if name == "TooManyRedirects" else "to what is no web address"
        return Trouble(f"the server sends on {what}", passes=False)
    words = "the answer was cut off" if name == "ClientPayloadError" else _brief(error)
    return Trouble(words, passes=True, unmet=name.startswith("ClientConnector"))


_OF_OBSTORE = (
    "HTTP error",
    "timed out",
    "kind: Interrupted",
    "parse",
    "Got invalid",
    "invalid list response",
    "Content-Length",
)
"""Words in what may pass: no answer, or one that was cut off and makes no sense."""
_OF_BOTOCORE = (
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError", "ConnectionClosedError",
    "ResponseStreamingError", "IncompleteReadError", "ConnectionError",
)  # fmt: skip


def _final(error: BaseException) -> Trouble:
    return Trouble(_brief(error), passes=False)


def _of_obstore(text: str) -> str:
    """The cause in what obstore says: the innermost reason that it debugs, else its first line."""
    if "IncompleteBody" in text or "kind: Interrupted" in text:
        return "the answer was cut off"
    if "kind: Timeout" in text or "TimedOut" in text:
        return "no answer in time"
    if "kind: Connect" in text:
        found = re.search(r'message: "([^"]{1,80})"', text)
        return f"nobody answers there ({found[1]})" if found else "nobody answers there"
    first = text.strip().splitlines()[0]
    return first.rpartition(" - ")[2] if " - " in first else first[:200]


def _brief(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
