"""How workers of this machine send halos: TCP by default, UCX where it is asked for and installed."""

import importlib.util
import os
import sys

import numpy as np
import pytest

import unet_engine
from support.command_line import cli
from support.dask_processes import listening, settings, workers_of
from support.volumes import fake_model, make_volume, result_of
from unet_engine.cluster import connection as clusters
from unet_engine.cluster import dask_settings, local_workers, running_scheduler
from unet_engine.errors import ClusterError, SettingsError
from unet_engine.settings.settings import Settings

HAS_UCX = importlib.util.find_spec("distributed_ucxx") is not None


@pytest.fixture
def no_ucx(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed_ucxx", None)
    monkeypatch.setattr(
        dask_settings.importlib.util, "find_spec", lambda name: None if name == "distributed_ucxx" else object()
    )


def test_a_missing_package_is_one_line(tmp_path, no_ucx):
    volume = make_volume(tmp_path / "v.zarr", np.ones((8, 8, 8), np.uint8))
    said = cli("run", "--in", volume, "--model", fake_model(tmp_path), "--workers", 2, "--protocol", "ucx")
    assert said.code == ClusterError.exit_code
    assert said.err.strip().splitlines() == [
        "unet-engine: ucx needs distributed-ucxx: pip install 'unet-engine[ucx]', or use tcp"
    ]
    with (
        pytest.raises(ClusterError, match="needs distributed-ucxx"),
        running_scheduler.client_of(settings(scheduler="ucx://127.0.0.1:8786")),
    ):
        pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 2, "protocol": "smoke"}, r"--protocol 'smoke': give 'tcp' or 'ucx'"),
        ({"protocol": "ucx"}, "--protocol ucx is for --workers N and for --gpus N of two or more"),
        ({"gpus": 1, "protocol": "ucx"}, "--protocol ucx is for --workers N"),
        ({"scheduler": "tcp://a:1", "protocol": "ucx"}, "--scheduler ucx://host:port"),
        (
            {"workers": 2, "protocol": "ucx", "tls_ca": "a", "tls_cert": "b", "tls_key": "c"},
            "--protocol ucx is not encrypted",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(given, said):
    with pytest.raises(SettingsError, match=said):
        Settings.of(input="scan.zarr", **given)


@pytest.mark.parametrize("given", [{"workers": 2}, {"gpus": 2}])
@pytest.mark.parametrize("protocol", ["tcp", "ucx"])
def test_what_is_asked_for_reaches_the_cluster(given, protocol, monkeypatch):
    class Reached(Exception):
        pass

    def started(start, hang_seconds):
        raise Reached(start(None))

    seen = {}

    def cluster(**options):
        seen.update(options)

    monkeypatch.setattr(local_workers, "_started", started)
    monkeypatch.setattr("unet_engine.cluster.connection.check_protocol", lambda name: None)
    monkeypatch.setattr("distributed.deploy.spec.SpecCluster", cluster)
    monkeypatch.setitem(sys.modules, "dask_cuda", type("stand_in", (), {"LocalCUDACluster": staticmethod(cluster)}))
    with (
        pytest.raises(Reached),
        clusters.connect(Settings.of(input="x", protocol=protocol, dashboard="none", **given), 2**30, 60),
    ):
        pass
    scheme = {"tcp": "tls://", "ucx": "ucx://"}[protocol]
    if "gpus" in given:
        assert seen["protocol"] == scheme
    else:
        assert seen["scheduler"]["options"]["protocol"] == scheme
        assert seen["worker"]["options"]["protocol"] == scheme


@pytest.mark.skipif(not HAS_UCX, reason="distributed-ucxx is not installed")
def test_ucx_gives_the_bytes_of_tcp(tmp_path, capfd):
    """Halos travel between processes; UCX takes shared memory or TCP where there is no GPU."""
    array = np.random.default_rng(0).integers(0, 99, (96, 64, 64)).astype(np.uint8)
    volume = make_volume(tmp_path / "v.zarr", array, chunks=(32, 32, 32))
    model = fake_model(tmp_path, window=(32, 32, 32), channels_out=16, activation="softmax")
    outputs = []
    for protocol in ("tcp", "ucx"):
        out = str(tmp_path / f"{protocol}.zarr")
        result = unet_engine.run(volume, model=model, out=out, workers=2, protocol=protocol, dashboard="none")
        assert result.halo_bytes > 0
        assert result.workers_lost == 0
        outputs.append(result_of(out))
    np.testing.assert_array_equal(outputs[1], outputs[0])
    assert capfd.readouterr().out == "", "stdout belongs to --json"


@pytest.mark.skipif(not HAS_UCX, reason="distributed-ucxx is not installed")
def test_workers_that_speak_ucx_have_addresses_of_it_and_the_user_is_told_who_can_connect():
    with clusters.connect(settings(workers=2, protocol="ucx", dashboard="none"), 2**30, 60) as cluster:
        workers = workers_of(cluster)
        assert all(address.startswith("ucx://127.0.0.1:") for address in workers)
        # the library gives its listener no address; should it learn to, the note can go
        assert "0.0.0.0" in {place[0] for place in listening([os.getpid(), *workers.values()])}
        assert any("every network interface" in note for note in cluster.notes)
