"""From PyTorch to a model file that `unet_engine` runs: U-Nets, their geometry, training, export.

`geometry`, `specs` and `tissue` need NumPy at most, the others PyTorch. Nothing heavy is imported here.
"""
