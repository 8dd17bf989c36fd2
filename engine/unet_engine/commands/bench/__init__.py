"""``unet-engine bench``: what runs fastest on this machine, measured."""
