"""Many volumes by one command: which they are, where each goes, and one run after the other with one network."""
