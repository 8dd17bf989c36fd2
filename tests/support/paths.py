"""Places in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
DOCS = ROOT / "docs"
SOURCES = ROOT / "cpp_ext"
MODELS = ROOT / "engine" / "unet_engine" / "models"
SHARED = ROOT.parent / "shared"
"""Real volumes, files and models that a user's checkout does not have: tests on them skip where it is missing."""
