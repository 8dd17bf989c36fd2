"""What mkdocs calls as it builds the site: the pages of the reference are made."""

import importlib.util
from pathlib import Path


def on_files(files, config):
    """Add what is generated."""
    from mkdocs.structure.files import File

    spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("reference.py"))
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    return files
