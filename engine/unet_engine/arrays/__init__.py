"""Runs as Python calls them: on arrays of NumPy, Zarr, dask and xarray as on paths, with networks that are open."""
