"""The guard lets the same engine pass and fails for a slowed-down one."""

import importlib.util
import json
import sys
import time

import pytest

from support.paths import BENCHMARKS
from unet_engine.stitching import operations


@pytest.fixture(scope="module")
def guard():
    path = BENCHMARKS / "guard.py"
    spec = importlib.util.spec_from_file_location("guard", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["guard"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.alone
def test_the_same_engine_passes_and_a_slowed_down_one_fails(guard, tmp_path, monkeypatch, capsys):
    baseline = tmp_path / "guard.json"
    assert guard.main(["--quick", "--record", "--baseline", str(baseline)]) == 0
    (stored,) = json.loads(baseline.read_text()).values()
    assert set(stored) == {"add", "gather", "labels", "3D"}
    # neighbours on the machine may fake a fall, but not every time
    assert any(guard.main(["--quick", "--baseline", str(baseline)]) == 0 for _ in range(3)), capsys.readouterr().out

    add = operations.add

    def slow(*arguments, **named):
        time.sleep(0.2)
        add(*arguments, **named)

    monkeypatch.setattr(guard, "CALLS", 3)  # each of them sleeps
    monkeypatch.setattr(operations, "add", slow)
    assert guard.main(["--quick", "--baseline", str(baseline)]) == 1
    said = capsys.readouterr().err
    assert "run ÷ bare network, 3D" in said
    assert "`operations.add`" in said


def test_a_ratio_falls_where_its_rounds_lie_below_all_but_a_quarter_of_those_before(guard):
    def ratio(*rounds):
        return guard.measure([guard.Pair("3D", lambda: 1.0, iter((9.9, *rounds)).__next__)], len(rounds))["3D"]

    before = {"3D": vars(ratio(0.90, 0.95, 1.0, 0.94, 0.96))}
    assert guard.holds("3D", ratio(0.85, 0.95, 0.94, 0.93, 0.99), before), "within the noise"
    assert not guard.holds("3D", ratio(0.85, 0.86, 0.88, 0.84, 0.99), before), "but for one lucky round"
    noisy = {"3D": vars(ratio(0.5, 0.7, 1.0, 0.94, 0.96))}
    assert guard.holds("3D", ratio(0.85, 0.86, 0.88, 0.84, 0.99), noisy), "a noisy baseline proves less"
    assert not guard.holds("3D", ratio(0.7, 0.7, 0.7), None), "without a baseline there is a floor"
