"""``unet-engine doctor`` reports what it tried, whatever the libraries do."""

import sys

import pytest

from support.command_line import cli, environment
from unet_engine.commands import doctor


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def test_the_report_names_machine_packages_and_what_works(monkeypatch):
    monkeypatch.setattr(doctor, "planned", lambda: [("openvino", "cpu", "fp32"), ("tensorrt", "cuda:7", "fp16")])
    said = cli("doctor", "--json")
    assert said.code == 0
    facts, (cpu, gpu) = said.json["facts"], said.json["trials"]
    assert {
        "processor",
        "instructions",
        "driver",
        "gpus",
        "nvcc",
        "stitching",
        "stitching on GPUs",
        "openvino",
        "tensorrt",
    } <= facts.keys()
    assert (cpu["works"], cpu["difference"]) == (True, 0.0)
    assert not gpu["works"]
    assert gpu["said"]


def test_the_table_is_for_people(monkeypatch):
    check = doctor.Check("openvino", "cpu", "bf16", True, 1.0, 0.01, "works")  # noqa: FBT003
    monkeypatch.setattr(doctor, "examine", lambda done: [check])
    said = cli("doctor")
    assert "bf16" in said.out
    assert "processor" in said.out


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_precisions_are_really_run(precision):
    from unet_engine.backends.openvino import precisions

    if precision == "int8":
        pytest.importorskip("nncf")
    found = doctor.attempt("openvino", "cpu", precision)
    assert found.works == (precision in precisions("cpu")), found.said
    if found.works and precision != "fp32":
        assert 0 < found.difference < 0.5


def test_a_library_that_ends_its_process_is_one_line_of_the_report(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = doctor._in_a_process("openvino", "cpu", "fp32")
    assert not found.works
    assert "ended its process (exit code 1)" in found.said


def test_nothing_that_works_is_an_error(monkeypatch):
    broken = doctor.Check("openvino", "cpu", "fp32", False, None, None, "no")  # noqa: FBT003
    monkeypatch.setattr(doctor, "examine", lambda done: [broken])
    said = cli("doctor")
    assert said.code == 6
    assert "no back end works here" in said.error


def test_what_is_missing_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"nncf": ("no-such-distribution", "unet-engine[quantize]")})
    assert doctor._installed("nncf") == "not installed; pip install 'unet-engine[quantize]'"
