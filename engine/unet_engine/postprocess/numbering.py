"""Components as an output of any format: a Zarr group, or a file that is made of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unet_engine.output.header import read_header
from unet_engine.postprocess.base import Crew, digest
from unet_engine.postprocess.components import components, identity_of
from unet_engine.postprocess.joining import Rules
from unet_engine.postprocess.source import Source, check_labels
from unet_engine.postprocess.target import Wish
from unet_engine.postprocess.working import check_named, hand_over, is_handed_over, said_of, settled, work_of
from unet_engine.units import Tell, silent


def number(
    source: Source, rules: Rules, wish: Wish, crew: Crew, *, memory: int, dtype: str | None = None, tell: Tell = silent
) -> dict[str, Any]:
    """What `components` does, in the format that the name of the output says. Raises what that raises, and
    `OutputError` where the format cannot hold the numbers."""
    check_labels(source)
    if not is_handed_over(wish.path):
        return components(source, rules, wish, crew, memory=memory, dtype=dtype, tell=tell)
    named, work = wish.path, work_of(wish.path)
    name = digest(identity_of(source, rules, dtype))
    if wish.resume and settled(named, name):
        tell(f"{named} is already complete")
        return {"out": named, **((said_of(named) or {}).get("summary") or {})}
    check_named(named, resume=wish.resume, overwrite=wish.overwrite)
    replaces = wish.overwrite or wish.resume
    # of an attempt to replace the file there may be a group already
    begun = read_header(work) is not None
    wish = replace(wish, path=work, resume=wish.resume and begun, overwrite=wish.overwrite and begun)
    facts = components(source, rules, wish, crew, memory=memory, dtype=dtype, tell=tell)
    for loss in hand_over(named, overwrite=replaces, crew=crew, memory=memory):
        tell(loss)
    return {**facts, "out": named}
