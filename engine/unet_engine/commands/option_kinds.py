"""What a command is, and what its options take: numbers, places, lists; how ``--json`` before a command reaches it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from unet_engine.commands.completing import files
from unet_engine.errors import SettingsError
from unet_engine.units import finite


class _Number(click.types.FloatParamType):
    """A finite number: the type of every option that takes one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return finite(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a valid float: give a finite number", param, ctx)


NUMBER = _Number()


class Command(click.Command):
    """A command each of whose options may be given once, but for those that take several values and for flags.

    Of two values click takes the last and says nothing of the others.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.meta.get(_FOR_MACHINES) and not any(arg.partition("=")[0] == "--json" for arg in args):
            args = [*self._as_json(), *args]
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option, times in Counter(order).items():
                if times > 1 and isinstance(option, click.Option) and not (option.multiple or option.is_flag):
                    raise click.UsageError(f"{option.opts[0]} is given {times} times; give it once", ctx)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as fault:
            if "unexpected extra argument" in fault.message and any("--in" in one.opts for one in self.params):
                raise click.UsageError(f"{fault.message}, a volume is given by --in", ctx) from None
            raise

    def _as_json(self) -> list[str]:
        """What has the command end with JSON on stdout. One that takes a file writes there to ``-``."""
        option = next((one for one in self.params if "--json" in one.opts), None)
        if not isinstance(option, click.Option):
            return []
        return ["--json"] if option.is_flag else ["--json", "-"]


_FOR_MACHINES = "unet_engine.json"


def for_machines(ctx: click.Context, _option: click.Parameter, given: bool) -> None:  # noqa: FBT001
    """``--json`` before the name of a command means that of the command."""
    ctx.meta[_FOR_MACHINES] = given


def joined(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> str | None:
    """Of an option that may be given several times, what it means: a list parted by commas."""
    return ",".join(given) if given else None


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(NUMBER.convert(value, param, ctx), param, ctx)


class Place(click.ParamType):  # type: ignore[type-arg]  # of click 8.2 and before it has none
    """A path or URL that there may be."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        return files(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from unet_engine.paths import unusable
        from unet_engine.units import brief

        if why := unusable(str(value)):
            self.fail(f"{brief(value)}: {why}", param, ctx)
        return value


PLACE = Place()
COUNT = click.IntRange(1, 2**31 - 1)
THREADS = click.IntRange(1, 1024)


def sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    """One size per axis, as in ``64,64,64``; None where the option was left out. Raises `SettingsError` naming the
    option."""
    from unet_engine.settings.text import parse_window
    from unet_engine.units import brief

    if text is None:
        return None
    try:
        return parse_window(text)
    except ValueError as error:
        raise SettingsError(f"{option} {brief(text)}: {error}") from error
