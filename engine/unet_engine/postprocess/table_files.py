"""Files that tables are written to. A new kind is a function, and a line in `WRITERS`."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unet_engine.errors import UnetEngineError, writing
from unet_engine.postprocess.file_target import endings
from unet_engine.postprocess.places import World

Columns = Mapping[str, Any]
Write = Callable[[Path, Iterable[Columns], World], None]
"""Is given `ROWS` rows at a time, the last time fewer; at least once."""
ROWS = 2**16
"""Written at once."""


def write_csv(place: Path, parts: Iterable[Columns], world: World) -> None:
    """RFC 4180, UTF-8, one row of names first; numbers as Python writes them, so that reading gives the same ones."""
    with writing(str(place), "writing the table"), place.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        for number, columns in enumerate(parts):
            if not number:
                rows.writerow(columns)
            values = (c if isinstance(c, list) else c.tolist() for c in columns.values())
            rows.writerows(zip(*values, strict=True))


def write_parquet(place: Path, parts: Iterable[Columns], world: World) -> None:
    """One row group for each `ROWS` rows; where the world's axes point and the CRS are in the schema's metadata."""
    import pyarrow
    from pyarrow import parquet

    told = {"unit": world.unit, "space": world.space or None, "crs": world.crs}
    tables = (pyarrow.table(dict(columns)) for columns in parts)
    first = next(tables).replace_schema_metadata({"unet_engine": json.dumps(told)})
    with writing(str(place), "writing the table"), parquet.ParquetWriter(place, first.schema) as file:
        file.write_table(first)
        for table in tables:
            file.write_table(table.cast(first.schema))


WRITERS: Mapping[str, Write] = {".csv": write_csv, ".parquet": write_parquet}


def writer(out: str) -> Write:
    """By the ending of `out`. Raises `SettingsError` where it says no format, `UnetEngineError` where a package is
    missing."""
    write: Write = endings(out, WRITERS, "the table")
    if write is write_parquet:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise UnetEngineError(
                f"{out}: Parquet needs the package pyarrow; pip install 'unet-engine[tables]', or write a .csv"
            ) from error
    return write
