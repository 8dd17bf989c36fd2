"""The benchmarks against peers and of growth run at toy size, and name what is missing, so that they do not rot."""

import importlib.util
import json
import subprocess
import sys

import pytest

from support.command_line import environment
from support.paths import BENCHMARKS


def ran(script, *options, folder):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--quick", *options], cwd=folder, capture_output=True, text=True,
        timeout=250,
        env={**environment(), "PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "5"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_peers_that_are_there_agree_and_those_that_are_not_are_named(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("monai")
    names = ["engine", "engine, crop", "MONAI", "TorchIO", "dask + OpenVINO"]
    said = ran("peers/run.py", "--cases", "2D", "--only", *names, "--json", "rows.json", folder=tmp_path)
    rows = {row["contestant"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert list(rows) == names
    assert rows["MONAI"]["agreement"] > 0.9999
    # dask's blocks reflect the volume at its edges, where our windows are moved back
    assert 0.9 < rows["dask + OpenVINO"]["agreement"] <= 1
    assert rows["engine"]["times_ours"] == [1.0]
    assert rows["engine"]["lines"] < rows["MONAI"]["lines"] < rows["dask + OpenVINO"]["lines"]
    if importlib.util.find_spec("torchio") is None:
        (reason,) = rows["TorchIO"]["reasons"]
        assert reason.startswith("not installed: ModuleNotFoundError: No module named 'torchio'; ")
        assert reason in said


def test_lines_of_user_code_are_those_of_statements():
    spec = importlib.util.spec_from_file_location("contestants", BENCHMARKS / "peers" / "contestants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["contestants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)

    def example(job):
        """Not counted."""
        a = 1  # counted

        # not counted
        for _ in (
            job,
            a,
        ):
            print(a)

    assert module.lines(example) == 6


@pytest.mark.slow
def test_windows_grow_with_overlap_by_the_rule_of_the_grid(tmp_path):
    pytest.importorskip("torch")
    ran("growth.py", "--only", "overlap", folder=tmp_path)
    found = json.loads((tmp_path / "growth.json").read_text())
    for rows in found.values():
        assert [row["windows"] for row in rows] == [row["expected"]["windows"] for row in rows]
    assert (tmp_path / "growth.png").stat().st_size > 10_000
