"""How much memory may still be taken: what the machine, the groups of a container or a batch job, and limits leave."""

import gc
import subprocess
import sys

import pytest

from unet_engine import machine

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A place for the files of control groups."""
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)

    def put(place, **files):
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")

    return put


def inside(monkeypatch, lines):
    read = machine.Path.read_text
    monkeypatch.setattr(
        machine.Path, "read_text", lambda path: lines if str(path) == "/proc/self/cgroup" else read(path)
    )


def test_the_narrowest_group_around_counts(groups, monkeypatch):
    inside(monkeypatch, "0::/slurm/job_7/step\n")
    groups("slurm", memory__max="max", memory__current=9 * GIB)
    groups("slurm/job_7", memory__max=3 * GIB, memory__current=1 * GIB)
    groups("slurm/job_7/step", memory__max=5 * GIB, memory__current=1 * GIB)
    assert sorted(machine._left_in_groups()) == [2 * GIB, 4 * GIB]


def test_pages_of_files_that_go_where_memory_is_short_count_as_free(groups, monkeypatch):
    inside(monkeypatch, "0::/\n")
    groups(".", memory__max=3 * GIB, memory__current=3 * GIB, memory__stat=f"anon 5\ninactive_file {GIB}")
    assert list(machine._left_in_groups()) == [GIB]


def test_groups_of_the_first_version_count(groups, monkeypatch):
    inside(monkeypatch, "9:cpu:/x\n4:memory:/box\n0::/\n")
    groups("memory/box", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB)
    assert list(machine._left_in_groups()) == [GIB]


def test_limits_of_the_process_count():
    code = "from unet_engine import machine; print(machine.available_memory(), machine.limits())"
    said = subprocess.run(
        ["bash", "-c", f"ulimit -v 2000000; exec {sys.executable} -c '{code}'"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 0 < int(said.split()[0]) < 2_000_000 * 1024
    assert "(ulimit -v allows 1.91 GiB)" in said
    assert machine.limits() == ""


@pytest.fixture
def cores(monkeypatch):
    """The machine has 64 of them."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(64), raising=False)


@pytest.mark.usefixtures("cores")
def test_cores_that_groups_give_no_time_of_are_not_counted(groups, monkeypatch):
    inside(monkeypatch, "0::/pods/one\n")
    assert machine.cpu_count() == 64
    groups("pods", cpu__max="1600000 100000")
    groups("pods/one", cpu__max="max 100000")
    assert machine.cpu_count() == 16
    groups("pods/one", cpu__max="250000 100000")
    assert machine.cpu_count() == 3, "half a core is one"


@pytest.mark.usefixtures("cores")
def test_cores_of_groups_of_the_first_version(groups, monkeypatch):
    inside(monkeypatch, "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n")
    groups("cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert machine.cpu_count() == 64
    groups("cpu/box", cpu__cfs_quota_us=50000, cpu__cfs_period_us=100000)
    assert machine.cpu_count() == 1


def imported(seen):
    with machine.uncollected():
        seen.append(gc.isenabled())
        raise ImportError


@pytest.mark.parametrize("was", [True, False])
def test_garbage_is_looked_for_again_after_imports_whatever_ends_them(was):
    gc.enable() if was else gc.disable()
    try:
        inside = []
        with pytest.raises(ImportError):
            imported(inside)
        assert inside == [False]
        assert gc.isenabled() == was
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
        gc.enable()
