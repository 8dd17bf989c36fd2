"""Folders, URLs and codecs: where bytes lie, and how they are packed."""
