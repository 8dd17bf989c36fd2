"""The wheels that `gpu_check.py` needs on a machine with a GPU, Python, PyTorch and nvcc and nothing else, fetched into
a folder that one upload can carry.

    python benchmarks/gpu_wheels.py FOLDER [--python 3.11] [--most 64]

Versions are those installed here, or the newest. A folder that comes to more than ``--most`` MiB is refused with its
largest files. Then, over there: ``python benchmarks/gpu_check.py --wheels FOLDER``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gpu_needs import wheels


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=".".join(map(str, sys.version_info[:2])), help="version over there")
    parser.add_argument("--most", type=float, default=64, help="MiB that can be carried")
    args = parser.parse_args(arguments)
    done = subprocess.run(command(args.folder, args.python), check=False)
    if done.returncode:
        print("the wheels cannot be fetched; see what pip says above", file=sys.stderr)
        return 1
    return weighed(args.folder, args.most)


def command(folder: Path, python: str) -> list[str]:
    """No dependencies: the list is whole, and PyTorch and NumPy are there."""
    return [
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", python,
        "--dest", str(folder), *(pinned(name) for name in wheels()),
    ]  # fmt: skip


def pinned(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return name


def weighed(folder: Path, most: float) -> int:
    """Tell what the folder comes to; 1 where that is too much."""
    files = sorted(folder.glob("*.whl"), key=lambda file: -file.stat().st_size)
    total = sum(file.stat().st_size for file in files) / 2**20
    print(f"{len(files)} wheels, {total:.0f} MiB in {folder}")
    if total <= most:
        return 0
    largest = ", ".join(f"{file.name.partition('-')[0]} {file.stat().st_size / 2**20:.0f}" for file in files[:3])
    print(f"more than --most {most:g} MiB; the largest: {largest}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
