"""Passes by the workers of a cluster, and by processes that are killed: the same bytes as by this process."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time

import numpy as np
import psutil
import pytest
from scipy import ndimage

from support.command_line import COMMAND, cli, environment
from support.objects import numbered
from support.outputs import chunks
from support.volumes import make_volume, result_of
from unet_engine.postprocess import components

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Labels with many objects over many blocks, and their numbers by this process."""
    folder = tmp_path_factory.mktemp("passes")
    noise = ndimage.gaussian_filter(np.random.default_rng(3).random((48, 64, 80)), 1)
    labels = np.digitize(noise, np.quantile(noise, [0.6, 0.8])).astype(np.uint8)
    path = make_volume(folder / "labels.zarr", labels, chunks=(16, 16, 16))
    assert cli("components", path, folder / "alone.zarr", *RULES).code == 0
    np.testing.assert_array_equal(
        result_of(folder / "alone.zarr"), numbered(labels, 18, min_size=3, fill_holes=True)[0]
    )
    return path, folder / "alone.zarr"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(components, "VOXELS", BLOCK)


BLOCK = 2 * 16**3
SMALL = f"import unet_engine.postprocess.components as c; c.VOXELS = {BLOCK}; "
RULES = ["--connectivity", "18", "--min-size", "3", "--fill-holes"]


def begun(*arguments):
    """The command line as a process of its own, with small blocks."""
    code = SMALL + COMMAND[2]
    return subprocess.Popen(
        [*COMMAND[:2], code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip


@pytest.mark.slow
def test_workers_give_the_same_bytes(tmp_path, case):
    path, alone = case
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, processes=False, protocol="tcp://", host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        address = ["--scheduler", cluster.scheduler_address]
        assert cli("components", path, tmp_path / "o.zarr", *RULES, *address).code == 0
        assert chunks(tmp_path / "o.zarr") == chunks(alone)
        assert cli("components", path, tmp_path / "o.zarr", *RULES, *address, "--overwrite").code == 0
        assert chunks(tmp_path / "o.zarr") == chunks(alone)
        for name, options in (("alone.csv", []), ("crowd.csv", address)):
            assert cli("table", alone, tmp_path / name, *options).code == 0
        assert (tmp_path / "alone.csv").read_bytes() == (tmp_path / "crowd.csv").read_bytes()
        said = cli("components", tmp_path / "gone.zarr", tmp_path / "p.zarr", *address)
        assert (said.code, said.error.count("\n")) == (3, 0)


def test_an_error_of_a_worker_ends_the_pass_with_its_own_words(tmp_path):
    path = make_volume(tmp_path / "l.zarr", np.ones((16, 16, 16), np.uint8), chunks=(4, 16, 16))
    (tmp_path / "l.zarr" / "c" / "2" / "0" / "0").write_bytes(b"no chunk")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp://", host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        said = cli("components", path, tmp_path / "o.zarr", "--scheduler", cluster.scheduler_address)
    assert said.code == 4
    assert "chunk z=2" in said.error


def test_killed_again_and_again(tmp_path, case):
    path, alone = case
    moments, out, kills = random.Random(1), tmp_path / "o.zarr", 0
    for attempt in range(4):
        process = begun("components", path, out, *RULES, *(["--resume"] if attempt else []))
        if attempt < 3:
            wanted = len(kept(out)) + moments.choice([1, 4, 9])
            while process.poll() is None and len(kept(out)) < wanted:
                time.sleep(0.002)
            if process.poll() is None:
                process.kill()
                kills += 1
        said = process.communicate(timeout=120)
    assert kills, said
    assert process.returncode == 0, said
    assert chunks(out) == chunks(alone)


def kept(out):
    """What a pass has found and written so far."""
    return [p for p in out.glob("0/.journal/*/*") if not p.name.endswith(".partial")]


@pytest.mark.slow
def test_workers_killed_meanwhile(tmp_path, case):
    path, alone = case
    out, kills = tmp_path / "o.zarr", 0
    process = begun("components", path, out, *RULES, "--workers", 2)
    for wanted in (3, 30):
        while process.poll() is None and len(kept(out)) < wanted:
            time.sleep(0.002)
        alive = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(psutil.Error):
            workers = [child for child in alive if "spawn_main" in " ".join(child.cmdline())]
            if workers:
                workers[0].kill()
                kills += 1
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert kills, said
    assert chunks(out) == chunks(alone)
