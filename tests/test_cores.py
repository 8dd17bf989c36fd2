"""Cores by NUMA node and by threads of one core, read from a tree like the system's."""

import os
import subprocess
import sys

import pytest

from support.volumes import fake_model
from unet_engine import cores, machine
from unet_engine.backends.base import Setup
from unet_engine.backends.fake import FakeBackend
from unet_engine.model.file import open_model


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that makes the machine's cores and nodes, and those that this process may be put on."""
    monkeypatch.setattr(cores, "NODES", tmp_path / "node")
    monkeypatch.setattr(cores, "CORES", tmp_path / "cpu")

    def make(nodes, *, allowed=None, siblings=()):
        for number, listed in enumerate(nodes):
            folder = tmp_path / "node" / f"node{number}"
            folder.mkdir(parents=True)
            (folder / "cpulist").write_text(f"{listed}\n")
        (tmp_path / "node" / "online").write_text(f"0-{len(nodes) - 1}\n")
        for listed in siblings:
            for core in cores._listed(_written(tmp_path / "list", listed)):
                folder = tmp_path / "cpu" / f"cpu{core}" / "topology"
                folder.mkdir(parents=True)
                (folder / "thread_siblings_list").write_text(f"{listed}\n")
        if allowed is not None:
            monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
            monkeypatch.setattr(machine, "_cores_of_groups", lambda: iter(()))

    return make


def _written(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("nodes", "allowed", "found"),
    [
        (["0-3,8-11", "4-7,12-15"], range(16), [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}]),
        (["0-3", "4-7"], [1, 5, 6], [{1}, {5, 6}]),  # taskset, or a batch job's cpuset
        (["0-3", "4-7"], [1, 2], [{1, 2}]),
        (["0-3", "", "4-7"], range(8), [{0, 1, 2, 3}, {4, 5, 6, 7}]),  # a node of memory alone
        ([f"{n}" for n in range(12)], range(12), [{n} for n in range(12)]),  # node10 comes after node9
        (["0-1"], range(4), [{0, 1, 2, 3}]),  # what is not told of is on no node, so nothing is said of any
    ],
)
def test_nodes_have_the_cores_that_this_process_may_use(tree, nodes, allowed, found):
    tree(nodes, allowed=allowed)
    assert list(cores.nodes()) == found


def test_without_a_tree_all_cores_are_one_node(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "NODES", tmp_path / "none")
    monkeypatch.setattr(cores, "CORES", tmp_path / "none")
    assert cores.nodes() == (cores.allowed(),)
    assert 1 <= cores.whole() <= machine.cpu_count()


@pytest.mark.parametrize(
    ("siblings", "allowed", "limit", "whole"),
    [
        (["0,4", "1,5", "2,6", "3,7"], range(8), None, 4),
        (["0,4", "1,5", "2,6", "3,7"], [0, 1, 4], None, 2),
        (["0", "1", "2", "3"], range(4), None, 4),
        (["0,4", "1,5", "2,6", "3,7"], range(8), 3, 3),  # docker --cpus 3
    ],
)
def test_threads_of_one_core_count_once(tree, monkeypatch, siblings, allowed, limit, whole):
    tree(["0-7"], allowed=allowed, siblings=siblings)
    monkeypatch.setattr(machine, "_cores_of_groups", lambda: iter([limit] if limit else []))
    assert cores.whole() == whole


def test_workers_are_dealt_to_nodes_where_each_gets_as_many(tree):
    tree(["0-3", "4-7"], allowed=range(8))
    left, right = cores.nodes()
    assert [cores.node_of(n, 2) for n in range(2)] == [left, right]
    assert [cores.node_of(n, 4) for n in range(4)] == [left, left, right, right]
    assert [cores.node_of(n, 3) for n in range(3)] == [left | right] * 3
    assert cores.node_of(0, 1) == left | right


def test_what_was_measured_holds_for_these_cores_alone(tree, monkeypatch):
    tree(["0-3", "4-7"], allowed=range(8))
    here = cores.fingerprint()
    assert here["cores"] == 8
    assert here["nodes"] == [4, 4]
    monkeypatch.setattr(machine, "_cores_of_groups", lambda: iter([6]))
    assert cores.fingerprint() != here
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert cores.fingerprint()["nodes"] == [4]


two_cores = pytest.mark.skipif(len(cores.allowed()) < 2, reason="needs two cores to put threads on")


@two_cores
def test_threads_that_infer_stay_on_a_node_each(tree, tmp_path, monkeypatch):
    first, second, *_ = sorted(cores.allowed())
    tree([f"{first}", f"{second}"])
    monkeypatch.setattr(cores, "allowed", lambda: frozenset([first, second]))
    places = []
    monkeypatch.setattr(FakeBackend, "_run", lambda self, slot: (
        places.append(frozenset(os.sched_getaffinity(0))), self._inputs[slot])[1])  # fmt: skip
    network = FakeBackend(Setup(open_model(fake_model(tmp_path, latency_ms=0)), (8, 8, 8), threads=2))
    for _ in range(20):
        for slot in range(4):
            network.start(slot)
        for slot in range(4):
            network.result(slot)
    network.close()
    assert set(places) <= {frozenset([first]), frozenset([second])}
    assert os.sched_getaffinity(0) >= {first, second}, "the caller's own thread stays where it was"


@two_cores
@pytest.mark.parametrize("number", [0, 1])
def test_a_worker_process_stays_on_its_node_with_all_its_threads(tmp_path, number):
    first, second, *_ = sorted(cores.allowed())
    for n, core in enumerate((first, second)):
        (tmp_path / f"node{n}").mkdir()
        (tmp_path / f"node{n}" / "cpulist").write_text(f"{core}\n")
    code = f"""
import os, threading
from pathlib import Path
from types import SimpleNamespace
os.sched_setaffinity(0, [{first}, {second}])
from unet_engine import cores, machine
from unet_engine.cluster import worker_preload
cores.NODES = Path({str(tmp_path)!r})
stop = threading.Event()
other = threading.Thread(target=stop.wait)
other.start()
os.environ[worker_preload.BESIDE] = "2"
worker_preload.dask_setup(SimpleNamespace(name={number}, http_server=SimpleNamespace(stop=lambda: None)))
print(*os.sched_getaffinity(0), *os.sched_getaffinity(other.native_id), machine.cpu_count())
stop.set()
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    mine = (first, second)[number]
    assert said.split() == [str(mine), str(mine), "1"]
