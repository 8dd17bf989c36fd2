"""How one gets a Dask cluster: processes of our own, batch jobs, a scheduler that runs already; what guards and watches
it."""
