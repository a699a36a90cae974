"""What a task's preprocessing depends on, and whether a privacy claim can cover that.

A guarantee bounds what one client's clipped update reveals. It does not bound how that client's
rows changed everybody else's inputs: a mean over all rows, a vocabulary, a split by label. So every
task declares what each prepared row depends on:

=================  ==============================================================  ================
declaration        a prepared row depends on                                       claims cover
=================  ==============================================================  ================
``fixed``          itself and constants written down before anybody saw the data   clients, examples
``row-local``      itself alone                                                    clients, examples
``client-local``   its own client's rows                                           clients
``data-dependent`` rows of other clients                                           nobody
=================  ==============================================================  ================

A custom task that declares nothing is ``undeclared``: a claim then rests on its author's word that
it is one of the first three, as it does if the author declares one.

>>> covers("row-local", "example"), covers("client-local", "example")
(True, False)
>>> builtin("tabular", {"path": "t.csv", "label": "sick"})
'data-dependent'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

__all__ = [
    "DECLARATIONS",
    "REMEDY",
    "Preprocessing",
    "builtin",
    "covers",
    "hf",
    "images",
    "leaf",
    "tabular",
    "why_not_deployed",
    "why_withheld",
]

REMEDY = (
    "prepare rows one by one (task tabular: declare classes, ranges and values, as `fedsys task "
    "schema` writes them), or set privacy.mechanism=none"
)
"""The remedy for a withheld claim."""

Preprocessing = Literal["fixed", "row-local", "client-local", "data-dependent", "undeclared"]

DECLARATIONS: tuple[Preprocessing, ...] = get_args(Preprocessing)[:-1]
"""What a task may declare."""

_BUILTIN: Mapping[str, Preprocessing] = {
    "digits": "fixed",
    "mnist": "fixed",
    "cifar10": "fixed",
    "synthetic": "fixed",
    "shakespeare": "client-local",
}


def builtin(name: object, options: Mapping[str, Any]) -> Preprocessing | None:
    """What a built-in task declares; None for any other.

    Args:
        name: the task's name.
        options: the task's options, from an untrusted configuration.
    """
    by_options = {"tabular": tabular, "leaf": leaf, "images": images, "hf": hf}
    if isinstance(name, str) and name in by_options:
        return by_options[name](options)
    return _BUILTIN.get(name) if isinstance(name, str) else None


def tabular(options: Mapping[str, Any]) -> Preprocessing:
    """The declaration of task ``tabular`` with these options.

    With a declared label and declared features a row's encoding depends on the row alone; so does
    being a test row, except that a client that would have no row to train on keeps all of them.
    """
    label = options.get("label")
    labels = {label} if isinstance(label, str) else set()
    ranges, values = _names(options, "ranges"), _names(options, "values")
    several = isinstance(label, list | tuple) and len(label) > 1
    if not ("classes" in options or several or labels & ranges):
        return "data-dependent"
    declared = "ranges" in options or "values" in options
    if not declared or ("classes" not in options and not (ranges | values) - labels):
        return "data-dependent"
    split_by_client = bool(options.get("client")) and not options.get("test_path")
    return "client-local" if split_by_client else "row-local"


def leaf(options: Mapping[str, Any]) -> Preprocessing:
    """The declaration of task ``leaf``: each user's last rows are for tests, unless a file is."""
    return "row-local" if options.get("test_path") else "client-local"


def images(options: Mapping[str, Any]) -> Preprocessing:
    """The declaration of task ``images``: a client with no image left to train on keeps all."""
    return "client-local" if options.get("layout") == "client/class" else "row-local"


def hf(options: Mapping[str, Any]) -> Preprocessing:
    """The declaration of task ``hf``: that of a table of the same columns, or of pictures, of which
    a client with none left to train on keeps all."""
    by_client = bool(options.get("client") or options.get("partitioner"))
    if "image" in options:
        split_by_client = by_client and not options.get("test_split")
        return "client-local" if split_by_client else "row-local"
    return tabular({**options, "test_path": options.get("test_split"), "client": by_client})


def _names(options: Mapping[str, Any], key: str) -> set[str]:
    table = options.get(key)
    return {str(name) for name in table} if isinstance(table, Mapping) else set()


def why_not_deployed(declared: object) -> str | None:
    """Why devices cannot train a task that prepares rows like this; None where they can."""
    if declared != "data-dependent":
        return None
    return (
        "its rows are prepared from all rows together, so each device would have its own classes, "
        "categories and scales, and no model would fit them all: declare the columns "
        "(`fedsys task schema FILE` writes them), and give every device the same options"
    )


def covers(declared: object, unit: str) -> bool | None:
    """Whether a claim covers what was declared; None if nothing, or nothing known, was declared.

    Args:
        declared: the task's declaration.
        unit: ``client`` or ``example``.
    """
    if declared in ("fixed", "row-local"):
        return True
    if declared == "client-local":
        return unit == "client"
    return False if declared == "data-dependent" else None


def why_withheld(declared: object, unit: str) -> str | None:
    """Why no claim can be made; None where one can."""
    if covers(declared, unit) is not False:
        return None
    if declared == "client-local":
        return (
            "each client's rows are prepared together, so that one example changes how its "
            "client's other examples are prepared: no claim for single examples holds"
        )
    return (
        "the data is prepared from all clients' rows together, which no epsilon covers: one client "
        "changes what all others train on"
    )
