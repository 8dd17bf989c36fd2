"""Kinds of bad input and of faults, as data: what each is called, how it is made, what must be said, the exit code."""

from support.catalogue import files, headers, models, numbers, outputs, packed, pictures, processes, sources, stored
from support.catalogue.fault import Fault

FAULTS: list[Fault] = [
    *numbers.FAULTS,
    *files.FAULTS,
    *stored.FAULTS,
    *packed.FAULTS,
    *headers.FAULTS,
    *pictures.FAULTS,
    *outputs.FAULTS,
    *models.FAULTS,
    *sources.FAULTS,
    *processes.FAULTS,
]
