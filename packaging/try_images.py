"""Does what the recipes of images say, step by step, in Debian roots: nothing is needed but root, debootstrap and a
network. What a registry, a build service and layers add is not tried.

    python packaging/try_images.py FOLDER [--extras nifti] [--recipe Containerfile] [--recipe unet-engine.def]

The base image, python:slim, is stood for by a Debian with Python in a virtual environment at /usr/local, where that
image has its own. Each stage lies over it, so that it stays as it is. In the end the image is started as its recipe
says: it prints its help, runs the demo in a folder that is mounted, and is asked who it is.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PINNED = "docker.io/library/python:3.13-slim@sha256:" + 64 * "0"
NOBODY = "10001"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """What becomes an image, or what files are copied from."""

    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """RUN, and COPY as ``FROM-STAGE SOURCE TARGET``; a stage of `` . `` is the checkout."""
    arguments: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    folder: str = "/"
    start: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)


def stages_of(path: Path) -> list[Stage]:
    """What a recipe says. Raises `ValueError` for what is not known here, so that nothing is passed over."""
    text = path.read_text()
    found = list(_of_apptainer(text) if path.suffix == ".def" else _of_docker(text))
    if not found or not found[-1].start:
        raise ValueError(f"{path}: nothing says what is started")
    return found


def _of_docker(text: str) -> Iterator[Stage]:
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ").splitlines()
    outside: dict[str, str] = {}
    stage: Stage | None = None
    for line in filter(None, map(str.strip, lines)):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            if stage:
                yield stage
            base, *name = rest.split()
            if base not in ("${BASE}",):
                raise ValueError(f"FROM {base}: all stages are of BASE")
            stage = Stage(name[-1] if name else "")
        elif word == "ARG":
            name_, _, value = rest.partition("=")
            (stage.arguments if stage else outside)[name_] = value or outside.get(name_, "")
        elif stage is None:
            raise ValueError(f"{line}: nothing is before the first FROM but ARG")
        elif word == "RUN":
            stage.steps.append((word, rest))
        elif word == "COPY":
            source = re.match(r"--from=(\S+)\s+", rest)
            stage.steps.append((word, f"{source[1] if source else '.'} {rest[source.end() if source else 0 :]}"))
        else:
            _say(stage, word, rest)
    if stage:
        yield stage


def _say(stage: Stage, word: str, rest: str) -> None:
    """What a line of a Containerfile says of how the image is started."""
    match word:
        case "ENV":
            stage.environment |= dict(part.split("=", 1) for part in shlex.split(rest))
        case "USER":
            stage.user = rest
        case "WORKDIR":
            stage.folder = rest
        case "ENTRYPOINT":
            stage.start = json.loads(rest)
        case "CMD":
            stage.default = json.loads(rest)
        case _:
            raise ValueError(f"{word} is not known here")


def _of_apptainer(text: str) -> Iterator[Stage]:
    for part in re.split(r"^Bootstrap: docker\n", re.sub(r"^#.*\n", "", text, flags=re.M), flags=re.M)[1:]:
        head, *sections = re.split(r"^%", part, flags=re.M)
        said = dict(line.split(": ", 1) for line in head.strip().splitlines())
        if said.pop("From") != "{{ BASE }}":
            raise ValueError("all stages are of BASE")
        # who calls it runs it, so it is tried as nobody too
        stage = Stage(said.pop("Stage"), user=NOBODY)
        if said:
            raise ValueError(f"{', '.join(said)} is not known here")
        for section in sections:
            title, _, body = section.partition("\n")
            lines = [line.strip() for line in body.strip().splitlines() if line.strip()]
            match title.split():
                case ["arguments"]:
                    stage.arguments |= dict(line.split("=", 1) for line in lines)
                case ["files", *source]:
                    stage.steps += [("COPY", f"{source[1] if source else '.'} {line}") for line in lines]
                case ["post"]:
                    stage.steps.append(("RUN", "set -e\n" + "\n".join(lines)))
                case ["runscript"]:
                    (line,) = lines
                    stage.start = shlex.split(line.removeprefix("exec ").removesuffix('"$@"'))
                    stage.default = ["--help"]
                case ["test"]:
                    stage.steps += [("RUN", line) for line in lines]
                case _:
                    raise ValueError(f"%{title} is not known here")
        yield stage


def filled(text: str, arguments: dict[str, str]) -> str:
    """Apptainer puts values in before the shell sees the text; docker gives them as variables."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: arguments[match[1]], text)


def ignored(name: str, patterns: list[str]) -> bool:
    """Whether a file of the checkout is kept out of the build."""
    return any(fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/") for pattern in patterns)


# --- roots ---


def base(folder: Path) -> Path:
    """A Debian with Python at /usr/local, made once."""
    root = folder / "base"
    if not (root / "usr/local/bin/pip").exists():
        with (folder / "debootstrap.log").open("w") as log:
            subprocess.run(["debootstrap", "--variant=minbase", "--include=python3,python3-dev,python3-venv,ca-certificates",
                            "trixie", root], stdout=log, check=True)  # fmt: skip
        inside(root, "python3 -m venv /usr/local && rm -rf /var/cache/apt/archives/*.deb")
    # as a build has them: names of hosts, and whom this machine trusts
    for name in ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt"):
        if Path("/", name).exists():
            shutil.copy(Path("/", name).resolve(), root / name)
    return root


@contextmanager
def over(lower: Path, folder: Path) -> Iterator[Path]:
    """A root that is `lower` and what is changed of it."""
    shutil.rmtree(folder, ignore_errors=True)
    upper, work, root = (folder / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}",
                    root], check=True)  # fmt: skip
    try:
        with mounted(root, "/proc", "proc", "-t"):
            yield root
    finally:
        subprocess.run(["umount", root], check=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mounted(root: Path, place: str, source: str, *how: str) -> Iterator[None]:
    target = root / place.lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *how, source, *(["proc"] if source == "proc" else []), target], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True)


def inside(root: Path, command: str | list[str], user: str = "", folder: str = "/", **variables: str) -> str:
    """What a command in the root writes to stdout. Raises `CalledProcessError`."""
    given = {name: value for name, value in os.environ.items() if name.startswith("PIP_") and "/" not in value}
    env = [f"{name}={value}" for name, value in ({"PATH": PATH, "HOME": "/root"} | given | variables).items()]
    words = command if isinstance(command, list) else ["sh", "-c", command]
    who = [f"--userspec={user}:{user}"] if user else []
    start = [
        "chroot",
        *who,
        root,
        "env",
        "-i",
        *env,
        "sh",
        "-c",
        f'cd {shlex.quote(folder)} && exec "$@"',
        "sh",
        *words,
    ]
    return subprocess.run(start, stdout=subprocess.PIPE, text=True, check=True).stdout


def copied(stage_root: Path, words: str, made: dict[str, Path], checkout: Path, patterns: list[str]) -> None:
    origin, source, target = words.split()
    to = stage_root / target.lstrip("/")
    if origin != ".":
        shutil.copytree(made[origin] / source.lstrip("/"), to)
        return
    known = subprocess.run(["git", "-C", checkout, "ls-files", "-z"], stdout=subprocess.PIPE, text=True, check=True)
    for name in filter(None, known.stdout.split("\0")):
        if not ignored(name, patterns) and (checkout / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, to / name)


def tried(recipe: Path, folder: Path, extras: str) -> None:
    """Build and start the image of one recipe. Raises `CalledProcessError` where a step fails."""
    checkout = HERE.parent
    beside = recipe.with_name(f"{recipe.name}.dockerignore")
    patterns = beside.read_text().split() if beside.exists() else []
    lower, made = base(folder), dict[str, Path]()
    with ExitStack() as roots:
        for number, stage in enumerate(stages_of(recipe)):
            root = roots.enter_context(over(lower, folder / f"stage{number}"))
            arguments = {
                **stage.arguments,
                "BASE": PINNED,
                **({"EXTRAS": extras} if "EXTRAS" in stage.arguments else {}),
            }
            for word, text in stage.steps:
                print(f"{recipe.name}: {word} {' '.join(text.split())[:100]}", flush=True)
                if word == "COPY":
                    copied(root, text, made, checkout, patterns)
                else:
                    inside(root, filled(text, arguments), **arguments)
            made[stage.name] = root
        started(stage, root, folder)


def started(stage: Stage, root: Path, folder: Path) -> None:
    """The image as people start it: nobody of this machine, one folder of theirs, nothing else to write to."""
    if not stage.user or stage.user.split(":")[0] in ("0", "root"):
        raise ValueError("the image runs as root")
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    os.chown(data, int(stage.user), int(stage.user))
    how = {"user": stage.user, "folder": stage.folder, **stage.environment}
    with mounted(root, "/data", str(data), "--bind"):
        assert "Usage: unet-engine" in inside(root, [*stage.start, *stage.default], **how)
        assert inside(root, ["id", "-u"], **how).strip() == stage.user
        said = json.loads(
            inside(root, [*stage.start, "demo", "/data/demo", "--json"], HOME="/tmp", **how).splitlines()[-1]
        )
    assert min(said["dice"].values()) > 0.9, said
    assert (data / "demo" / "labels.zarr").is_dir()
    assert (data / "demo").stat().st_uid == int(stage.user)
    print(f"started as {stage.user}: help, and the demo with Dice {said['dice']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extras", default="nifti")
    parser.add_argument("--recipe", action="append")
    given = parser.parse_args()
    if os.geteuid() or not shutil.which("debootstrap"):
        sys.exit("root and debootstrap are needed")
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in given.recipe or ("Containerfile", "unet-engine.def"):
        tried(HERE / name, folder, given.extras)


if __name__ == "__main__":
    main()
