"""What one worker does with a block: read, predict, finish, write."""
