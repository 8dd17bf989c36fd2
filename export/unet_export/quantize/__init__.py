"""Faster precisions, judged on the user's data."""
