"""How much memory may still be taken: what the machine, the groups of a container or a batch job, and limits leave."""

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
