"""``unet-engine doctor`` reports what it tried, whatever the libraries do."""

import json
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.command_line import cli, environment
from unet_engine.backends import libraries
from unet_engine.commands import doctor, remedies


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


# --- --fix ---


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine on which nothing is wrong but what a test makes so."""
    monkeypatch.setattr(remedies.machine, "gpu_count", lambda: 0)
    monkeypatch.setattr(remedies, "_has_nvidia", lambda: False)
    monkeypatch.setattr(remedies, "requires", lambda _: REQUIRED)
    monkeypatch.setattr(remedies, "version", lambda name: INSTALLED[name] if name in INSTALLED else absent(name))
    monkeypatch.setattr(remedies, "_limits", list)
    monkeypatch.setattr(remedies.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("UNET_ENGINE_CACHE", str(tmp_path / "a" / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


REQUIRED = [
    "segmentation-models-pytorch>=0.5; extra == 'smp'", "monai>=1.5; extra == 'monai'",
    "numpy>=2", "nibabel>=5.3; extra == 'nifti'", "h5py>=3.12; extra == 'hdf5'", "onnxruntime>=1.20; extra == 'onnxruntime'",
    "tifffile>=2025.1; extra == 'tiff'", "imagecodecs; extra == 'tiff' and python_version < '3'", "cuda-core>=1; extra == 'cuda'",
]  # fmt: skip
INSTALLED = {"unet-engine": "0.1.0", "numpy": "2.0", "nibabel": "5.1", "onnxruntime-gpu": "1.20", "tifffile": "2025.3",
             "monai": "1.5"}  # fmt: skip


def absent(name):
    raise remedies.PackageNotFoundError(name)


def named(found):
    return [(one.why.partition(":")[0], shlex.split(one.command)[-1]) for one in found]


def test_what_is_missing_or_too_old_comes_with_the_command_for_this_python(bare):
    found = remedies.remedies({"stitching": "native extension"})
    assert named(found) == [
        ("NIfTI (.nii, .nii.gz)", "unet-engine[nifti]"), ("HDF5 and NetCDF 4", "unet-engine[hdf5]"),
        ("import of networks of segmentation-models-pytorch", "unet-engine[smp]"),
    ]  # fmt: skip
    assert "nibabel>=5.3" in found[0].why
    assert shlex.split(found[0].command)[:4] == [sys.executable, "-m", "pip", "install"]


def test_a_package_that_every_run_needs_and_is_gone_is_named(bare, monkeypatch):
    monkeypatch.setattr(remedies, "requires", lambda _: ["openvino>=2026.0", *REQUIRED])
    assert named(remedies.remedies({"stitching": "native extension"}))[0] == ("every run", "openvino")
    assert libraries.record("openvino").remedy == "pip install openvino"
    assert libraries.record("onnxruntime").remedy == "pip install 'unet-engine[onnxruntime]'"


def test_what_is_for_gpus_is_named_where_there_is_one_and_its_driver_where_none_answers(bare, monkeypatch):
    assert not any("cuda" in one.command for one in remedies.remedies({}))
    monkeypatch.setattr(remedies.machine, "gpu_count", lambda: 1)
    assert remedies.remedies({})[0].command.endswith("'unet-engine[cuda]'")
    monkeypatch.setattr(remedies.machine, "gpu_count", lambda: 0)
    monkeypatch.setattr(remedies, "_has_nvidia", lambda: True)
    for system, command in (
        ("ubuntu debian", "sudo ubuntu-drivers install"),
        ("fedora", "sudo dnf install akmod-nvidia"),
    ):
        first, _, like = system.partition(" ")
        monkeypatch.setattr(
            remedies.platform, "freedesktop_os_release", lambda i=first, l=like: {"ID": i, "ID_LIKE": l}
        )
        assert remedies.remedies({})[0].command == command
    monkeypatch.setattr(remedies.platform, "freedesktop_os_release", lambda: {"ID": "mint", "ID_LIKE": "ubuntu debian"})
    assert remedies.remedies({})[0].command == "sudo ubuntu-drivers install"


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (None, ["unet-engine==0.1.0"]),
        ({"url": "file:///src/my%20engine", "dir_info": {"editable": True}}, ["--editable", "/src/my engine"]),
        ({"url": "file:///src/unet_engine-0.1.0.whl", "archive_info": {}}, ["/src/unet_engine-0.1.0.whl"]),
    ],
)
def test_a_build_without_the_native_extension_is_built_again_of_what_it_came_from(bare, monkeypatch, said, what):
    ours = SimpleNamespace(version="0.1.0", read_text=lambda _: said and json.dumps(said))
    monkeypatch.setattr(remedies, "distribution", lambda _: ours)
    commands = [one.command for one in remedies.remedies({"stitching": "NumPy; reinstall with a C++ compiler"})]
    assert [shlex.split(c)[-len(what) :] for c in commands if "--force-reinstall" in c] == [what]


def test_commands_suit_an_environment_without_pip_and_root(bare, monkeypatch):
    monkeypatch.setattr(remedies, "find_spec", lambda _: None)
    monkeypatch.setattr(remedies.shutil, "which", lambda _: "/usr/bin/uv")
    assert remedies._pip("a[b]") == f"/usr/bin/uv pip install --python {sys.executable} 'a[b]'"
    monkeypatch.setattr(remedies.shutil, "which", lambda _: None)
    assert remedies._pip("a").startswith(f"{sys.executable} -m ensurepip && ")
    assert remedies._as_user("sudo a && sudo b") == "sudo a && sudo b"
    monkeypatch.setattr(remedies.os, "geteuid", lambda: 0)
    assert remedies._as_user("sudo a && sudo b") == "a && b"


def test_a_cache_that_cannot_be_written_is_given_back_and_nothing_around_it(bare, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(remedies.os, "access", lambda place, _: place != tmp_path / "a")  # root may write everywhere
    (found,) = [one for one in remedies.remedies({}) if "chown" in one.command]
    cache = str(tmp_path / "a" / "cache")
    assert found.command == f"sudo mkdir -p {cache} && sudo chown -R $(id -u):$(id -g) {cache}"
    assert "the cache" in found.why
    monkeypatch.setattr(remedies, "_is_read_only", lambda _: True)
    assert [one.command for one in remedies._folders()] == ["export UNET_ENGINE_CACHE=/tmp/unet-engine-$(id -u)"]


def test_few_open_files_are_made_more(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    assert [one.command for one in remedies._limits()] == ["ulimit -n 1024"]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert not list(remedies._limits())  # nothing that the user may do


def test_commands_are_on_stdout_alone_and_none_is_run(bare, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("something was run"))
    monkeypatch.setattr(doctor, "facts", lambda: {"stitching": "native extension"})
    said = cli("doctor", "--fix")
    assert said.code == 0
    assert [shlex.split(line)[-1] for line in said.out.splitlines()] == [
        "unet-engine[nifti]",
        "unet-engine[hdf5]",
        "unet-engine[smp]",
    ]
    assert "# HDF5 and NetCDF 4: needs h5py" in said.err
    assert cli("doctor", "--fix", "--json").json["remedies"][1]["command"] == said.out.splitlines()[1]
    monkeypatch.setattr(remedies, "remedies", lambda facts: [])
    assert "nothing is missing here" in cli("doctor", "--fix").err


def test_every_extra_that_users_install_is_for_something():
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    known = {*remedies._FOR, *remedies._FOR_GPUS}
    # of networks that are faster, peers, developers, and names for several
    assert extras - known <= {"ucx", "bench", "test", "dev", "gpu", "cloud", "all"}
    assert known <= extras
