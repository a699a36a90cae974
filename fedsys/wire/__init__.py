"""The messages between coordinators and agents.

An assignment's module is loaded on use: the operator's commands need neither it nor NumPy.
"""

from typing import TYPE_CHECKING

from fedsys.lazy_names import on_use

if TYPE_CHECKING:
    from fedsys.wire.assignment import Assignment
else:
    __getattr__, __dir__ = on_use(__name__, {"assignment": ("Assignment",)})

__all__ = ["Assignment"]
