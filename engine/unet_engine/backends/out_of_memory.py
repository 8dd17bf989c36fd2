"""What to do where memory runs out at run time: half the windows at once, or the figures."""

from __future__ import annotations

from dataclasses import replace

from unet_engine.backends.base import Setup
from unet_engine.errors import PlanError, first_line

_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "failed to allocate", "cannot allocate memory", "out_of_memory")
"""What libraries say then, in small letters."""


def smaller(setup: Setup) -> Setup | None:
    """Half the windows at once, rounded up; None where there is but one."""
    if setup.batch > 1:
        return replace(setup, batch=-(-setup.batch // 2))
    return replace(setup, threads=setup.threads // 2) if setup.threads > 1 else None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error` or what caused it says that memory ran out: libraries have no type in common for that."""
    while error is not None:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def no_memory(error: BaseException, setup: Setup, where: str, *, retried: bool) -> PlanError:
    """The figures, for an error that ends the run."""
    again = ", after one try with fewer" if retried else ""
    return PlanError(
        f"out of memory {where} with {setup.threads} window(s) of batch {setup.batch} at once{again} "
        f"({first_line(error)}); use a smaller --window, fewer --workers, or a machine with more memory"
    )


def other_bits(error: BaseException, before: Setup, fewer: Setup, where: str) -> PlanError:
    """Half the batch would do, but windows that went through the whole one got other last bits: an output is made with
    one of them."""
    return PlanError(
        f"out of memory {where} with batch {before.batch} ({first_line(error)}), and batch {fewer.batch} gives other "
        f"last bits on {before.device}, so the output would have both; free its memory and use --resume, or begin "
        f"again with --batch {fewer.batch} --overwrite"
    )
