"""Passes over a finished output, and what makes files of other formats of it."""
