"""All time points of a volume, or a range of them, by one command: each is a run of its own, one after the other with
one network, and their chunks become one output with a time axis by renaming them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from unet_engine.api import Result
from unet_engine.batches import times_store
from unet_engine.batches.batch import Observer, Outcome, Volume, opened, run_all
from unet_engine.errors import OutputError, ResumeError, SettingsError, UnetEngineError, writing
from unet_engine.execution.hands import here
from unet_engine.execution.team import Team
from unet_engine.model.file import ModelFile
from unet_engine.output import output
from unet_engine.output.array import METADATA
from unet_engine.output.completion import SUMMED
from unet_engine.output.header import ARRAY, PROVENANCE, read_header
from unet_engine.paths import inside, is_local
from unet_engine.postprocess.base import digest
from unet_engine.postprocess.formats import account_of, is_one_file
from unet_engine.postprocess.pyramid import Wanted, pyramid
from unet_engine.postprocess.working import hand_over, is_file, is_handed_over, work_of
from unet_engine.prepare.given import Given
from unet_engine.prepare.prepare import Prepared
from unet_engine.prepare.survey import Survey, check_output, survey
from unet_engine.settings.settings import Settings
from unet_engine.storage import stores
from unet_engine.storage.durability import ON_DISK, WHENEVER, Durability, put
from unet_engine.units import Tell, silent
from unet_engine.volumes.base import Timing
from unet_engine.volumes.collection import timing_of
from unet_engine.volumes.formats import located, open_stored
from unet_engine.volumes.samples import fingerprint

TIMES = "timepoints"


def are_several(settings: Settings) -> bool:
    return isinstance(settings.timepoint, str)


def times_of(settings: Settings) -> list[int]:
    """The time points that are named, where several are. Raises `SettingsError` where there are none of them."""
    place = located(settings.input, settings.image, settings.level)
    return _numbers(str(settings.timepoint), open_stored(place, settings.axes).timepoints, place)


def _timing(place: str, settings: Settings) -> Timing:
    """When the time points of the volume at `place` were taken; a step of 1 where nothing says it."""
    beside = account_of(inside(place)[0]) if is_local(place) and is_one_file(place) else None
    return timing_of(open_stored(place, settings.axes), beside or {}) or Timing(1.0)


def first_of(settings: Settings, tell: Tell = silent) -> Settings:
    """The settings of the first time point, where several are named."""
    if not are_several(settings):
        return settings
    times = times_of(settings)
    tell(f"planned is time point {times[0]}, the first of {len(times)}: each is a run like it")
    return settings.model_copy(update={"timepoint": times[0]})


class _Silent:
    """Nobody is told of single runs."""

    def note(self, volume: Volume, text: str) -> None: ...

    def planned(self, volume: Volume, prepared: Prepared, crew: Team) -> None: ...

    def ended(self, outcome: Outcome) -> None: ...


UNSEEN: Observer = _Silent()


def run_times(settings: Settings, observer: Observer, tell: Tell) -> Result:
    """Run the time points that `Settings.timepoint` names, and write one output with a time axis. Raises what runs
    raise: what is committed stays, and is resumed."""
    place, times = located(settings.input, settings.image, settings.level), times_of(settings)
    model = opened(settings)
    surveyed = survey(settings.model_copy(update={"timepoint": times[0]}), Given(model=model))
    named = surveyed.named
    _check(settings, named)
    check_output(surveyed)
    asked, each = _asked(surveyed), [_of(settings, time, f"{work_of(named)}-t{time}") for time in times]
    parts = _Parts(named, [str(one.out) for one in each], times, _timing(place, settings), asked)
    if settings.overwrite and not parts.remote:
        shutil.rmtree(parts.whole, ignore_errors=True)  # of an earlier command
    elif not settings.overwrite and not settings.resume and parts.are_being_joined():
        raise OutputError(f"{named} was begun by an earlier run; use --resume to continue it, or --overwrite")
    begun = parts.begun()
    result = _already(parts, parts.joined if begun else parts.ends, each, model) if settings.resume else None
    if result:
        result = replace(result, already_complete=not begun)
        tell(f"{named} is already complete")
    durability, replaces = ON_DISK if settings.durable else WHENEVER, settings.overwrite or settings.resume
    results = [] if result else _run_each(named, each, observer, model)
    if begun or not result:
        with writing(named, "putting its time points together"):
            if result and parts.remote:
                _remove_works(parts)
            else:
                _assemble(parts, durability=durability, overwrite=replaces)
    result = result or _summed(named, results)
    if parts.ends[0] != named and stores.exists(parts.ends[0]):
        for text in hand_over(named, overwrite=replaces, durability=durability):
            tell(text)
        result = replace(result, already_complete=False)
    return _with_pyramid(result, named, settings, tell)


def _run_each(named: str, each: Sequence[Settings], observer: Observer, model: ModelFile | None) -> list[Result]:
    runs = [Volume(number, len(each), one, str(one.out), model, named) for number, one in enumerate(each, 1)]
    outcomes = run_all(runs, observer, keep_going=False)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    results = [outcome.result for outcome in outcomes if outcome.result]
    if len(results) < len(each):
        raise UnetEngineError(f"{named}: {len(each) - len(results)} time points were not run; run again with --resume")
    return results


def _with_pyramid(result: Result, named: str, settings: Settings, tell: Tell) -> Result:
    if not settings.pyramid:
        return result
    wanted, hands = Wanted(named, settings.levels, overwrite=True, durable=settings.durable), here(settings.memory)
    found = pyramid(wanted, hands.crew, memory=max(hands.memory, 2**26), tell=tell)
    return replace(
        result, levels=found["levels"], already_complete=result.already_complete and not found["boxes_written"]
    )


def _numbers(text: str, count: int, path: str) -> list[int]:
    """``all``, ``2:5``, ``2:`` or ``:5`` as numbers. Raises `SettingsError` where there are none of them."""
    first, _, last = text.partition(":") if text != "all" else ("", ":", "")
    found = range(int(first or 0), int(last) if last else count)
    if not found or found[-1] >= count:
        raise SettingsError(f"--timepoint {text}: {path} has {count}, counted from 0; name some of them")
    return list(found)


def _of(settings: Settings, time: int, work: str) -> Settings:
    return settings.model_copy(
        update={"timepoint": time, "out": work, "into": None, "pyramid": False, "levels": None, "profile": None}
    )


def _check(settings: Settings, named: str) -> None:
    """Raise `SettingsError` for what several time points do not go with."""
    for name in ("components", "part", "profile"):
        if getattr(settings, name):
            raise SettingsError(
                f"--{name} is of one time point, not of {settings.timepoint}; leave it out, or name one"
            )
    if is_file(named):
        raise SettingsError(
            f"--timepoint {settings.timepoint} is written as OME-Zarr, and {named} is none; use --out NAME.zarr, then "
            "unet-engine convert"
        )


def _already(parts: _Parts, places: Sequence[str], each: Sequence[Settings], model: ModelFile | None) -> Result | None:
    """What is known of the complete output at the first of `places` that has one. Raises `ResumeError` where another
    command made it, or from voxels that have changed."""
    for place in places:
        header = read_header(place)
        if header is None:
            continue
        if header.get(TIMES) != list(parts.times) or header.get("asked") != parts.asked:
            if parts.remote and parts.begun():
                return None  # of another command, whose output this one is to replace
            raise ResumeError(
                f"{place} was made with other settings or of other time points; use --overwrite to replace it"
            )
        if not header.get("complete"):
            return None
        now = [fingerprint(survey(one, Given(model=model)).scan) for one in each]
        if header.get("inputs") != now:
            raise ResumeError(f"{place} was made of other voxels than the input has now; use --overwrite to replace it")
        summary: dict[str, Any] = dict(header.get("summary") or {})
        known = {field: summary[field] for field in Result.__dataclass_fields__ if field in summary}
        return Result(**{**known, "out": parts.named, "digest": str(header.get("digest")), "already_complete": True})
    return None


def _asked(surveyed: Survey) -> dict[str, Any]:
    """Which settings decide the result, as far as they are known before a network is loaded."""
    free = {
        "timepoint",
        "out",
        "into",
        "resume",
        "overwrite",
        "verify",
        "memory",
        "workers",
        "threads",
        "window_threads",
        "pyramid",
        "levels",
        "durable",
        "trust",
        "strict",
        "hang_seconds",
        "scheduler",
        "cluster",
        "protocol",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "dashboard",
        "dashboard_token",
    }
    said = surveyed.settings.model_dump(mode="json", exclude=free)
    return {"settings": digest(said), "model": surveyed.model.sha256}


# --- one output of several ---


@dataclass(frozen=True)
class _Parts:
    """The outputs of single time points, and what becomes of them."""

    named: str
    works: Sequence[str]
    times: Sequence[int]
    axis: Timing
    asked: dict[str, Any]

    @property
    def remote(self) -> bool:
        """Whether they lie in a bucket."""
        return not is_local(self.named)

    @property
    def whole(self) -> Path:
        """Where they are put together on a disk. Its header says of what, before the first chunk is there, and that it
        is complete, after the last one."""
        return Path(f"{work_of(self.named)}-all")

    @property
    def joined(self) -> list[str]:
        """Where they are put together: in a bucket, where the whole is to lie."""
        return self.ends[:1] if self.remote else [str(self.whole)]

    def are_being_joined(self) -> bool:
        """Whether an earlier command began to put them together, and was killed."""
        if not self.remote:
            return self.whole.exists()
        header = read_header(self.ends[0]) or {}
        return TIMES in header and not header.get("complete")

    @property
    def ends(self) -> list[str]:
        """Where the whole is moved to, and where that is handed over to."""
        return [work_of(self.named), self.named] if is_handed_over(self.named) else [self.named]

    def begun(self) -> bool:
        return self.are_being_joined() or any(map(stores.exists, self.works))


def _assemble(parts: _Parts, *, durability: Durability, overwrite: bool) -> None:
    """May be killed anywhere, and called again: each time point's group keeps its metadata until the whole is complete,
    and the whole is that until it is at its end."""
    if parts.remote:
        array = _array_of(parts)
        times_store.put_together(parts.works, parts.ends[0], array, _with_times(parts, array), overwrite=overwrite)
        _remove_works(parts)
        return
    whole, target = parts.whole, Path(parts.ends[0])
    if not (read_header(str(whole)) or {}).get("complete"):
        _gather(parts, whole, durability)
    _remove_works(parts)
    if target.exists():
        if not overwrite and target == Path(parts.named):
            raise OutputError(f"{parts.named} appeared meanwhile and is kept; use --overwrite to replace it")
        output.remove(str(target))
    whole.rename(target)
    durability.folders([target.absolute().parent])


def _remove_works(parts: _Parts) -> None:
    for work in parts.works:
        if is_local(work):
            shutil.rmtree(work, ignore_errors=True)
        elif stores.exists(work):
            output.remove(work)


def _array_of(parts: _Parts) -> dict[str, Any]:
    """The metadata of the whole's array."""
    array = _read(f"{parts.works[0]}/{ARRAY}")
    array["shape"] = [len(parts.works), *array["shape"]]
    grid = array["chunk_grid"]["configuration"]
    grid["chunk_shape"] = [1, *grid["chunk_shape"]]
    array["dimension_names"] = ["t", *array["dimension_names"]]
    return array


def _gather(parts: _Parts, whole: Path, durability: Durability) -> None:
    (whole / ARRAY / "c").mkdir(parents=True, exist_ok=True)
    array = _array_of(parts)
    put(whole / ARRAY / METADATA, json.dumps(array, indent=2).encode(), durability)
    group = _with_times(parts, array)

    def say(*, complete: bool) -> None:
        group["attributes"][PROVENANCE]["complete"] = complete
        put(whole / METADATA, json.dumps(group, indent=2).encode(), durability)

    say(complete=False)
    for number, work in enumerate(parts.works):
        source, to = Path(work, ARRAY, "c"), whole / ARRAY / "c" / str(number)
        if source.exists() and not to.exists():
            source.rename(to)
    durability.folders([whole / ARRAY / "c"])
    say(complete=True)


def _with_times(parts: _Parts, array: dict[str, Any]) -> dict[str, Any]:
    """The metadata of the whole, but for whether it is complete."""
    all_groups, (step, start, unit) = [_read(work) for work in parts.works], astuple(parts.axis)
    group = all_groups[0]
    attributes = group["attributes"]
    for image in attributes["ome"]["multiscales"]:
        image["name"] = Path(parts.named).stem
        image["axes"] = [{"name": "t", "type": "time", **({"unit": unit} if unit else {})}, *image["axes"]]
        for move in image["datasets"][0]["coordinateTransformations"]:
            move[move["type"]].insert(0, step if move["type"] == "scale" else start + step * parts.times[0])
    headers = [one["attributes"][PROVENANCE] for one in all_groups]
    summaries = [dict(header.get("summary") or {}) for header in headers]
    sums = {key: round(sum(s.get(key, 0) for s in summaries), 4) for key in SUMMED}
    digests = [header["digest"] for header in headers]
    attributes[PROVENANCE] = {
        **headers[0], TIMES: list(parts.times), "digests": digests, "digest": digest({"digests": digests}),
        "inputs": [header["identity"]["input"] for header in headers], "array": array, "asked": parts.asked,
        "normalizations": [header.get("normalization") for header in headers], "summary": {**summaries[0], **sums},
    }  # fmt: skip
    return group


def _read(node: str) -> dict[str, Any]:
    return dict(json.loads(Path(node, METADATA).read_bytes())) if is_local(node) else times_store.read(node)


def _summed(named: str, results: Sequence[Result]) -> Result:
    added = ("windows_planned", "windows_inferred", "windows_skipped", "blocks_planned", "blocks_written", "voxels",
             "bytes_read", "bytes_written", "halo_bytes")  # fmt: skip
    sums = {key: sum(getattr(result, key) for result in results) for key in added}
    seconds = sum(result.seconds for result in results)
    header: dict[str, Any] = {}
    with suppress(Exception):
        header = read_header(work_of(named) if is_handed_over(named) else named) or {}
    return replace(
        results[0], **sums, out=named, digest=str(header.get("digest", "")), seconds=round(seconds, 4),
        voxels_per_second=round(sums["voxels"] / seconds, 1) if seconds else 0.0,
        peak_rss_bytes=max(result.peak_rss_bytes for result in results),
        notes=tuple(dict.fromkeys(note for result in results for note in result.notes)), already_complete=False,
    )  # fmt: skip
