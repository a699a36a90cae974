"""`server` and `client` are common names: report when another module shadows them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import fedsys
from fedsys.errors import FedsysError

__all__ = ["check_own_packages"]

OWN = ("server", "client", "secure_agg", "simulations")


def check_own_packages(names: tuple[str, ...] = OWN) -> None:
    """Raise one clear line if an import of one of our packages would find another module.

    Raises:
        FedsysError: another module of that name comes first on the import path.
    """
    home = Path(fedsys.__file__).resolve().parent.parent
    for name in names:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is None or found.parent.parent != home:
            raise FedsysError(
                f"package '{name}' of fedsys is shadowed by {found or 'nothing importable'}; "
                f"expected {home / name}: rename that module or start from another folder"
            )
