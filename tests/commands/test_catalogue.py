"""Every kind of bad input and of faults in `support.catalogue` ends in one line that says what is wrong, where and what
to do, with its documented exit code, within ten seconds; nothing is lost and nothing is left."""

import os

import pytest

from support.catalogue import FAULTS
from support.catalogue.scene import build
from support.catalogue.trial import trial
from support.paths import ROOT

pytestmark = pytest.mark.long

WHOLE = bool(os.environ.get("UNET_ENGINE_FAULTS"))
"""``make faults``: every kind as a process of its own. Else most of them in this process, and a share as processes."""
EVERY = 200
HERE = [fault for fault in FAULTS if not fault.alone and not fault.slow]
PROCESSES = FAULTS if WHOLE else [f for i, f in enumerate(FAULTS) if not f.slow and (f.alone or i % EVERY == 0)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    build(folder)
    return folder


@pytest.mark.parametrize("fault", [] if WHOLE else HERE, ids=lambda fault: fault.name)
def test_a_kind(fault, base, tmp_path):
    trial(fault, base, tmp_path)


@pytest.mark.parametrize("fault", PROCESSES, ids=lambda fault: fault.name)
def test_a_kind_as_a_process(fault, base, tmp_path):
    trial(fault, base, tmp_path, process=True)


def test_there_are_as_many_kinds_as_the_readme_says():
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    assert len(names) >= 300
    assert f"{len(names)} kinds" in (ROOT / "README.md").read_text()
