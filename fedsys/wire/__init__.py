"""What coordinator and agents say to each other."""

from fedsys.wire.assignment import Assignment

__all__ = ["Assignment"]
