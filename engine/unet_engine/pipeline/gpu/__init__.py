"""What one worker does with a block on a GPU."""
