"""Explains what is wrong with a configuration, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

__all__ = ["did_you_mean", "explain"]


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem as one line.

    Args:
        error: from validating a tree.
        root: the model that the tree was validated against.
    """
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        model = root
        if len(location) > 1:
            annotation = root.model_fields[location[0]].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
        known = list(model.model_fields)
        what = "key" if len(location) > 1 else "section"
        return (
            f"{where}: unknown {what}{did_you_mean(location[-1], known)}; allowed are "
            f"{', '.join(known)}"
        )
    value = problem["input"]
    if problem["type"] == "literal_error":
        allowed = _literals(location, root)
        nearest = did_you_mean(str(value), allowed)
        return f"{where} = {value!r}: allowed are {', '.join(allowed)}{nearest}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{where} = {shown}: {message}"


def _literals(location: list[str], root: type[BaseModel]) -> list[str]:
    annotation: Any = root
    for part in location:
        annotation = annotation.model_fields[part].annotation
    return [str(value) for value in get_args(annotation)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known name nearest to an unknown one, in parentheses; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
