"""Finished runs: the part of a folder that may be published, and its model in other formats."""
