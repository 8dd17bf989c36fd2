"""Which settings exclude one another, and which are only for others."""

from __future__ import annotations

from unet_engine.errors import SettingsError
from unet_engine.settings.fields import Fields
from unet_engine.settings.values import KEEP


def check(settings: Fields) -> None:
    """Raise `SettingsError` where settings exclude one another."""
    if settings.resume and settings.overwrite:
        raise SettingsError("--resume and --overwrite exclude each other; give one")
    if settings.gpus and settings.device != "auto":
        raise SettingsError("--gpus and --device exclude each other; give one")
    crowd = [name for name in ("workers", "scheduler", "cluster") if getattr(settings, name)]
    if len(crowd) > 1:
        raise SettingsError(f"--{crowd[0]} and --{crowd[1]} exclude each other; give one")
    if settings.gpus and settings.workers:
        raise SettingsError("--gpus and --workers exclude each other: every GPU gets a worker of its own; give one")
    tls = [getattr(settings, name) for name in ("tls_ca", "tls_cert", "tls_key")]
    if any(tls) and not all(tls):
        raise SettingsError("--tls-ca, --tls-cert and --tls-key belong together; give all three")
    _check_protocol(settings)
    _check_tiling(settings)
    _check_coarse(settings)
    if settings.overlap == "auto" and settings.blend != "gaussian":
        raise SettingsError("--overlap auto chooses how to blend as well; leave out --blend")
    if settings.overlap_tolerance is not None and settings.overlap != "auto":
        raise SettingsError("--overlap-tolerance is for --overlap auto; leave it out, or give both")
    if settings.part and settings.overwrite:
        raise SettingsError(
            "--overwrite and --part exclude each other: it would delete what other parts wrote; remove --out first"
        )
    if settings.output in ("labels", "masks") and settings.dtype:
        raise SettingsError("--dtype is for probabilities and logits; labels take the smallest unsigned type")
    if settings.output == "logits" and settings.dtype == "uint8":
        raise SettingsError("logits do not fit uint8; use --dtype float32 or float16")
    _check_outside(settings)
    _check_objects(settings)
    _check_levels(settings)


def _check_protocol(settings: Fields) -> None:
    if settings.protocol == "tcp":
        return
    if not settings.workers and (settings.gpus or 1) < 2:
        raise SettingsError(
            f"--protocol {settings.protocol} is for --workers N and for --gpus N of two or more; leave it out. "
            f"Elsewhere the address says it: --scheduler {settings.protocol}://host:port"
        )
    if settings.tls_ca:
        raise SettingsError(f"--protocol {settings.protocol} is not encrypted; leave one of the two out")


def _check_levels(settings: Fields) -> None:
    """Raise `SettingsError` where levels and labels in an image are asked for in ways that exclude one another."""
    if settings.into and settings.out:
        raise SettingsError("--into and --out exclude each other; give one")
    if settings.into and settings.pyramid:
        raise SettingsError("--into gives labels the levels of their image; leave --pyramid out")
    if settings.levels and not settings.pyramid:
        raise SettingsError("--levels is for --pyramid; leave it out, or give both")


def _check_objects(settings: Fields) -> None:
    """Raise `SettingsError` where objects cannot be told, or are not asked for."""
    given = [name for name in ("connectivity", "min_size", "fill_holes", "largest") if getattr(settings, name)]
    if given and not settings.components:
        raise SettingsError(f"--{given[0].replace('_', '-')} is for --components; leave it out, or give both")
    if settings.components and settings.output != "labels":
        raise SettingsError(f"--components are of labels, not of {settings.output}; leave --output out")


def _check_tiling(settings: Fields) -> None:
    """Raise `SettingsError` where the tiling is said twice, or not asked for."""
    auto = settings.tiling == "auto"
    if auto and (settings.overlap != 0.5 or settings.blend != "gaussian"):
        raise SettingsError("--tiling auto chooses overlap and blend; leave out --overlap and --blend")
    if settings.tiling and not auto and (settings.window or settings.overlap != 0.5 or settings.blend != "gaussian"):
        raise SettingsError("--tiling names window, overlap and blend; leave out --window, --overlap and --blend")
    for name in ("tolerance", "tiling_budget", "truth"):
        if getattr(settings, name) is not None and not auto:
            raise SettingsError(
                f"--{name.replace('_', '-')} is for --tiling auto; leave it out, or give both"
                + (" (--overlap auto has --overlap-tolerance)" if name == "tolerance" else "")
            )


def _check_coarse(settings: Fields) -> None:
    """Raise `SettingsError` where nothing may be skipped, or that is not asked for."""
    for name in ("coarse_miss", "coarse_budget"):
        if getattr(settings, name) is not None and not settings.coarse:
            raise SettingsError(f"--{name.replace('_', '-')} is for --coarse auto; leave it out, or give both")
    if settings.coarse and settings.output != "labels":
        raise SettingsError(f"--coarse auto proves labels, and {settings.output} are wanted; leave out one of them")
    if settings.coarse and settings.outside is not None:
        raise SettingsError("--coarse auto writes background where nothing is computed; leave out --outside")


def _check_outside(settings: Fields) -> None:
    """Raise `SettingsError` where the value for voxels outside cannot be stored."""
    if settings.outside in (None, KEEP):
        return
    value = float(str(settings.outside))
    stored = settings.dtype or {"labels": "uint16", "probabilities": "uint8", "masks": "uint8"}.get(
        settings.output, "float32"
    )
    highest = {"uint8": 2**8 - 1, "uint16": 2**16 - 1, "float16": 65504.0}.get(stored, 3.4e38)
    if stored.startswith("uint") and value not in range(int(highest) + 1):
        raise SettingsError(
            f"--outside {settings.outside}: {settings.output} are stored as whole numbers from 0 to {highest:g}; give one "
            "of these" + (", or --dtype float32" if settings.output == "probabilities" else "")
        )
    if abs(value) > highest:
        raise SettingsError(f"--outside {settings.outside} does not fit {stored}; give a value within ±{highest:g}")
