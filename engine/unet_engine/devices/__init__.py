"""GPUs, real and simulated: memory, streams, events, kernels."""
