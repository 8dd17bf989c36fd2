"""Several hosts on one machine: network namespaces, each with an address, joined by a switch that can cut one off.

Nothing is changed outside of the namespaces, which go away with all that runs in them. Needs root and iproute2.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager

from support.command_line import environment
from support.dask_processes import said


class NoHosts(Exception):
    """Why there can be none here."""


@contextmanager
def hosts(count):
    """`count` hosts 10.77.0.1, 10.77.0.2 … that reach each other. Raises `NoHosts` where namespaces cannot be made."""
    if not sys.platform.startswith("linux") or os.geteuid() or not shutil.which("ip"):
        raise NoHosts("network namespaces take Linux, root and iproute2")
    network = Hosts(f"unet{os.getpid()}", count)
    try:
        try:
            network.build()
        except subprocess.CalledProcessError as error:
            raise NoHosts(f"no network namespaces here: {error.stderr.strip()}") from error
        yield network
    finally:
        network.remove()


class Hosts:
    def __init__(self, name, count):
        self._switch = f"{name}s"
        self._names = [f"{name}h{number}" for number in range(1, count + 1)]

    def build(self):
        for name in (self._switch, *self._names):
            _ip("netns", "add", name)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for number, name in enumerate(self._names, 1):
            port = ("-n", self._switch, "link", "set", f"port{number}")
            _ip(
                "-n",
                self._switch,
                "link",
                "add",
                f"port{number}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                name,
            )
            _ip(*port, "master", "bridge")
            _ip(*port, "up")
            _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("netns", "exec", name, "true")

    def address(self, number):
        return f"10.77.0.{number}"

    def cut_off(self, number):
        """No packet reaches the host or leaves it any more. Its processes go on and are told nothing."""
        _ip("-n", self._switch, "link", "set", f"port{number}", "nomaster")

    def join_again(self, number):
        _ip("-n", self._switch, "link", "set", f"port{number}", "master", "bridge")

    def begin(self, number, *command, **options):
        """Start a command on a host."""
        return subprocess.Popen(["ip", "netns", "exec", self._names[number - 1], *map(str, command)], **options)

    @contextmanager
    def dask(self, number, kind, *arguments, log, **variables):
        """``dask scheduler`` or ``dask worker`` on a host, there once it says its address."""
        with log.open("w") as out:
            process = self.begin(
                number, sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments,
                "--host", self.address(number), "--no-dashboard",
                stdout=out, stderr=subprocess.STDOUT, env={**environment(), **variables},
            )  # fmt: skip
        try:
            said(log, r"Scheduler at:\s+(\S+)" if kind == "scheduler" else r"Registered to:\s+(\S+)")
            yield process
        finally:
            self.end(number)
            process.wait()

    def end(self, number):
        """Kill all that runs on a host."""
        for _ in range(50):
            done = subprocess.run(
                ["ip", "netns", "pids", self._names[number - 1]], capture_output=True, text=True, check=False
            )
            if not done.stdout.split():
                return
            for pid in done.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            time.sleep(0.1)

    def remove(self):
        for number in range(1, len(self._names) + 1):
            self.end(number)
        for name in (*self._names, self._switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
