"""What only a process of its own can meet: streams, locales, limits, folders that go, names that are no text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.catalogue.fault import Fault, run

DONE = ("out.zarr",)


def _shell(
    name: str, shell: str, code: int, *says: str, command: tuple[str, ...] | None = None, **more: object
) -> Fault:
    return Fault(name, command or run(), code, says, shell=shell, **more)  # type: ignore[arg-type]


_FAILS = run(overlap="2")
_INFO = ("info", "scan.zarr")

FAULTS = [
    # streams: a run of hours does not end for what it says
    _shell("stderr to a full disk", "{} 2>/dev/full", 0, leaves=DONE),
    _shell("stdout to a full disk", "{} --json >/dev/full", 8, "stdout cannot be written", leaves=DONE, spoken=None),
    _shell("both to a full disk", "{} --json >/dev/full 2>/dev/full", 8, leaves=DONE),
    _shell("info to a full disk", "{} >/dev/full", 8, "stdout cannot be written", command=_INFO),
    _shell("stdout closed", "{} --json >&-", 0, leaves=DONE),
    _shell("stderr closed", "{} 2>&-", 0, leaves=DONE),
    _shell("all streams closed", "{} <&- >&- 2>&-", 0, leaves=DONE),
    _shell("a reader of stdout that has gone", "set -o pipefail; {} --json | true", 0, leaves=DONE),
    _shell("a reader of stderr that has gone", "set -o pipefail; {} 2>&1 | true", 0, leaves=DONE),
    _shell("a reader of one line", "set -o pipefail; {} 2>&1 | head -1 >/dev/null", 0, leaves=DONE),
    _shell("info to a reader that has gone", "set -o pipefail; {} | true", 0, command=_INFO),
    _shell("an error to a full disk", "{} 2>/dev/full", 2, command=_FAILS),
    _shell("an error to a reader that has gone", "set -o pipefail; {} 2>&1 | true", 2, command=_FAILS),
    _shell("help to a reader that has gone", "set -o pipefail; {} | true", 0, command=("run", "--help")),
    _shell("help to a full disk", "{} >/dev/full", 8, "stdout cannot be written", command=("run", "--help")),
    # locales and names
    _shell("a locale of C", "{}", 0, environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, leaves=DONE),
    _shell("a locale there is not", "{}", 0, environment={"LC_ALL": "xx_YY.nosuch"}, leaves=DONE),
    _shell("stdout in ASCII", "{}", 0, environment={"PYTHONIOENCODING": "ascii:strict"}, leaves=DONE),
    _shell("an error in ASCII", "{}", 2, "--overlap", environment={"PYTHONIOENCODING": "ascii:strict"}, command=_FAILS),
    _shell("an input whose name is no text", "mv scan.zarr $'sc\\xffan.zarr'; {} --in=$'sc\\xffan.zarr'", 2, "UTF-8", command=run(**{"in": None}),
           changes=("scan.zarr", "sc\udcffan.zarr")),
    _shell("a model whose name is no text", "{} --model=$'m\\xff.onnx'", 2, "UTF-8", command=run(model=None)),
    _shell("an output whose name is no text", "{} --out=$'o\\xff.zarr'", 2, "UTF-8", command=run(out=None)),
    _shell("a folder whose name is no text", "mkdir $'d\\xff'; cd $'d\\xff'; {}", 2, "UTF-8",
           command=run(**{"in": "../scan.zarr"}, model="../id.fake.toml"), changes=("d\udcff",)),
    _shell("an argument that is no text", "{} --overlap=$'\\xff'", 2, "--overlap", command=run()),
    # places
    _shell("a current folder that is gone", "mkdir d; cd d; rmdir ../d; {}", 2, "current folder"),
    _shell("help in a folder that is gone", "mkdir d; cd d; rmdir ../d; {}", 2, "current folder", command=("info", "x")),
    # limits
    _shell("a limit on the size of files", "ulimit -f 0; {}", 8, "out.zarr", spoken=None, leaves=DONE),
]  # fmt: skip


def _slow(here: Path) -> None:
    said = (here / "id.fake.toml").read_text()
    (here / "slow.fake.toml").write_text(said.replace("latency_ms = 0", "latency_ms = 200"))


def _signalled(name: str, kills: str, *flags: str) -> Fault:
    """A run of many seconds that signals end: with 130, but where Python itself was still starting."""
    shell = "{} & p=$!; " + kills + "; wait $p; code=$?; [ $code = 143 ] && code=130; exit $code"
    return Fault(name, run(*flags, model="slow.fake.toml"), 130, spoken=None, shell=shell, leaves=DONE, make=_slow)


FAULTS += [
    _signalled("SIGTERM at once", "sleep 0.05; kill -TERM $p"),
    _signalled("SIGTERM after 0.2 seconds", "sleep 0.2; kill -TERM $p"),
    _signalled("SIGTERM after 0.5 seconds", "sleep 0.5; kill -TERM $p"),
    _signalled("SIGTERM after 2 seconds", "sleep 2; kill -TERM $p"),
    _signalled("SIGHUP after 2 seconds", "sleep 2; kill -HUP $p"),
    # a job in the background would ignore it
    _shell(
        "SIGQUIT after 2 seconds",
        "timeout --foreground --preserve-status -s QUIT 2 {}",
        130,
        command=run(model="slow.fake.toml"),
        spoken=None,
        leaves=DONE,
        make=_slow,
    ),
    _signalled("SIGTERM three times", "sleep 2; kill -TERM $p; sleep 0.05; kill -TERM $p; sleep 0.05; kill -TERM $p"),
    _signalled("SIGTERM three times at once", "sleep 2; kill -TERM $p; kill -TERM $p; kill -TERM $p"),
    _signalled("SIGTERM and SIGHUP", "sleep 2; kill -TERM $p; kill -HUP $p"),
    _signalled("SIGTERM while workers start", "sleep 2; kill -TERM $p", "--workers=2"),
    _signalled("SIGTERM once workers run", "sleep 4; kill -TERM $p", "--workers=2"),
]

_QUICK = (
    "stderr to a full disk", "info to a full disk", "all streams closed", "a reader of stderr that has gone",
    "an error in ASCII",
    "an input whose name is no text", "a current folder that is gone", "SIGTERM after 2 seconds",
)  # fmt: skip
FAULTS = [replace(fault, slow=fault.name not in _QUICK) for fault in FAULTS]
