"""MONAI bundles: configuration, networks, transforms."""
