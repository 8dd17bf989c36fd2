"""``unet-engine doctor --fix``: for what is missing on this machine the exact commands that bring it. None is run
here."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import InvalidRequirement, Requirement

from unet_engine import machine

OPEN_FILES = 4096
"""Files that a run over many chunks and workers may have open at once."""
_FOR = {
    "view": "unet-engine view, the viewer",
    "onnxruntime": "a second opinion on what a model file computes",
    "nifti": "NIfTI (.nii, .nii.gz)",
    "tiff": "TIFF and OME-TIFF",
    "geo": "GeoTIFF and other maps",
    "hdf5": "HDF5 and NetCDF 4",
    "nrrd": "NRRD",
    "dicom": "DICOM",
    "seg": "DICOM segmentations",
    "remote": "volumes in buckets and behind URLs",
    "components": "components, and run --components",
    "tables": "tables as Parquet",
    "polygons": "polygons",
    "torch": "PyTorch files (.pt2, TorchScript)",
    "export": "export and import of PyTorch models",
    "nnunet": "import of nnU-Net folders",
    "monai": "import of MONAI bundles",
    "smp": "import of networks of segmentation-models-pytorch",
    "quantize": "quantize: INT8 and what proves it",
    "jobqueue": "--cluster: workers as batch jobs",
    "dashboard": "the dashboard of a cluster",
}
"""What each extra is for; those of GPUs are below, and those of tests are nobody's."""
_FOR_GPUS = {
    "cuda": "everything between volume and network on the GPU",
    "tensorrt": "TensorRT, the fastest on NVIDIA GPUs",
    "gpus": "a process for each of several GPUs",
}
_DRIVERS = {
    "debian": "sudo apt-get update && sudo apt-get install nvidia-driver",
    "ubuntu": "sudo ubuntu-drivers install",
    "fedora": "sudo dnf install akmod-nvidia",
    "arch": "sudo pacman -S nvidia",
}
"""By the system's name for itself, what installs NVIDIA's driver."""
_COMPILERS = {
    "debian": "sudo apt-get update && sudo apt-get install g++ python3-dev",
    "ubuntu": "sudo apt-get update && sudo apt-get install g++ python3-dev",
    "fedora": "sudo dnf install gcc-c++ python3-devel",
    "arch": "sudo pacman -S gcc",
}


@dataclass(frozen=True)
class Remedy:
    """One thing that could be better, and what does it."""

    why: str
    command: str


def remedies(facts: Mapping[str, str]) -> list[Remedy]:
    """All of them, the most useful first. facts: what `doctor.facts` found."""
    gpus = machine.gpu_count()
    return [*_driver(gpus), *_stitching(facts), *_folders(), *_limits(), *_extras(gpus)]


def _pip(*what: str) -> str:
    """With the Python that runs this, whatever is first on the path; by uv where that made an environment without
    pip."""
    if find_spec("pip") is None and (uv := shutil.which("uv")):
        return shlex.join([uv, "pip", "install", "--python", sys.executable, *what])
    bare = [] if find_spec("pip") else [shlex.join([sys.executable, "-m", "ensurepip"])]
    kept = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    managed = ["--break-system-packages"] if sys.prefix == sys.base_prefix and kept.exists() else []
    return " && ".join([*bare, shlex.join([sys.executable, "-m", "pip", "install", *managed, *what])])


def _driver(gpus: int) -> Iterable[Remedy]:
    if not gpus and _has_nvidia():
        command = _of_system(_DRIVERS)
        if command:
            yield Remedy("there is an NVIDIA GPU and no driver that answers; restart the machine after this", command)


def _has_nvidia() -> bool:
    """Whether a display device of NVIDIA is on the bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            kind, vendor = (device / "class").read_text().strip(), (device / "vendor").read_text().strip()
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _of_system(commands: Mapping[str, str]) -> str | None:
    """That of the system which this is or is like."""
    try:
        said = platform.freedesktop_os_release()
    except OSError:
        return None
    names = [said.get("ID", ""), *said.get("ID_LIKE", "").split()]
    found = next((commands[name] for name in names if name in commands), None)
    return found and _as_user(found)


def _as_user(command: str) -> str:
    """Root needs no sudo, and containers have none."""
    return command.replace("sudo ", "") if hasattr(os, "geteuid") and os.geteuid() == 0 else command


def _stitching(facts: Mapping[str, str]) -> Iterable[Remedy]:
    if facts.get("stitching", "native").startswith("native"):
        return
    compiler = _of_system(_COMPILERS)
    if compiler:
        yield Remedy("the native extension was not built; it needs a C++ compiler", compiler)
    yield Remedy(
        "stitching runs in NumPy, several times slower than the native extension",
        _pip("--force-reinstall", "--no-deps", "--no-cache-dir", *_ours()),
    )


def _ours() -> list[str]:
    """What pip installs this engine from: the folder or file that it came from, else the registry."""
    try:
        ours = distribution("unet-engine")
    except PackageNotFoundError:
        return ["unet-engine"]
    try:
        origin = json.loads(ours.read_text("direct_url.json") or "")  # PEP 610
        editable = bool(origin.get("dir_info", {}).get("editable"))
        place = url2pathname(urlsplit(str(origin["url"])).path)
    except (ValueError, KeyError, AttributeError):
        return [f"unet-engine=={ours.version}"]
    return ["--editable", place] if editable else [place]


def _folders() -> Iterable[Remedy]:
    """Folders of the user's that cannot be written. Only they are made and given, nothing that lies around them."""
    from unet_engine.settings.files import user_folder
    from unet_engine.storage.cache import FOLDER
    from unet_engine.storage.cache import place as cache

    for what, folder in (("the cache", cache()), ("the folder of settings and trusted models", user_folder())):
        if folder is None:
            continue
        there = next(above for above in (folder, *folder.parents) if above.exists())
        if os.access(there, os.W_OK | os.X_OK):
            continue
        name = shlex.quote(str(folder))
        command = _as_user(f"sudo mkdir -p {name} && sudo chown -R $(id -u):$(id -g) {name}")
        if _is_read_only(there) or not hasattr(os, "geteuid") or os.geteuid() == 0:  # nobody may give it
            if folder != cache():
                continue
            command = f"export {FOLDER}=/tmp/unet-engine-$(id -u)"
        yield Remedy(f"{what}, {folder}, cannot be written", command)


def _is_read_only(place: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _limits() -> Iterable[Remedy]:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if most > soft:
            yield Remedy(
                f"{soft} files may be open at once, which many workers exceed; for this shell", f"ulimit -n {most}"
            )


def _extras(gpus: int) -> Iterable[Remedy]:
    if lacking := missing(""):  # pip brings them; something else took them away, or put older ones there
        yield Remedy(f"every run: needs {', '.join(lacking)}", _pip(*lacking))
    wanted = {**(_FOR_GPUS if gpus else {}), **_FOR}
    for extra, what in wanted.items():
        if lacking := missing(extra):
            why = ", ".join(lacking)
            yield Remedy(f"{what}: needs {why}", _pip(f"unet-engine[{extra}]"))


def _is_of(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed here, or too old; "": those that are needed in any case."""
    found = []
    for text in requires("unet-engine") or ():
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        if not _is_of(needed, extra) or (extra and _is_of(needed, "")):
            continue
        try:
            if not needed.specifier.contains(version(needed.name), prereleases=True):
                found.append(f"{needed.name}{needed.specifier}")
        except PackageNotFoundError:
            if not _stands_in(needed.name):
                found.append(needed.name)
    return found


def _stands_in(name: str) -> bool:
    """Whether a package of another name brings the same."""
    from unet_engine.commands.doctor import OTHER_NAMES, PACKAGES

    known = next((key for key, (distribution, _) in PACKAGES.items() if distribution == name), None)
    for other in OTHER_NAMES.get(known or "", ()):
        try:
            version(other)
        except PackageNotFoundError:
            continue
        return True
    return False
