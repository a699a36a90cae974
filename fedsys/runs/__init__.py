"""Runs as values: one by one, side by side, and while they train."""
