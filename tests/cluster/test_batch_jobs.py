"""What the file behind --cluster may say, the job scripts it becomes, and what is said where there is no batch
system."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.command_line import environment
from support.dask_processes import certificates, settings
from support.paths import DOCS
from unet_engine import machine
from unet_engine.cluster import batch_jobs, cluster_file
from unet_engine.cluster import connection as clusters
from unet_engine.errors import ClusterError, SettingsError

EXAMPLE = DOCS / "examples" / "slurm.yaml"
LEAST = {"type": "slurm", "jobs": 2, "cores": 4, "memory": "8GiB"}


def written(**changes):
    lines = {**LEAST, **changes}
    Path("c.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None))
    return "c.yaml"


def read(**changes):
    return cluster_file.read(written(**changes))


def test_the_example_is_valid():
    file = cluster_file.read(str(EXAMPLE))
    assert (file.type, file.jobs, file.gpus, file.walltime_seconds) == ("slurm", 8, 1, 4 * 3600)
    assert file.memory == 64 * 2**30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "kubernetes"}, "type 'kubernetes': Input should be 'slurm', 'pbs'"),
        ({"type": None}, "the key type is missing"),
        ({"cores": None}, "the key cores is missing"),
        ({"cores": 0}, "cores 0: Input should be greater than or equal to 1"),
        ({"memory": "lots"}, "memory 'lots': give a number of bytes, e.g. 8GiB"),
        ({"mem": "8GiB"}, "there is no key mem; the keys are type, jobs"),
        ({"jobs": None}, "give either jobs or adaptive"),
        ({"adaptive": "{minimum: 1, maximum: 2}"}, "give either jobs or adaptive"),
        ({"jobs": None, "adaptive": "{minimum: 3, maximum: 2}"}, "minimum 3 is more than maximum 2"),
        ({"jobs": None, "adaptive": "{minimum: 1, maximal: 2}"}, "the key adaptive.maximum is missing"),
        ({"jobs": None, "adaptive": "{maximum: 2, step: 1}"}, "there is no key adaptive.step"),
        ({"walltime": "12:00:00"}, 'walltime 43200: put it in quotes, e.g. walltime: "04:00:00"'),
        ({"tls": "always"}, "tls 'always': Input should be 'temporary' or 'none'"),
        ({"tls": "{ca: a.pem, cert: b.pem}"}, "tls"),
        ({"gpus": 2, "processes": 3}, "one worker process per GPU; leave processes out"),
        ({"gpus": 1, "type": "pbs"}, "how a job asks pbs for GPUs differs from site to site; say it under extra"),
        ({"extra": "--qos=high"}, "extra"),
    ],
)
def test_what_the_file_may_not_say(changes, message):
    with pytest.raises(SettingsError) as caught:
        read(**changes)
    assert str(caught.value).startswith("--cluster c.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("", "holds no keys"),
        ("- slurm", "holds no keys"),
        ("type: [", "is not valid YAML: .* in line 1"),
        ("\0", "is not valid YAML"),
    ],
)
def test_files_that_are_none(content, message):
    if content is not None:
        Path("c.yaml").write_text(content)
    with pytest.raises(SettingsError, match=f"--cluster c.yaml.*{message}"):
        cluster_file.read("c.yaml")


@pytest.mark.parametrize(
    ("kind", "text", "seconds"),
    [
        ("slurm", "90", 90 * 60), ("slurm", "01:30", 90), ("slurm", "01:30:00", 5400), ("slurm", "2-01", 49 * 3600),
        ("slurm", "2-01:30", 49.5 * 3600), ("slurm", "UNLIMITED", None), ("lsf", "01:30", 5400),
        ("pbs", "01:30:00", 5400),
    ],
)  # fmt: skip
def test_walltimes(kind, text, seconds):
    assert read(type=kind, walltime=f'"{text}"').walltime_seconds == seconds


def script(**changes):
    """The job that a file makes, as dask-jobqueue would submit it."""
    jobqueue = pytest.importorskip("dask_jobqueue.slurm")
    return jobqueue.SLURMJob(
        "tcp://10.0.0.1:8786", name="unet-engine-0", **batch_jobs.job_options(read(**changes))
    ).job_script()


def test_the_job_script():
    text = script(
        partition="gpu", account="lab", walltime='"02:00:00"', gpus=2, interface="ib0", extra='["--constraint=a100"]',
        prologue='["module load cuda"]', local_directory="/scratch",
    )  # fmt: skip
    head, _, command = text.strip().rpartition("\n")
    for directive in (
        "-p gpu",
        "-A lab",
        "-t 02:00:00",
        "--cpus-per-task=4",
        "--mem=8G",
        "--gres=gpu:2",
        "--constraint=a100",
    ):
        assert f"\n#SBATCH {directive}\n" in head
    assert head.endswith("\nmodule load cuda")
    assert "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False" in head
    assert "export UNET_ENGINE_GPUS_PER_JOB=2" in head
    for option in (
        "--nworkers 2",
        "--memory-limit 4.00GiB",
        "--interface ib0",
        "--local-directory /scratch",
        "--lifetime 6900s",
    ):
        assert option in command
    assert command.startswith(sys.executable)


def test_the_settings_in_a_job_script_are_those_of_our_own_workers():
    from unet_engine.cluster.dask_settings import worker_config

    exports = "\n".join(line for line in script().splitlines() if line.startswith("export DASK"))
    code = "import dask, distributed; print({k: dask.config.get(k) for k in " + repr(list(worker_config())) + "})"
    done = subprocess.run(
        ["bash", "-c", f"{exports}\n{sys.executable} -c {code!r}"], capture_output=True, text=True, check=True
    )
    environ = "distributed.nanny.pre-spawn-environ"
    told, ours = eval(done.stdout), worker_config()
    assert {**told, environ: None} == {**ours, environ: None}
    assert {k: v for k, v in told[environ].items() if v is not None} == {}


def test_a_worker_has_its_share_of_the_job():
    file = read(processes=4, cores=10, memory="40GiB")
    assert file.memory_per_process == 9 * 2**30
    assert clusters.worker_threads(settings(cluster="c.yaml")) == 2
    assert clusters.worker_threads(settings(workers=1)) == machine.cpu_count()
    assert clusters.worker_threads(settings(workers=1024)) == 1


def refusal(**changes):
    with (
        pytest.raises((ClusterError, SettingsError)) as caught,
        clusters.connect(settings(cluster=written(**changes)), None, 60),
    ):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_batch_system_here(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "there is no slurm here: the command sbatch is missing" in refusal(interface="lo")


def test_no_dask_jobqueue(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    assert "pip install 'unet-engine[jobqueue]'" in refusal()


def test_an_interrupt_stays_an_interrupt():
    pytest.importorskip("dask_jobqueue")
    code = (
        "import signal; from unet_engine.cluster import batch_jobs; batch_jobs._jobqueue(); "
        "print(signal.getsignal(signal.SIGINT))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert "default_int_handler" in done.stdout


def test_no_such_interface():
    assert "'nope0' is not a valid network interface" in refusal(interface="nope0")


def test_a_folder_for_logs_that_cannot_be_made():
    Path("file").touch()
    assert "log_directory" in refusal(log_directory="file/logs")


def test_certificates_of_ones_own(tmp_path):
    ours = certificates(tmp_path / "tls")
    tls = f"{{ca: {ours['tls_ca']}, cert: {ours['tls_cert']}, key: none.pem}}"
    assert "certificate none.pem does not exist: there is no such file" in refusal(tls=tls)
    with (
        pytest.raises(SettingsError, match="do not go with --cluster; write tls: into its file"),
        clusters.connect(settings(cluster=written(), **ours), None, 60),
    ):
        pass
