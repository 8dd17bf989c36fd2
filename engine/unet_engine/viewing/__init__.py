"""Volumes and results in a browser, and blocks that are computed because somebody looks at them."""
