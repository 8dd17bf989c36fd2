"""Result folders of nnU-Net v2."""
