"""Integers decided before a voxel is read."""
