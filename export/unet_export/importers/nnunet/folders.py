"""Where in what the user names the files of a result folder lie: the folder itself, one of its folds, a checkpoint, or
a folder around it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from unet_engine.errors import ModelError, SettingsError
from unet_export.importers.nnunet.plans import DATASET, PLANS

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_best.pth")
_FIRST_VERSION = ("plans.pkl",)
_FOLD = re.compile(r"fold_([0-9]{1,4}|all)")
_DATA_SET = re.compile(r"Dataset\d{3}_.*")
_MOST_BESIDE = 1000


@dataclass(frozen=True)
class Folder:
    """What was named."""

    root: Path
    """With plans, dataset and folds."""
    fold: str | None = None
    """``0``, ``1`` … or ``all``, where one was named."""
    checkpoint: str | None = None
    """Name of the file, where one was named."""


def located(path: Path) -> Folder | None:
    """The folder that `path` lies in, is, or holds; None where it is none of nnU-Net. Looks at names alone."""
    if path.is_file():
        inside = path.suffix == ".pth" and _FOLD.fullmatch(path.parent.name) and _is_root(path.parent.parent)
        return Folder(path.parent.parent, _fold(path.parent), path.name) if inside else None
    if _is_root(path):
        return Folder(path)
    if _FOLD.fullmatch(path.name) and _is_root(path.parent):
        return Folder(path.parent, _fold(path))
    inside_it = _within(path)
    return Folder(inside_it[0] if len(inside_it) == 1 else path) if inside_it else None


def is_first_version(path: Path) -> bool:
    """Whether it is of nnU-Net 1, which wrote other files."""
    return path.is_dir() and any((path / name).is_file() or (path.parent / name).is_file() for name in _FIRST_VERSION)


def checked(path: Path, found: Folder) -> Folder:
    """Raises `ModelError` where several trained networks lie in the folder."""
    if _is_root(found.root):
        return found
    names = ", ".join(str(inside.relative_to(found.root)) for inside in _within(found.root)[:8])
    raise ModelError(f"{path} holds several trained configurations; name one of the folders in it: {names}")


def folds(found: Folder, wanted: str | None) -> list[tuple[str, Path]]:
    """Name and checkpoint of each fold that is meant: those that the user wants, else the one that was named, else all
    that are numbered and have their last checkpoint, as nnU-Net itself does. Raises `ModelError` and `SettingsError` for
    those that are not there."""
    there = _folds_of(found.root)
    if not there:
        raise ModelError(f"{found.root} has no fold_0 or the like beside {PLANS}; get the folds, too")
    numbered = _trained(found.root, [fold for fold in there if fold != "all"] or there)
    if wanted is None:
        chosen = [found.fold] if found.fold else numbered
    elif wanted.strip() == "all":
        chosen = numbered
    else:
        chosen = [part.strip().removeprefix("fold_") for part in wanted.split(",")]
    missing = [fold for fold in chosen if fold not in there]
    if missing or len(set(chosen)) < len(chosen):
        what = f"no fold {missing[0]}" if missing else "a fold twice"
        raise SettingsError(f"--folds {wanted}: {what}; {found.root} has {', '.join(there)}: name them once, or all")
    return [(fold, _checkpoint(found, fold)) for fold in chosen]


def _trained(root: Path, listed: list[str]) -> list[str]:
    """Those whose training has ended, or all where none has."""
    return [fold for fold in listed if (root / f"fold_{fold}" / _CHECKPOINTS[0]).is_file()] or listed


def passed_over(found: Folder, chosen: list[str]) -> list[str]:
    """The folds that are there and are not among those `chosen`, unless one was named."""
    return [] if found.fold else [fold for fold in _folds_of(found.root) if fold not in chosen]


def _checkpoint(found: Folder, fold: str) -> Path:
    folder = found.root / f"fold_{fold}"
    if found.checkpoint:
        return folder / found.checkpoint
    for name in _CHECKPOINTS:
        if (folder / name).is_file():
            return folder / name
    unfinished = " (its training has not ended: checkpoint_latest.pth may be named itself)"
    beside = unfinished if (folder / "checkpoint_latest.pth").is_file() else ""
    raise ModelError(f"{folder} has neither {' nor '.join(_CHECKPOINTS)}{beside}; get it, or take another with --folds")


def _folds_of(root: Path) -> list[str]:
    found = [path.name for path in sorted(root.iterdir()) if path.is_dir() and _FOLD.fullmatch(path.name)]
    return sorted((name.removeprefix("fold_") for name in found), key=lambda f: (f == "all", len(f), f))


def _fold(path: Path) -> str:
    return path.name.removeprefix("fold_")


def _is_root(path: Path) -> bool:
    return (path / PLANS).is_file() and (
        (path / DATASET).is_file() or any(_FOLD.fullmatch(p.name) for p in _some(path))
    )


def _within(path: Path) -> list[Path]:
    """The roots right in a folder, as in that of a data set; else those in its data sets, as in ``nnUNet_results``."""
    folders = [inside for inside in sorted(_some(path)) if inside.is_dir()]
    return [inside for inside in folders if _is_root(inside)] or [
        root for inside in folders if _DATA_SET.fullmatch(inside.name) for root in _within(inside)
    ]


def _some(path: Path) -> list[Path]:
    try:
        return [entry for _, entry in zip(range(_MOST_BESIDE), path.iterdir(), strict=False)] if path.is_dir() else []
    except OSError:
        return []
