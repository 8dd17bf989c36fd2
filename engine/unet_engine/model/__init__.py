"""What a model file promises."""
