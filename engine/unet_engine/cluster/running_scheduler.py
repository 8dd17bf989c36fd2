"""A Dask scheduler that somebody else started: its address, and what to say where it cannot be used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from unet_engine.cluster.dask_settings import check_protocol, quiet, security
from unet_engine.errors import ClusterError
from unet_engine.settings.settings import Settings
from unet_engine.text_files import Missing, NotReadable, read_json

if TYPE_CHECKING:
    from distributed import Client, Security

CONNECT_SECONDS = 15.0
"""How long a scheduler may take to answer, unless Dask's ``distributed.comm.timeouts.connect`` was changed."""
PATIENCE = 5.0
"""How long it may take until something listens there at all, or its host is known."""
_DASKS_OWN = "30s"


@contextmanager
def client_of(settings: Settings) -> Iterator[Client]:
    """A client of ``--scheduler``. Raises `ClusterError` where the address makes no sense or nobody usable answers
    there."""
    address = address_of(str(settings.scheduler))
    check_protocol(address.partition("://")[0])
    secure = security(settings)
    encrypted = address.startswith("tls://")
    if secure and not encrypted:
        raise ClusterError(
            f"--scheduler {address} is not encrypted, but --tls-ca is given; write tls:// or leave out --tls-*"
        )
    if encrypted and not secure and not _configured():
        raise ClusterError(f"--scheduler {address} is encrypted; give --tls-ca, --tls-cert and --tls-key")
    with quiet():
        client = _connected(address, secure)
        try:
            yield client
        finally:
            with suppress(Exception):  # the scheduler may be gone
                client.close(timeout=5)


def address_of(given: str) -> str:
    """An address Dask can use, from ``tcp://host:port``, ``host:port`` or a scheduler file. Raises `ClusterError`."""
    if "://" not in given and (given.endswith(".json") or "/" in given or Path(given).exists()):
        return _from_file(given)
    scheme, _, place = given.rpartition("://")
    if scheme not in ("", "tcp", "tls", "ws", "wss", "ucx"):
        raise ClusterError(f"--scheduler {given}: {scheme}:// is not known; write tcp://host:port or tls://host:port")
    host, _, port = place.rpartition(":")
    if (
        not re.fullmatch(r"\[[0-9a-fA-F:.%]+\]|[\w.-]+", host)
        or not re.fullmatch("[0-9]{1,5}", port)
        or not 0 < int(port) < 65536
    ):
        raise ClusterError(f"--scheduler {given} is neither an address nor a file; write e.g. tcp://node7:8786")
    return f"{scheme or 'tcp'}://{place}"


def _from_file(path: str) -> str:
    start = f"start the scheduler with --scheduler-file {path}, where this machine sees it too"
    try:
        said = read_json(Path(path))
    except Missing as error:
        raise ClusterError(f"scheduler file {path}: there is no such file; {start}") from error
    except NotReadable as error:
        raise ClusterError(f"{path} is not a scheduler file of Dask's: it {error}; {start}") from error
    address = said.get("address") if isinstance(said, dict) else None
    if not isinstance(address, str) or "://" not in address:
        raise ClusterError(f"{path} is not a scheduler file of Dask's: it names no address; {start}")
    return address_of(address)


def _configured() -> bool:
    """Whether Dask's own configuration brings certificates."""
    from distributed import Security

    with suppress(OSError):
        return bool(Security().get_connection_args("client").get("ssl_context"))
    return False


def _connected(address: str, secure: Security | None) -> Client:
    import dask
    from dask.utils import parse_timedelta
    from distributed import Client
    from distributed.utils import LoopRunner

    chosen = dask.config.get("distributed.comm.timeouts.connect")
    timeout = CONNECT_SECONDS if chosen == _DASKS_OWN else chosen
    try:
        # asked first by hand, since a client that could not connect goes on trying until the interpreter ends, and
        # complains then (and Dask has a limit for connecting, but none for the handshake after it)
        limit = parse_timedelta(timeout)
        LoopRunner().run_sync(asyncio.wait_for, _ask(address, secure, limit), limit + 5)
        return Client(address, timeout=timeout, set_as_default=False, name="unet-engine", security=secure)
    except Exception as error:
        raise ClusterError(_explained(address, _causes(error))) from error


async def _ask(address: str, secure: Security | None, timeout: float) -> None:
    """Have the server at `address` say that it is a scheduler of Dask's. Raises what connecting raises."""
    from distributed import Security
    from distributed.comm import connect

    options = (secure or Security()).get_connection_args("client")
    host, _, port = address.partition("://")[2].rpartition(":")
    # a name that nobody knows is said at once: Dask would go on asking for it
    await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port))
    try:
        comm = await connect(address, timeout=min(timeout, PATIENCE), **options)
    except OSError as error:
        if re.search(_ABSENT, _causes(error), re.IGNORECASE):
            raise
        comm = await connect(address, timeout=max(1.0, timeout - PATIENCE), **options)
    try:
        await comm.write({"op": "identity", "reply": True})
        answer = await comm.read()
    finally:
        comm.abort()
    if answer.get("type") != "Scheduler":
        raise OSError(_WORKER)


def _causes(error: BaseException) -> str:
    """Everything an error says, with what it came from: Dask tells the reason only there."""
    lines, seen = [], set[int]()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines.append(str(current) or type(current).__name__)
        current = current.__cause__ or current.__context__
    return " ".join(lines)


def _explained(address: str, causes: str) -> str:
    for sign, meaning in _SIGNS:
        if re.search(sign, causes, re.IGNORECASE):
            return f"--scheduler {address}: {meaning}"
    return f"--scheduler {address}: {causes[:200]}; check the address, and that a Dask scheduler runs there"


_WORKER = "it is a worker, or some other part of Dask"
_NOT_DASK = (
    "what listens there is no Dask scheduler, or one that speaks TLS; check the address, or write tls:// and give "
    "--tls-*"
)
_NO_HOST = "name or service not known|nodename nor servname|no address associated|name resolution"
_ABSENT = f"refused|{_NO_HOST}"
"""What is said where nothing listens at an address: waiting longer is no use."""
_SIGNS = [
    (_WORKER, "this is no scheduler but a worker; give the scheduler's address"),
    (
        "certificate verify failed|unknown ca|bad certificate",
        "its certificate and ours are of different authorities; check --tls-*",
    ),
    ("convert to SSL|wrong version number|record layer|violation of protocol", "it does not speak TLS; write tcp://"),
    ("refused", "no scheduler listens there; start one with: dask scheduler"),
    (_NO_HOST, "there is no such host; check its name"),
    ("unreachable|no route", "this machine has no way to it; check the address and what lies between"),
    ("timed out", "nobody answers there; check the address, and that a scheduler runs"),
    ("reset by peer|closed|allocate|unpack|frame|^TimeoutError", _NOT_DASK),
]
"""What Dask's errors contain, and what it means for the user. The first that is found counts."""
