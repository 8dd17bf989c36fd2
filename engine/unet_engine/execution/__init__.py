"""Who does the blocks of a run: this process, or the workers of a Dask cluster."""
