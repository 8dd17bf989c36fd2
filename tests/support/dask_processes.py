"""For tests of clusters: schedulers and workers as processes, certificates, who listens, what pages answer."""

import datetime
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from support.command_line import environment
from support.waiting import wait_until
from unet_engine.settings.settings import Settings


@dataclass(frozen=True)
class Started:
    process: subprocess.Popen
    address: str
    log: Path


@contextmanager
def dask(*arguments, **variables):
    """``dask scheduler`` or ``dask worker`` with `arguments`; yields it once it says its address."""
    kind, *rest = map(str, arguments)
    log = Path(f"{kind}-{time.monotonic_ns()}.log").absolute()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{kind}", *rest],
            stdout=out, stderr=subprocess.STDOUT, env={**environment(), **variables},
        )  # fmt: skip
    try:
        pattern = r"Scheduler at:\s+(\S+)" if kind == "scheduler" else r"Start worker at:\s+(\S+)"
        yield Started(process, said(log, pattern)[1], log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def said(log, pattern):
    """The first match of `pattern` in a log, as soon as it is there."""
    return wait_until(lambda: re.search(pattern, log.read_text()), told=log.read_text)


def certificates(folder):
    """An authority and one certificate of it: the paths of ca, certificate and key as options of a run."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    Path(folder).mkdir(parents=True, exist_ok=True)
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certify(name, public, *, ca):
        subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, "authority"))
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(authority, hashes.SHA256())
        )  # fmt: skip

    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    files = {
        "tls_ca": certify("authority", authority.public_key(), ca=True).public_bytes(pem),
        "tls_cert": certify("engine", key.public_key(), ca=False).public_bytes(pem),
        "tls_key": key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain),
    }
    for name, content in files.items():
        Path(folder, f"{name}.pem").write_bytes(content)
    Path(folder, "tls_key.pem").chmod(0o600)
    return {name: os.path.join(folder, f"{name}.pem") for name in files}  # noqa: PTH118  # settings are text


def tls_arguments(options):
    """The options of a run as those of Dask's commands."""
    return ["--tls-ca-file", options["tls_ca"], "--tls-cert", options["tls_cert"], "--tls-key", options["tls_key"]]


def settings(**given):
    return Settings(input="scan.zarr", **given)


def listening(pids):
    """Addresses on which processes accept connections: (address, port, process)."""
    found = []
    for pid in pids:
        found += [
            (c.laddr.ip, c.laddr.port, pid)
            for c in psutil.Process(pid).net_connections()
            if c.status == psutil.CONN_LISTEN
        ]
    return found


def workers_of(cluster):
    """Process of each worker, by address."""
    return cluster.client.run(os.getpid)


def get(url, **headers):
    """Status and headers of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers
