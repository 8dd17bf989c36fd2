"""Loopback is open to every user of the machine: none but the one who began a run gets in."""

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.command_line import environment
from support.dask_processes import listening, settings, workers_of
from unet_engine.cluster import connection as clusters
from unet_engine.cluster.own_user import own_folder
from unet_engine.errors import ClusterError

NOBODY = 65534

ATTACK = """
import asyncio, json, os, sys
from distributed import Security
from distributed.core import connect
from distributed.protocol.serialize import to_serialize

class Owned:
    def __reduce__(self):
        return os.system, (f"touch {sys.argv[2]}",)

async def attack(address, security):
    options = security.get_connection_args("client")
    comm = await connect(address, timeout=float(sys.argv[4]), **options)
    await comm.write({"op": "run", "function": to_serialize(Owned()), "args": b"", "kwargs": b"", "reply": True,
                      "workers": None, "wait": True, "nanny": False})
    return str(await comm.read())

async def answer(address, security):
    try:
        return await asyncio.wait_for(attack(address, security), 2 * float(sys.argv[4]))
    except Exception as error:
        return f"refused: {type(error).__name__}"

async def main():
    ways = [(f"{scheme}://{place}", security) for place in json.loads(sys.argv[1])
            for scheme, security in (("tcp", Security()), ("tls", mine))]
    print(json.dumps(dict(zip([w[0] for w in ways], await asyncio.gather(*(answer(*w) for w in ways))))))
    sys.stdout.flush()
    os._exit(0)

mine = Security.temporary()
os.environ["HOME"] = "/nonexistent"
if os.getuid() == 0:
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def local():
    with clusters.connect(settings(workers=2), 2**30, 60) as cluster:
        yield cluster


def attacked(places, owned, seconds=3):
    """What each way in answers to another user, who tries to have a file made."""
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, json.dumps(places), str(owned), str(NOBODY), str(seconds)],
        capture_output=True, text=True, timeout=200,
        env=environment(), cwd="/", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_another_user_gets_nothing_run_by_scheduler_workers_or_nannies(local):
    """Each port that the run's processes listen on is tried, in plain and with certificates of the attacker's own."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    pids = [os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))]
    places = sorted({f"{host}:{port}" for host, port, _ in listening(pids)})
    assert len(places) >= 5  # scheduler, its pages, two nannies, two workers
    said = attacked(places, folder / "owned")
    assert len(said) == 2 * len(places)
    assert {answer.partition(":")[0] for answer in said.values()} == {"refused"}, said
    assert not (folder / "owned").exists()
    folder.rmdir()
    assert len(workers_of(local)) == 2  # nor was anything brought down


def test_the_attack_works_where_nothing_keeps_it_out(tmp_path):
    """What the test above rests on: on a plain cluster it succeeds."""
    import tempfile

    from distributed import LocalCluster

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
                      dashboard_address=None) as plain:  # fmt: skip
        attacked([next(iter(plain.workers.values())).address.removeprefix("tcp://")], folder / "owned", seconds=60)
    assert (folder / "owned").exists()
    (folder / "owned").unlink()
    folder.rmdir()


def test_keys_lie_in_no_file_that_others_read_and_workers_write_where_nobody_else_does(local):
    folders = local.client.run(lambda dask_worker: dask_worker.local_directory)
    for folder in folders.values():
        assert Path(folder).is_relative_to(own_folder())
    assert stat.S_IMODE(Path(own_folder()).stat().st_mode) == 0o700
    assert local.client.security.tls_client_key.startswith("-----BEGIN")  # in memory


def test_two_runs_do_not_know_each_others_certificates(local):
    with clusters.connect(settings(workers=1), 2**30, 60) as other:
        from distributed.core import connect

        async def knock():
            options = other.client.security.get_connection_args("client")
            await connect(local.client.scheduler.address, timeout=3, **options)

        with pytest.raises(OSError):
            asyncio.run(knock())


@pytest.mark.parametrize("taken", ["by a link", "by another", "open to all"])
def test_a_folder_that_somebody_else_made_is_not_used(taken, tmp_path, monkeypatch):
    import dask

    place = tmp_path / f"unet-engine-{os.getuid()}"
    if taken == "by a link":
        (tmp_path / "theirs").mkdir()
        place.symlink_to("theirs")
    else:
        place.mkdir()
        place.chmod(0o700 if taken == "by another" else 0o777)
        if taken == "by another":
            if os.getuid():
                pytest.skip("needs root to make a folder of another user")
            os.chown(place, NOBODY, NOBODY)
    with dask.config.set({"temporary-directory": str(tmp_path)}):
        found = Path(own_folder())
    assert found != place
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_without_cryptography_the_run_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with (
        pytest.raises(ClusterError, match="pip install cryptography"),
        clusters.connect(settings(workers=1), 2**30, 60),
    ):
        pass
