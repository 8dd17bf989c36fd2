"""What a user can ask for: names, types, sources and what excludes one another."""
