"""Arithmetic on voxels: windows cut, weighted, added and finished."""
