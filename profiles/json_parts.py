"""JSON text cut into its parts along a path, and put together again without a byte changed.

Hides how the end of a value is found without reading it. `split` expects text that `json_text.parse` has read without
complaint.

Normative: RFC 8259
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in the stubs
from typing import Any

Path = tuple[str | int, ...]


class PathError(LookupError):
    """An edit cannot be made; `path` says where, `message` why and what to do."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(f"{message} (at {shown(path)})")
        self.message = message
        self.path = path


def shown(path: Sequence[str | int]) -> str:
    """A path as people write it: `name[0].family`; 'the root' for the empty one. Long ones are cut."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in path[:40]]
    text = "".join(steps).removeprefix(".")
    return (text if len(text) <= 200 else text[:200] + "…") or "the root"


# A text cut into more parts than this would fill the memory.
MAX_PARTS = 400_000


class TooManyParts(PathError):
    """The edits reach into lists too long to be edited as text: write the edited value instead."""


@dataclass(slots=True)
class Part:
    """A member or item: the space before it, its key with the colon ('' in an array), the value, the space after."""

    lead: str
    head: str
    child: str | Branch
    trail: str = ""


@dataclass(slots=True)
class Branch:
    """An object or array cut into its parts; `tail` is the space before its closing bracket."""

    opening: str
    parts: Any  # dict[str, Part] for an object, list[Part] for an array
    tail: str = ""


_SPACE = re.compile(r"[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
# Only the end of a value is wanted of it, so numbers are left as they are.
_decoder: Any = json.JSONDecoder(parse_float=str, parse_int=str)
scan = _decoder.scan_once


def split(raw: str, most: int = MAX_PARTS) -> Branch:
    """The members of an object, or the items of an array. Raises TooManyParts beyond `most`."""
    branch = Branch(raw[0], {} if raw[0] == "{" else [])
    is_object, position = raw[0] == "{", 1
    while True:
        start = _end(_SPACE, raw, position)
        if raw[start] in "}]":
            branch.tail = raw[position:start]
            return branch
        if len(branch.parts) >= most:
            raise TooManyParts("the lists on the way are too long", ())
        key, value = scanstring(raw, start + 1, True) if is_object else ("", start)
        value = _end(_COLON, raw, value) if is_object else start
        end = scan(raw, value)[1]
        after = _end(_SPACE, raw, end)
        closed = raw[after] != ","
        part = Part(raw[position:start], raw[start:value], raw[value:end], "" if closed else raw[end:after])
        if is_object:
            branch.parts[key] = part
        else:
            branch.parts.append(part)
        position = end if closed else after + 1


def _end(pattern: re.Pattern[str], raw: str, position: int) -> int:
    found = pattern.match(raw, position)
    return found.end() if found else position


def joined(part: Part) -> str:
    """The text of a part, put together again."""
    child = part.child
    if isinstance(child, Branch):
        parts = child.parts.values() if child.opening == "{" else child.parts
        inner = ",".join(map(joined, parts))
        child = f"{child.opening}{inner}{child.tail}{'}' if child.opening == '{' else ']'}"
    return f"{part.lead}{part.head}{child}{part.trail}"
