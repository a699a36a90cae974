"""What a message tells a user to install does install it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedsys.installation import how_to_install

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


@pytest.mark.parametrize("what", [*sorted(set(EXTRAS) - {"dev", "track"}), "mlflow", "tensorboard"])
def test_the_lock_that_is_named_holds_the_packages(what: str) -> None:
    wanted = EXTRAS.get(what, [{"mlflow": "mlflow-skinny"}.get(what, what)])
    lock = how_to_install(what).rpartition(" ")[2]  # torch has one of its own
    held = re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
    names = {re.split(r"[\[<>=;! ]", each)[0].lower() for each in wanted} - {
        "fedsys",
        "torch",
    }  # torch: in a lock of its own
    assert names
    assert names <= {name.lower() for name in held}
