"""Checkpoints of PyTorch whose network is known by name: segmentation-models-pytorch, Lightning, torchgeo,
terratorch."""
