"""How to come by a Dask cluster: processes of our own, batch jobs, a scheduler that runs already; what guards and
watches it.

Nothing of Dask is imported before it is needed.
"""
