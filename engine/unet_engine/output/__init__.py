"""The output on its store: chunks, markers, header, locks."""
