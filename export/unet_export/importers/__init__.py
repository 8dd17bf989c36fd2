"""What training left, of other tools, as model files: a file for each source."""
