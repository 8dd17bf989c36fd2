"""What `benchmarks/streaming.py` measures is the network: in slabs with state it gives what one window over all gives."""

import subprocess
import sys

import pytest

from support.command_line import environment
from support.paths import BENCHMARKS, MODELS


@pytest.mark.parametrize("form", ["cut", "every"])
def test_slabs_with_state_give_what_one_window_gives(form, tmp_path):
    options = ["--box", "72,16,16", "--planes", "8", "--rounds", "0", "--windows", "--check", "--form", form]
    script = [sys.executable, str(BENCHMARKS / "streaming.py"), "--model", str(MODELS / "cells_3d.onnx")]
    done = subprocess.run(
        script + options, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "differs from one window by" in done.stdout
