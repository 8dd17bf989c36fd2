"""The YAML file behind ``--cluster``: which batch system, how many jobs, what each job gets.

::

    type: slurm
    partition: gpu
    walltime: "04:00:00"
    jobs: 8              # or  adaptive: {minimum: 1, maximum: 20}
    cores: 16
    memory: 64GiB
    gpus: 1

``docs/cluster.md`` explains every key. Unknown keys are refused, so that a typing error does not become a job without a
GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from unet_engine.errors import SettingsError
from unet_engine.text_files import NotReadable, read_yaml
from unet_engine.units import MOST, MOST_BYTES, brief, parse_bytes


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Adaptive(_Strict):
    """Numbers of jobs between which Dask may move."""

    minimum: int = Field(default=1, ge=1)
    maximum: int = Field(ge=1, le=MOST)

    @model_validator(mode="after")
    def _ordered(self) -> Adaptive:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is more than maximum {self.maximum}")
        return self


class Certificates(_Strict):
    """PEM files that the nodes can read under the same paths."""

    ca: str
    cert: str
    key: str


class ClusterFile(_Strict):
    type: Literal["slurm", "pbs", "sge", "lsf", "oar", "moab"]
    """Batch system. Only ``slurm`` is tested against a real one."""
    jobs: int | None = Field(default=None, ge=1, le=MOST)
    """Jobs to keep in the queue: one that ends is submitted again."""
    adaptive: Adaptive | None = None
    """Instead of `jobs`: as many as there is work for, within these limits."""
    cores: int = Field(ge=1, le=MOST)
    """Cores of a job."""
    memory: int = Field(ge=1, le=MOST_BYTES)
    """Bytes of memory of a job, also as ``64GiB``; its worker processes share nine tenths of it."""
    gpus: int = Field(default=0, ge=0, le=MOST)
    """GPUs of a job: each gets a worker process that sees only this one."""
    processes: int = Field(default=1, ge=1, le=MOST)
    """Worker processes of a job; with `gpus` there is one per GPU."""
    partition: str | None = None
    """Partition or queue."""
    account: str | None = None
    walltime: str | None = None
    """``HH:MM:SS``, ``D-HH:MM:SS`` or what else the batch system takes. Workers retire shortly before."""
    interface: str | None = None
    """Network interface that scheduler and nodes have in common, e.g. ``ib0``; default: the host name's address."""
    extra: tuple[str, ...] = ()
    """Further directives, without their ``#SBATCH``."""
    prologue: tuple[str, ...] = ()
    """Shell lines before the worker starts, e.g. ``module load cuda``."""
    python: str | None = None
    """Python on the nodes; default: the one that runs this."""
    log_directory: str = "unet-engine-jobs"
    """Where the jobs' output goes, and temporary certificates: a folder that login and compute nodes share."""
    local_directory: str | None = None
    """Scratch on the nodes; nothing of size is written there."""
    tls: Literal["temporary", "none"] | Certificates = "temporary"
    """Encryption and authentication. With ``none``, whoever reaches the port may run code under this account."""

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("walltime", mode="before")
    @classmethod
    def _clock(cls, value: Any) -> Any:
        if isinstance(value, int):  # YAML reads 12:00:00 without quotes as a number to base 60
            raise ValueError('put it in quotes, e.g. walltime: "04:00:00"')
        return value

    @model_validator(mode="after")
    def _whole(self) -> ClusterFile:
        if (self.jobs is None) == (self.adaptive is None):
            raise ValueError("give either jobs or adaptive: {minimum, maximum}")
        if self.gpus and self.processes not in (1, self.gpus):
            raise ValueError("gpus starts one worker process per GPU; leave processes out")
        if self.gpus and self.type != "slurm" and not self.extra:
            raise ValueError(f"how a job asks {self.type} for GPUs differs from site to site; say it under extra")
        return self

    @property
    def processes_per_job(self) -> int:
        return self.gpus or self.processes

    @property
    def expected(self) -> int:
        """Worker processes of all jobs; of those that come and go, as many as there always are."""
        jobs = self.jobs or self.adaptive.minimum  # type: ignore[union-attr]
        return jobs * self.processes_per_job

    @property
    def memory_per_process(self) -> int:
        """Bytes a worker process may use. A tenth of the job's goes to those who look after the workers, and to what a
        plan leaves out."""
        return self.memory * 9 // 10 // self.processes_per_job

    @property
    def cores_per_process(self) -> int:
        return max(1, self.cores // self.processes_per_job)

    @property
    def walltime_seconds(self) -> float | None:
        """None without a walltime, or where it is written in a way of its own."""
        match = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", self.walltime or "")
        if not match:
            return None
        days, first, second, third = (None if part is None else int(part) for part in match.groups())
        if days is not None or third is not None or (second is not None and self.type != "slurm"):
            return float((((days or 0) * 24 + (first or 0)) * 60 + (second or 0)) * 60 + (third or 0))
        return float((first or 0) * 60 + (second or 0))  # SLURM: minutes, or minutes:seconds


def read(path: str) -> ClusterFile:
    """The file as a `ClusterFile`. Raises `SettingsError` naming file and key."""
    try:
        values = read_yaml(Path(path))
    except NotReadable as error:
        raise SettingsError(f"--cluster {path} {error}; docs/cluster.md has how it is written") from error
    if not isinstance(values, dict):
        raise SettingsError(f"--cluster {path} holds no keys; it begins with e.g. type: slurm, see docs/cluster.md")
    try:
        return ClusterFile.model_validate(values)
    except ValidationError as error:
        raise SettingsError(f"--cluster {path}: {_explained(error)}; correct it, see docs/cluster.md") from error


def _explained(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part != "Certificates" and "literal" not in str(part))
    known = ", ".join(ClusterFile.model_fields)
    if first["type"] == "extra_forbidden":
        return f"there is no key {key}; the keys are {known}"
    if first["type"] == "missing":
        return f"the key {key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} {brief(first['input'])}: {message}" if key else message
