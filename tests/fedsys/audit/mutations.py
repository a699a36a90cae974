"""Every way to change one thing in a run's folder, by rule and without knowing what it means."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsys.errors import LedgerError
from fedsys.privacy.ledger.lines import canonical

Mutation = tuple[str, str, Callable[[Path], object]]
"""(file, what is changed in it, change of a copy of the folder)."""
Place = tuple[str | int, ...]

LOOK_ALIKES = str.maketrans("aeoc0i", "\u0430\u0435\u043e\u0441\u041e\u0456")
"""Cyrillic letters in the place of others."""


def leaves(value: Any, at: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in a document, itself included; of a long list the first two and the last."""
    yield at, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*at, key))
    elif isinstance(value, list):
        for place in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from leaves(value[place], (*at, place))


def others(value: Any) -> Iterator[tuple[str, Any]]:
    """Values in the place of one, each by the name of the change."""
    if isinstance(value, bool):
        yield from (("flipped", not value), ("a number", int(value)))
    elif isinstance(value, int):
        yield from (("+1", value + 1), ("-1", value - 1), ("huge", 10**30), ("a text", str(value)))
    elif isinstance(value, float):
        yield from (("next", math.nextafter(value, math.inf)), ("half", value / 2 or 1.0))
        yield from (("negative", -value or -1.0), ("a text", str(value)), ("infinite", "inf"))
    elif isinstance(value, str):
        yield from (("longer", value + "x"), ("empty", "" if value else "x"))
        yield from (("alike", value.translate(LOOK_ALIKES) + "\u200b"), ("nothing", None))
    elif isinstance(value, list):
        yield from (("emptied", value[:0] or [1]), ("shorter", value[1:] if value else [0]))
        yield from (("twice", [*value, *value[-1:]] if value else [None]),)
    elif isinstance(value, dict):
        yield from (("more", {**value, "approved": "by everybody"}), ("nothing", None))
    else:
        yield from (("a number", 0), ("a text", "none"))


def documents(value: Any) -> Iterator[tuple[str, Any]]:
    """Documents that differ from one in a single place."""
    for at, found in leaves(value):
        name = "/".join(map(str, at))
        for how, new in others(found):
            yield f"{name}: {how}", _put(value, at, lambda _there, _key, it=new: it)
        if at and isinstance(at[-1], str):
            changed = copy.deepcopy(value)
            _holder(changed, at).pop(at[-1])
            yield f"{name}: missing", changed


def _holder(value: Any, at: Place) -> Any:
    for key in at[:-1]:
        value = value[key]
    return value


def _put(value: Any, at: Place, new: Callable[..., Any]) -> Any:
    if not at:
        return new(value, None)
    changed = copy.deepcopy(value)
    holder = _holder(changed, at)
    holder[at[-1]] = new(holder, at[-1])
    return changed


def _texts(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Changes of any file's octets."""
    yield from (("emptied", b""), ("cut", raw[:-1]), ("longer", raw + b" "), ("twice", raw + raw))
    yield from (("with a mark", b"\xef\xbb\xbf" + raw), ("a line more", raw + b"\n"))
    for part in range(1, 6):
        at = part * len(raw) // 6
        yield f"octet {part} of 6", raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def _lines(raw: bytes, encode: Callable[[Any], bytes]) -> Iterator[tuple[str, bytes]]:
    """Changes of a file of JSON lines: lines as wholes, and every value of the first and last."""
    lines = raw.splitlines(keepends=True)
    for at, line in enumerate(lines):
        before, after = lines[:at], lines[at + 1 :]
        changes = {
            "dropped": [],
            "twice": [line, line],
            "spaced": [line.replace(b":", b" :", 1)],
            "reordered": [_reordered(line)],
            "key twice": [line.replace(b"{", b'{"round":1,', 1)],
            "not a number": [re.sub(rb":[ ]?[0-9.]+", b":NaN", line, count=1)],
        }
        for how, new in changes.items():
            yield f"line {at + 1} {how}", b"".join([*before, *new, *after])
        yield f"cut before line {at + 1}", b"".join(before)
        if after:
            yield f"line {at + 1} later", b"".join([*before, after[0], line, *after[1:]])
    for at in sorted({0, len(lines) - 1}):
        for how, document in documents(json.loads(lines[at])):
            try:
                new_line = encode(document)
            except (LedgerError, ValueError):
                continue
            yield f"line {at + 1} {how}", b"".join([*lines[:at], new_line, *lines[at + 1 :]])


def _reordered(raw: bytes) -> bytes:
    found = json.loads(raw)
    return json.dumps(dict(reversed(found.items()))).encode() + b"\n"


def _contents(name: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Everything that is done to one file's content."""
    yield from _texts(raw)
    if name.endswith(".jsonl"):
        strict = name != "metrics.jsonl"
        yield from _lines(
            raw,
            lambda it: (canonical(it) if strict else json.dumps(it).encode()) + b"\n",
        )
    elif name.endswith(".json"):
        document = json.loads(raw)
        yield "reordered", _reordered(raw)
        yield "spaced", json.dumps(document, indent=7).encode()
        yield "key twice", raw.replace(b"{", b'{"version": 1,', 1)
        yield "not a number", re.sub(rb": [0-9.]+", b": NaN", raw, count=1)
        for how, changed in documents(document):
            yield how, json.dumps(changed).encode()
    elif name.endswith(".toml"):
        lines = raw.splitlines(keepends=True)
        for at in range(len(lines)):
            yield f"line {at + 1} dropped", b"".join([*lines[:at], *lines[at + 1 :]])
        yield "a comment", raw + b"# approved\n"
    elif name.endswith(".html"):
        text = raw.decode()
        yield "a banner", text.replace("<main", "<p>APPROVED</p><main", 1).encode()
        yield "a script", text.replace("</body>", "<script>1</script></body>", 1).encode()
        yield "other spaces", text.replace(" ", "\u00a0", 1).encode()


def mutations(folder: Path) -> Iterator[Mutation]:
    """All changes of the files in a folder, as they are."""
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        name, raw = path.name, path.read_bytes()
        for how in ("missing", "a link", "a folder", "a pipe"):
            yield name, how, functools.partial(_exchange, path, how)
        for how, new in _contents(name, raw):
            if new != raw:
                yield name, how, functools.partial(_write, name, new)


def _exchange(original: Path, how: str, run: Path) -> None:
    path = run / original.name
    path.unlink()
    if how == "a link":
        path.symlink_to(original)
    elif how == "a folder":
        path.mkdir()
    elif how == "a pipe":
        os.mkfifo(path)


def _write(name: str, content: bytes, run: Path) -> None:
    (run / name).write_bytes(content)


def changed(folder: Path, mutation: Mutation, to: Path) -> Path:
    """A copy of a folder with one change."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    mutation[2](to)
    return to
