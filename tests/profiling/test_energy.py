"""Counters of energy, on files that look like Linux's."""

import pytest

from unet_engine.profiling import energy
from unet_engine.profiling.energy import Meter


def zone(root, name, label, at=0, end=2**32):
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(str(end))
    (folder / "energy_uj").write_text(str(at))
    return folder / "energy_uj"


def test_packages_and_their_memory_are_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "_nvml", dict)
    package = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 5)
    core = zone(tmp_path, "intel-rapl:0:0", "core")
    whole = zone(tmp_path, "intel-rapl:1", "psys")
    with Meter() as meter:
        for file in (package, core, whole):
            file.write_text("3500000")
        dram.write_text("1000005")
    assert meter.joules == {"package-0": 2.5, "dram of package-0": 1.0}


def test_a_counter_that_begins_again_is_carried_on():
    values = iter([900, 100, 300])
    with Meter({"package-0": (lambda: next(values) * 10**6, 1000 * 10**6)}) as meter:
        meter.look()
    assert meter.joules == {"package-0": 400.0}


@pytest.mark.parametrize(
    ("values", "end"), [([5, OSError("gone"), 9], 0), ([9, 5, 9], 0)], ids=["unreadable", "set back"]
)
def test_a_counter_that_cannot_be_trusted_tells_nothing(values, end):
    def read():
        value = values.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    with Meter({"x": (read, end), "y": (lambda: 7, 0)}) as meter:
        meter.look()
    assert meter.joules == {"y": 0.0}


def test_without_counters_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setattr(energy, "_nvml", dict)
    with Meter() as meter:
        pass
    assert meter.joules == {}
