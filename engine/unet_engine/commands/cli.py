"""The command line. Nothing heavy is imported before a command runs, so that ``--help`` is instant."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from unet_engine.commands import interruption, running, streams
from unet_engine.commands.bench.options import bench_command
from unet_engine.commands.completing import words
from unet_engine.commands.converting import convert_command
from unet_engine.commands.describing import schema_command
from unet_engine.commands.farewell import TRACEBACK, said_of
from unet_engine.commands.importing import import_command
from unet_engine.commands.manual import completion_command, manual_command
from unet_engine.commands.models import COMMANDS
from unet_engine.commands.objects import OBJECT_COMMANDS
from unet_engine.commands.option_kinds import PLACE, Command, for_machines
from unet_engine.commands.options import cluster_options, running_options, settings_options, several_options
from unet_engine.commands.sources import model_of, with_model
from unet_engine.commands.telling import INTERRUPTED, JSON, speaks_json
from unet_engine.commands.viewing import view_command
from unet_engine.errors import OutputError, SettingsError, UnetEngineError
from unet_engine.profiling import beginning
from unet_engine.redaction import guard_streams
from unet_engine.threads.hanging import end
from unet_engine.units import printable

if TYPE_CHECKING:
    from unet_engine.api import Result
    from unet_engine.commands.notice import Notice
    from unet_engine.commands.screen import Screen
    from unet_engine.execution.team import Team
    from unet_engine.prepare.prepare import Prepared

_CHOOSE = " (tokens are not written to files: choose one with UNET_ENGINE_DASHBOARD_TOKEN)"


class _Commands(click.Group):
    command_class = Command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 132})
@click.version_option(package_name="unet-engine")
@click.option(
    "--json",
    is_flag=True,
    envvar=JSON,
    expose_value=False,
    callback=for_machines,
    help="As --json of the command that follows.",
)
def app() -> None:
    """Run a 2D or 3D U-Net over a Zarr volume of any size and write the stitched result.

    \b
    unet-engine demo DIR                              try it: makes a volume, runs, shows the result
    unet-engine run --in scan.zarr --model net.onnx   labels, beside the input
    unet-engine plan --in scan.zarr --model net.onnx  what a run would do, cost and take
    unet-engine view scan.zarr labels.zarr            look at it in a browser; with --model: segmented where one looks
    unet-engine finish labels.zarr                    state that all parts of a run are there, or say what is not
    unet-engine components labels.zarr objects.zarr   number what is connected; then table, polygons
    unet-engine convert labels.zarr labels.nii.gz     a result or a scan as a file of another format
    unet-engine import FOLDER --out net.onnx          a model file from a trained model of another tool
    unet-engine export weights.pth --factory m:f …    a model file from a trained network
    unet-engine quantize net.onnx --calibrate s.zarr  make it faster, proved on your own data
    unet-engine bench                                 what runs fastest on this machine
    unet-engine doctor                                what works on this machine; --fix: the commands for what does not
    unet-engine schema settings                       JSON schemas of settings, specs, results and errors

    Exit codes: 0 done, 2 options, 3 input, 4 voxels, 5 model, 6 back end, 7 does not fit, 8 output, 9 not resumable,
    10 cluster, 11 some of several volumes, 130 interrupted (resumable).
    """


@app.command("run")
@several_options
@cluster_options
@click.option("--resume", is_flag=True, default=None, help="Resume an output that was begun with the same settings.")
@click.option(
    "--verify", is_flag=True, default=None, help="With --resume: compare the contents of chunks with checksums, too."
)
@click.option(
    "--durable",
    type=bool,
    metavar="yes|no",
    shell_complete=words,
    help="Have the disk keep what is committed through a power cut; default: yes.",
)
@click.option("--overwrite", is_flag=True, default=None, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout; of each volume.")
@running_options
@click.argument("more", metavar="[PATH]...", nargs=-1, type=PLACE)
def run_command(*, as_json: bool, more: tuple[str, ...], **given: Any) -> None:
    """Run the model over a volume, or over several: those of --in, and those named behind."""
    with _importing():
        from unet_engine.commands import notice, report, screen  # noqa: F401  # all of a run

    ways = running.Ways.taken(given)
    ended, screens = [""], [screen.stderr()]

    def tell(text: str) -> None:
        screens[-1].note(text)

    message = notice.Notice(ways.address(), running.command(), tell)
    with notice.notified(message, lambda: ended[0]):
        ways.check_apart([*given["input"], *more], [given["out"]] if given["out"] else [])
        screens.append(console := ways.console())
        with _asked(ways, console, message, given, more, as_json=as_json) as task:
            task.result = task.work()
        ended[0] = task.line


@contextmanager
def _importing() -> Iterator[None]:
    """Inside, imports of many modules take less."""
    from unet_engine import machine
    from unet_engine.commands.generated import known_code

    with machine.uncollected(), _without_fsspec(), known_code():
        yield


@contextmanager
def _without_fsspec() -> Iterator[None]:
    """Inside, zarr does not find fsspec, which it looks for to know maps of it where it is handed one: that is never
    done here. Whoever needs fsspec imports it later."""
    if "fsspec" in sys.modules:
        yield
        return
    sys.modules["fsspec"] = None  # type: ignore[assignment]  # None there: not to be found
    try:
        yield
    finally:
        del sys.modules["fsspec"]


@dataclass
class _Task:
    """What was asked for: one thing to do, while all that lies around it is open."""

    work: Callable[[], Any]
    result: Any = None
    line: str = ""
    """What it came to, known once all around it is closed."""


@contextmanager
def _asked(
    ways: running.Ways,
    console: Screen,
    message: Notice,
    given: dict[str, Any],
    more: tuple[str, ...],
    *,
    as_json: bool,
) -> Iterator[_Task]:
    """What the command was given comes to."""
    from unet_engine.batches.inputs import are_several, check_behind
    from unet_engine.batches.outputs import out_of_one
    from unet_engine.prepare.channels import is_numbered
    from unet_engine.settings.settings import from_environment

    check_behind(more)
    ways.price()
    around = from_environment()
    inputs = given["input"] = [*given["input"], *more] or [around[key] for key in ("input",) if key in around]
    image, axes = (given.get(key) or around.get(key) for key in ("image", "axes"))
    if inputs and are_several(inputs, image, axes):
        yield (task := _Task(partial(_run_several, ways, console, message, given, as_json=as_json)))
        task.line = task.result
        return
    given["input"] = inputs[0] if inputs else None
    out = given.get("out") or around.get("out")
    if inputs and out and not is_numbered(inputs[0]) and (named := out_of_one(str(out), inputs[0])) != out:
        given["out"] = named
    if ways.dry_run:
        yield (task := _Task(partial(_plan, given, as_json=as_json)))
        task.line = "planned"
        return
    with _one(ways, console, message, given, as_json=as_json) as task:
        yield task


@contextmanager
def _one(
    ways: running.Ways, console: Screen, message: Notice, given: dict[str, Any], *, as_json: bool
) -> Iterator[_Task]:
    """The run of one volume, planned and told; what it leaves is told behind it."""
    from unet_engine.api import run_volume
    from unet_engine.batches.batch import placed
    from unet_engine.batches.times import are_several, run_times
    from unet_engine.commands import report
    from unet_engine.execution.choose import team
    from unet_engine.settings.settings import Settings

    with running.recorded(ways, console, running.Record.of(given), message) as record, ExitStack() as stack:

        def tell(*notes: str) -> None:
            record.notes += notes
            _tell(console, notes)

        unfinished = stack.enter_context(ways.reported([given["input"] or ""], console, notes=lambda: record.notes))
        settings = placed(with_model(Settings.of(**_required(given)), tell))
        if are_several(settings):
            steps = running.Steps(console, tell, ways.pages_of_times(console.say))
            if unfinished:
                unfinished.pages = steps.pages
            yield (task := _Task(partial(run_times, settings, steps, tell)))
            record.result = task.result
            task.line = _say_result(task.result, ways, console, as_json=as_json)
            steps.reported(settings, task.result)
            return
        page = ways.page(settings)
        settings = stack.enter_context(page.profiled(settings)) if page else settings
        with team(settings, tell) as crew:
            prepared = crew.prepare()
            record.prepared(crew, prepared)
            tell(*crew.notes, *prepared.notes)
            console.pairs(report.plan_lines(prepared))
            if crew.dashboard:
                hidden = "token=" in crew.dashboard and not console.is_terminal
                console.pairs([("dashboard", crew.dashboard + _CHOOSE * hidden)])
            interruption.writing(prepared.survey.named)

            def watch(prepared: Prepared, crew: Team) -> AbstractContextManager[Any]:
                if unfinished:
                    unfinished.under_way(prepared)
                return nullcontext() if console.silent else report.Watcher(prepared, crew, console)

            yield (task := _Task(partial(run_volume, crew, prepared, watch, tell)))
            result = record.result = task.result
            if page:
                page.write(prepared, result, record.notes, ways.price(), crew.give(), console.say)
    interruption.writing(None)
    task.line = _say_result(result, ways, console, as_json=as_json)
    if page:
        console.say(f"report: {page.path}")
    if not page or page.asked_for_profile:
        report.print_stages(result, console)
    if not result.complete:
        console.say(
            f"part {result.part} is done, others are not: the last of them completes {result.out}, "
            f"or: unet-engine finish {result.out}"
        )


def _say_result(result: Result, ways: running.Ways, console: Screen, *, as_json: bool) -> str:
    """In a line for people, which is returned, and with ``--json`` in one for programs."""
    from unet_engine.commands import report

    console.say(line := report.result_line(result) + ways.priced(result))
    if as_json:
        click.echo(json.dumps(asdict(result) | ways.cost(result)))
    return line


def _run_several(ways: running.Ways, console: Screen, message: Notice, given: dict[str, Any], *, as_json: bool) -> str:
    echo = (lambda facts: click.echo(json.dumps(facts))) if as_json else None
    told = {key: value for key, value in given.items() if key != "input"}
    adapt = partial(with_model, tell=_say)
    try:
        return running.run_several(given["input"], told, ways, console, message, adapt, echo)
    except KeyboardInterrupt:  # threads may be in the middle of a block
        sys.stdout.flush()
        text = interruption.said()
        message.send(text, INTERRUPTED)
        end(text, INTERRUPTED)


def _say(text: str) -> None:
    click.echo(text, err=True)


@app.command("plan")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one line of JSON.")
def plan_command(*, as_json: bool, **given: Any) -> None:
    """Show what a run would do: grid, blocks, work, bytes, memory, time. Nothing is written."""
    _plan(given, as_json=as_json)


def _plan(given: dict[str, Any], *, as_json: bool) -> None:
    with _importing():
        from unet_engine.batches.batch import placed
        from unet_engine.batches.times import first_of
        from unet_engine.commands import report, screen
        from unet_engine.execution.choose import planned
        from unet_engine.settings.settings import Settings

    console = screen.stderr()
    settings = placed(with_model(Settings.of(**_required(given)), lambda text: _tell(console, [text])))
    settings = first_of(settings, lambda text: _tell(console, [text]))
    prepared = planned(settings, lambda text: _tell(console, [text]))
    if as_json:
        click.echo(json.dumps(report.plan_facts(prepared)))
        return
    _tell(console, prepared.notes)
    screen.stdout().pairs(report.plan_lines(prepared))


@app.command("finish")
@click.argument("out", type=PLACE)
@click.option("--verify", is_flag=True, help="Compare the contents of chunks with their checksums, too.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def finish_command(out: str, *, verify: bool, as_json: bool) -> None:
    """Complete the output OUT, once all its parts have run. Says what is missing otherwise."""
    from unet_engine.commands import screen
    from unet_engine.output.completion import line
    from unet_engine.postprocess.working import finish

    facts = finish(out, verify=verify)
    screen.stderr().say(line(facts))
    if as_json:
        click.echo(json.dumps(facts))


@app.command("info")
@click.argument("path", type=PLACE)
@click.option("--axes", metavar="AXES", help="Axes of the stored array, e.g. czyx.")
@click.option("--window", metavar="Z,Y,X", help="Window for a foreign ONNX file that names none.")
@click.option("--head", metavar="NAME", help="The output that is wanted, of a network with several.")
@click.option("--trust", is_flag=True, help="Run the code of a model of another tool; asked once per file.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def info_command(
    path: str, *, axes: str | None, window: str | None, head: str | None, trust: bool, as_json: bool
) -> None:
    """Describe a volume, a model file, or a model of another tool."""
    with _importing():
        from unet_engine.commands import screen
        from unet_engine.commands.info import describe, is_volume_file, lines

    model = path if is_volume_file(path) else model_of(path, trust=trust, head=head)
    facts = describe(model, axes, window, head if model == path else None)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        screen.stdout().pairs(lines(facts))


@app.command("demo")
@click.argument("folder", metavar="DIR", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON on stdout.")
def demo_command(folder: str, *, as_json: bool) -> None:
    """Make a synthetic volume in DIR, segment it, show what came out and what to try next."""
    from unet_engine.commands.demo import demo

    facts = demo(folder)
    if as_json:
        click.echo(json.dumps(facts))


for _command in (
    completion_command,
    manual_command,
    import_command,
    convert_command,
    *COMMANDS,
    *OBJECT_COMMANDS,
    view_command,
    bench_command,
    schema_command,
):
    app.add_command(_command)


def _tell(console: Any, notes: Iterable[str]) -> None:
    for note in notes:
        console.note(note)


def _required(given: dict[str, Any]) -> dict[str, Any]:
    if given.get("input") is None and not os.environ.get("UNET_ENGINE_INPUT"):
        raise click.UsageError("no input: use --in PATH, e.g. unet-engine run --in scan.zarr --model net.onnx")
    return given


def _fail(message: str, code: int, kind: str = "SettingsError") -> NoReturn:
    """One line for people on stderr, and with --json one for programs on stdout."""
    line = printable(" ".join(message.split()))
    atexit.register(streams.hush)
    click.echo(f"unet-engine: {line}", err=True)
    if speaks_json(sys.argv[1:]):
        with suppress(OSError):  # nobody reads it
            click.echo(json.dumps({"error": {"type": kind, "message": line, "exit_code": code}}))
    sys.exit(code)


def _tell_of_misuse(error: click.UsageError) -> None:
    """What `run` was given is no command of this version; who waits for its message hears of it."""
    from unet_engine.batches.notify import Address
    from unet_engine.commands import notice, screen
    from unet_engine.commands.going_on import address_in

    with suppress(UnetEngineError):  # an address that is none is no reason to say another thing
        address = Address.of(said) if (said := address_in(sys.argv[1:])) else None
        notice.Notice(address, running.command(), screen.stderr().note).send(*said_of(error))


_signals: list[int] = []
"""Signals that asked us to end. Python turns the exception of one that arrives during an import into another."""


_over: list[bool] = []
"""Whether the last word was said. What is left then is waiting for threads, and a signal would end that in a traceback;
that it came is seen all the same, see `interruption.watch`."""


def _terminate(signum: int, frame: object) -> None:
    _signals.append(signum)
    if not _over:
        raise KeyboardInterrupt


def _end(message: str, code: int) -> NoReturn:
    _over.append(True)
    _fail(message, code, "Interrupted")


def _heed_signals() -> None:
    _over.clear()
    interruption.writing(None)
    for name in interruption.ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup and shells have some ignored
            signal.signal(number, _terminate)
    if signal.getsignal(signal.SIGTERM) == _terminate:
        interruption.watch(INTERRUPTED)


def main() -> None:
    """Entry point: errors become one line and their exit code; SIGTERM ends a run like Ctrl-C, resumable."""
    _heed_signals()
    beginning.of_this_process()
    streams.prepare()
    guard_streams()
    # pydantic looks for plugins in the metadata of all that is installed, and models of settings need none
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        _fail("the current folder is gone; change to one that is there", SettingsError.exit_code)
    try:
        app(prog_name="unet-engine", standalone_mode=False)
        if unsaid := streams.unsaid():
            _fail(
                f"stdout cannot be written: {unsaid.strerror}; send it elsewhere", OutputError.exit_code, "OutputError"
            )
    except (UnetEngineError, click.ClickException) as error:
        if isinstance(error, click.UsageError) and error.ctx and error.ctx.command is run_command:
            _tell_of_misuse(error)
        _fail(*said_of(error), "UsageError" if isinstance(error, click.ClickException) else type(error).__name__)
    except (KeyboardInterrupt, click.Abort) as error:
        _end(*said_of(error))
    except Exception as error:
        if _signals:
            _end(interruption.said(), INTERRUPTED)
        if os.environ.get(TRACEBACK):
            raise
        _fail(*said_of(error), type(error).__name__)
