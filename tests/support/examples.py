"""Which examples Hypothesis draws: the same ones each time, or new ones with ``--hypothesis-profile fresh``."""

from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase

from support.paths import ROOT

# machines are shared, so an example may take long for no reason of its own
settings.register_profile("fixed", deadline=None, derandomize=True, database=None)
settings.register_profile(
    "fresh", deadline=None, derandomize=False, max_examples=1000, print_blob=True,
    database=DirectoryBasedExampleDatabase(ROOT / ".hypothesis" / "examples"),
)  # fmt: skip
settings.load_profile("fixed")
