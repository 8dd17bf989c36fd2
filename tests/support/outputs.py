"""What an output holds on disk."""

import time
from pathlib import Path

from unet_engine.output.output import Output
from unet_engine.prepare.provenance import provenance


def begin_output(prepared):
    """What a run does to its output before the first block, for who does the blocks in another way."""
    job = prepared.job
    Output.create(job.out, job.layout, job.plan.digest, provenance(prepared)).header.begin()


def chunks(out):
    """All chunk files of an output, by their place."""
    root = Path(out) / "0" / "c"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def marked(out):
    """Blocks that a run has committed so far."""
    names = [p.name.split(".") for p in Path(out).glob("0/.journal/*/*")]
    return {tuple(map(int, name)) for name in names if all(part.isdigit() for part in name)}


def wait_for_blocks(out, process, count=1):
    """Until a command, which must still be running by then, has committed so many blocks."""
    while len(marked(out)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
