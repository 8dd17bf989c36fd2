"""What an output holds on disk."""

from pathlib import Path


def chunks(out):
    """All chunk files of an output, by their place."""
    root = Path(out) / "0" / "c"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def marked(out):
    """Blocks that a run has committed so far."""
    names = [p.name.split(".") for p in Path(out).glob("0/.journal/*/*")]
    return {tuple(map(int, name)) for name in names if all(part.isdigit() for part in name)}
