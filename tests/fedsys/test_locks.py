"""The locks: all is pinned and hashed for every platform, in one version, none known to be bad."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (
    "requirements.lock",
    "requirements-deploy.lock",
    "requirements-extra.lock",
    "requirements-hf.lock",
    "torch-cpu.lock",
    "torch-pypi.lock",
)
ADVISORIES = {"jinja2": "3.1.6", "pillow": "11.3", "protobuf": "6.33.5"}
"""Versions below these have known holes."""

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?![0-9a-f])")


def pins(lock: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes of each package of a lock."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    found: dict[str, tuple[str, set[str]]] = {}
    for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]:
        match = _PIN.match(entry)
        assert match is not None, f"{lock}: not pinned: {entry[:60]}"
        name = canonicalize_name(match["name"])
        assert name not in found, f"{lock}: {name} twice"
        found[name] = (match["version"], set(_HASH.findall(entry)))
    return found


def required(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    found = [Requirement(line) for line in lines]
    inner = [extra for each in found if each.name == "fedsys" for extra in each.extras]
    plain = [each for each in found if each.name not in ("fedsys", "torch")]
    return plain + (required(*inner) if inner else [])


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_and_hashed(lock: str) -> None:
    found = pins(lock)
    assert found
    for name, (version, hashes) in found.items():
        Version(version)
        assert hashes, name


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", ("dev",)),
        ("requirements-deploy.lock", ("deploy",)),
        ("requirements-extra.lock", ("track", "ray")),
        ("requirements-hf.lock", ("hf",)),
    ],
)
def test_a_lock_holds_what_the_project_asks_for(lock: str, extras: tuple[str, ...]) -> None:
    found = pins(lock)
    for each in required(*extras):
        version, _ = found[canonicalize_name(each.name)]
        assert each.specifier.contains(version), f"{each} but {version}: run make lock"
    assert "torch" not in found, "it has locks of its own"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-deploy.lock"])
def test_what_builds_the_package_is_locked_too(lock: str) -> None:
    assert {"hatchling", "editables"} <= set(pins(lock))


def test_a_package_has_one_version_everywhere() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, (version, _) in pins(lock).items():
            versions.setdefault(name, set()).add(version.partition("+")[0])
    several = {name: found for name, found in versions.items() if len(found) > 1}
    assert several.keys() <= {"fsspec"}, "of which datasets takes an older one"


def test_grpc_and_its_companions_are_of_one_version() -> None:
    found = {name: version for name, (version, _) in pins("requirements.lock").items()}
    companions = {found[name] for name in found if name.startswith("grpcio")}
    assert len(companions) == 1
    assert sum(name.startswith("grpcio") for name in found) == 3


@pytest.mark.parametrize("name", ADVISORIES)
def test_lower_bounds_are_above_known_holes(name: str) -> None:
    least = Version(ADVISORIES[name])
    asked = [each for each in required("dev") if canonicalize_name(each.name) == name]
    assert asked
    for each in asked:
        bounds = [Version(one.version) for one in each.specifier if one.operator == ">="]
        assert bounds
        assert max(bounds) >= least
    assert Version(pins("requirements.lock")[name][0]) >= least


def test_torch_has_hashes_for_every_python_and_machine() -> None:
    cpu, hashes = pins("torch-cpu.lock")["torch"]
    assert cpu.endswith("+cpu")
    assert len(hashes) == 6, "CPython 3.11, 3.12 and 3.13, each on x86-64 and aarch64"
    pypi, public = pins("torch-pypi.lock")["torch"]
    assert pypi == cpu.removesuffix("+cpu")
    assert len(public) >= 9, "the same, and macOS"
    assert hashes.isdisjoint(public)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (stated,) = project["tool"]["uv"]["dependency-metadata"]
    assert (stated["name"], stated["version"]) == ("torch", pypi)
    assert project["tool"]["uv"]["constraint-dependencies"] == [f"torch=={pypi}"]


def test_what_torch_needs_is_in_the_other_locks() -> None:
    needed = [Requirement(line) for line in metadata.requires("torch") or ()]
    plain = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    for lock in ("requirements.lock", "requirements-deploy.lock"):
        found = pins(lock)
        for each in plain:
            if canonicalize_name(each.name).startswith(("nvidia-", "cuda-", "triton")):
                continue  # torch-pypi.lock's
            assert each.specifier.contains(found[canonicalize_name(each.name)][0]), each
