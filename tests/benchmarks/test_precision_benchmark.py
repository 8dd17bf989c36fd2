"""The benchmark of precisions runs at toy size, so that it does not rot."""

import json
import subprocess
import sys

import pytest

from support.command_line import environment
from support.paths import BENCHMARKS


@pytest.mark.slow
def test_the_quick_benchmark_prints_its_tables_and_keeps_its_figures(tmp_path):
    for module in ("nncf", "torch"):
        pytest.importorskip(module)
    script = BENCHMARKS / "precision.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(tmp_path / "figures.json")],
        capture_output=True, text=True, timeout=280, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "end to end, times fp32" in done.stdout
    found = json.loads((tmp_path / "figures.json").read_text())
    assert {row["precision"] for row in found["gate"]} >= {"int8"}
    assert len(found["truth"]["fp32"]) == 3
