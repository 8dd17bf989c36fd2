"""What can go wrong, and the exit code the command line gives it.

    UnetEngineError                1   anything of ours that has no code of its own
    +-- SettingsError              2   an option or a setting that makes no sense (click's own code for usage)
    +-- InputError                 3   the input volume: missing, not Zarr, wrong axes, channels, type
    |   +-- DataError              4   voxels that cannot be used: NaN or Inf, a truncated or corrupt chunk
    +-- ModelError                 5   the model file: missing, corrupt, does not take this window or volume
    +-- BackendError               6   the back end: not installed, no such device or precision, failed to infer
    +-- PlanError                  7   the work does not fit the memory it was given
    +-- OutputError                8   the output: exists, cannot be written, disk full
    |   +-- ResumeError            9   the output belongs to a run with another model, grid, precision or input
    +-- ClusterError              10   the Dask cluster: not reachable, no workers, scheduler lost, workers killed by
                                       a block
    +-- BatchError                11   of several volumes some failed, and the others were run (--keep-going)

A store that does not answer, or refuses, is 3 where it is read and 8 where it is written, after it was asked again for
a minute (UNET_ENGINE_STORE_SECONDS).

An interrupted run (Ctrl-C, SIGTERM) ends with 130. Every message is one line: what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from unet_engine.redaction import redacted


class UnetEngineError(Exception):
    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*redacted(arguments))


class SettingsError(UnetEngineError):
    exit_code = 2


class InputError(UnetEngineError):
    exit_code = 3


class DataError(InputError):
    exit_code = 4


class ModelError(UnetEngineError):
    exit_code = 5


class BackendError(UnetEngineError):
    exit_code = 6


class PlanError(UnetEngineError):
    exit_code = 7


class OutputError(UnetEngineError):
    exit_code = 8


class ResumeError(OutputError):
    exit_code = 9


class ClusterError(UnetEngineError):
    exit_code = 10


class BatchError(UnetEngineError):
    exit_code = 11


class StoreError(OSError):
    """What a store over a network did not give or take, however often it was asked: which key, why, and how often. What
    meets it makes an `InputError` or an `OutputError` of it."""

    def __init__(self, *, key: str, cause: str, refused: bool = False, lacking: bool = False) -> None:
        """key: of what was asked for; refused: whether the store does not allow it, rather than fail; lacking: whether
        it says that it has no such thing to do"""
        super().__init__(redacted(f"{key}: {cause}"))
        self.refused, self.lacking, self._key, self._cause = refused, lacking, key, cause

    def of(self, path: str) -> str:
        """What went wrong, for a message that has named `path` already."""
        return str(redacted(self._cause)) if path.rstrip("/") == self._key.rstrip("/") else str(self)

    @property
    def advice(self) -> str:
        """What to do."""
        if self.refused:
            return "check the credentials in the environment, and run again (with --resume, a run goes on)"
        return "run again once it answers (with --resume, a run goes on)"


class NoLibraryError(StoreError):
    """A store of a kind whose library is not installed."""

    def of(self, path: str) -> str:
        return str(redacted(self._cause))

    @property
    def advice(self) -> str:
        return "pip install 'unet-engine[remote]' brings what reads and writes over a network"


def of_store(error: BaseException | None) -> StoreError | None:
    """The `StoreError` that `error` is, or comes from."""
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__ or error.__context__
    return error


def reworded(error: UnetEngineError, text: str) -> UnetEngineError:
    """An error of the same kind that says `text`: of the class above that it is of, as its own may be made of other
    things than text."""
    kind: type[UnetEngineError] = next(one for one in type(error).__mro__ if one.__module__ == __name__)
    return kind(text)


class UnetEngineWarning(UserWarning):
    """What users should know of a run, as Python warns of it."""


def first_line(error: BaseException) -> str:
    """What another library's error says, cut to one line: the cause inside a message of ours."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    said = str(error)
    if isinstance(error, OSError):
        said = said.removeprefix(f"[Errno {error.errno}] ")  # a number says nothing to who reads it
    lines = (said or type(error).__name__).strip().splitlines()
    return lines[-1 if lines[0].startswith(_LAST_LINE_SAYS) else 0][:300]


_LAST_LINE_SAYS = "The following operation failed in the TorchScript interpreter"


@contextmanager
def writing(path: str, what: str) -> Iterator[None]:
    """Turn what a store raises into one line of `OutputError`. Native codecs report a full disk only in the text of
    their error."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        if lost := of_store(error):
            raise OutputError(f"{path} cannot be written ({what}): {lost.of(path)}; {lost.advice}") from error
        full = (
            getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            or "No space left" in str(error)
            or "os error 28" in str(error)
        )
        if full:
            raise OutputError(
                f"{path}: the disk is full ({what}); free some space and run again with --resume"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({what}): {first_line(error)}; check the path and its permissions"
        ) from error
