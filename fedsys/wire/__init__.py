"""What coordinators and agents say to each other."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsys.wire.assignment import Assignment

__all__ = ["Assignment"]


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        """Load an assignment's module on use: the operator's commands need neither it nor NumPy."""
        if name == "Assignment":
            from fedsys.wire.assignment import Assignment

            return Assignment
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
