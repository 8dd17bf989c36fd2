"""Training U-Nets, and the data to do it with."""
