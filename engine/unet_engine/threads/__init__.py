"""Threads beside the main one, and what is done about those that never end."""
