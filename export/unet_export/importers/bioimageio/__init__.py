"""Packages of bioimage.io: description, axes, processing, weights."""
