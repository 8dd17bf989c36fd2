"""A scheduler that runs already, and what is said of one that cannot be used."""

import re
import time
from types import SimpleNamespace

import pytest

from support.dask_processes import certificates, dask, settings, tls_arguments, workers_of
from unet_engine.cluster import connection as clusters
from unet_engine.cluster import running_scheduler
from unet_engine.errors import ClusterError, SettingsError


def test_a_running_scheduler_by_address_and_by_file(tmp_path):
    file = tmp_path / "scheduler.json"
    with dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", file) as scheduler:
        address = scheduler.address
        with dask("worker", address, "--no-dashboard"):
            for given in (address, address.removeprefix("tcp://"), str(file)):
                with clusters.connect(settings(scheduler=given), None, 60) as cluster:
                    clusters.wait_for_workers(cluster, print)
                    clusters.check_versions(cluster.client)
                    assert cluster.kind == "scheduler"
                    assert cluster.client.submit(sum, [1, 2]).result() == 3
        with clusters.connect(settings(scheduler=address), None, 60) as cluster:  # which went on
            assert cluster.expected == 0
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(clusters, "WORKER_SECONDS", 0.5)
                with pytest.raises(
                    ClusterError, match=f"{address} has no workers; start some with: dask worker {address}"
                ):
                    clusters.wait_for_workers(cluster, print)


def test_a_scheduler_that_ended_meanwhile():
    """As between two volumes of one command: Dask knows of no workers then."""
    client = SimpleNamespace(scheduler_info=lambda **_: {"type": "Scheduler"})
    with pytest.raises(ClusterError, match=r"the connection to the scheduler is lost.*--resume"):
        clusters.wait_for_workers(clusters.Cluster(client, "scheduler", 1, None), print)


def refusal(**given):
    """What is said of a cluster that cannot be had, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(ClusterError) as caught, clusters.connect(settings(**given), None, 60):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value), time.monotonic() - begun


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "neither an address nor a file"),
        ("tcp://here", "neither an address nor a file"),
        ("tcp://here:0", "neither an address nor a file"),
        ("tcp://:8786", "neither an address nor a file"),
        ("http://here:80", "http:// is not known; write tcp"),
        ("none.json", "there is no such file; start the scheduler with --scheduler-file none.json"),
        ("/nowhere/at/all", "there is no such file"),
        ("tls://127.0.0.1:8786", "is encrypted; give --tls-ca"),
    ],
)
def test_addresses_that_make_no_sense(address, message):
    said, seconds = refusal(scheduler=address)
    assert message in said
    assert address in said
    assert seconds < 5


@pytest.mark.parametrize("content", ["", "{}", "[1]", '"text"', "\0"])
def test_files_that_are_not_a_schedulers(tmp_path, content):
    file = tmp_path / "s.json"
    file.write_text(content)
    assert f"{file} is not a scheduler file of Dask's" in refusal(scheduler=str(file))[0]


def test_nobody_there(monkeypatch):
    monkeypatch.setattr(running_scheduler, "CONNECT_SECONDS", 1.0)
    said, seconds = refusal(scheduler="tcp://127.0.0.1:9")
    assert re.search("no scheduler listens there; start one with: dask scheduler|nobody answers there", said)
    assert seconds < 5


def test_how_long_to_try_is_dasks_setting_where_that_was_changed():
    import dask as dask_itself

    with dask_itself.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert refusal(scheduler="tcp://127.0.0.1:9")[1] < 5


def test_somebody_else_there(monkeypatch):
    monkeypatch.setattr(running_scheduler, "CONNECT_SECONDS", 1.0)
    monkeypatch.setattr(clusters, "own_certificates", lambda: None)  # they are others', and speak in plain
    with clusters.connect(settings(workers=1), None, 60) as cluster:
        worker = next(iter(workers_of(cluster)))
        assert "no scheduler but a worker" in refusal(scheduler=worker)[0]
        page = cluster.dashboard.removeprefix("http://").partition("/")[0]
        assert "no Dask scheduler" in refusal(scheduler=f"tcp://{page}")[0]


def test_encrypted_with_the_right_certificates_and_refused_with_others(tmp_path):
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    place = ("--host", "tls://127.0.0.1", "--port", 0, "--no-dashboard")
    with dask("scheduler", *place, *tls_arguments(ours)) as scheduler:
        address = scheduler.address
        with (
            dask("worker", address, "--host", "127.0.0.1", *tls_arguments(ours)),
            clusters.connect(settings(scheduler=address, **ours), None, 60) as cluster,
        ):
            clusters.wait_for_workers(cluster, print)
            assert all(worker.startswith("tls://") for worker in workers_of(cluster))
        assert "different authorities" in refusal(scheduler=address, **others)[0]
        plain = address.replace("tls", "tcp")
        assert "one that speaks TLS" in refusal(scheduler=plain)[0]
        assert "is not encrypted, but --tls-ca is given" in refusal(scheduler=plain, **ours)[0]


def test_encrypted_workers_of_our_own(tmp_path):
    with clusters.connect(settings(workers=1, **certificates(tmp_path)), None, 60) as cluster:
        assert all(worker.startswith("tls://") for worker in workers_of(cluster))
        address = cluster.client.scheduler_info()["address"]
        assert "is encrypted" in refusal(scheduler=address)[0]


def test_certificates_that_cannot_be_used(tmp_path):
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    assert "there is no such file" in refusal(scheduler="tls://a:1", **{**ours, "tls_ca": "none.pem"})[0]
    assert "cannot be used" in refusal(scheduler="tls://a:1", **{**ours, "tls_key": others["tls_key"]})[0]


def test_tls_with_an_unencrypted_scheduler(tmp_path):
    with dask("scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard") as scheduler:
        said = refusal(scheduler=scheduler.address.replace("tcp", "tls"), **certificates(tmp_path))[0]
    assert "it does not speak TLS; write tcp://" in said


def test_a_dashboard_is_not_ours_to_place_on_a_running_scheduler():
    with (
        pytest.raises(SettingsError, match="the dashboard is the scheduler's own"),
        clusters.connect(settings(scheduler="tcp://a:1", dashboard="127.0.0.1:0"), None, 60),
    ):
        pass
