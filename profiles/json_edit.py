"""Changes to FHIR JSON text that leave every other byte as the client wrote it.

Hides where things stand in the text: values are addressed by path (`("name", 0, "family")`), text is cut open only
along the paths that change, and what is not touched is copied as it is, white space, escapes and number lexemes
included. `splice` and `framed` put id and meta in front of a resource's text, `rewrite_references` exchanges
references, and `Tree` changes a value while it notes the edits that `edited` repeats on the text.

What `parse` and `framed` cost beside orjson, and why it is more than wished: docs/adr/0046 and `make bench ONLY=json`.

All functions expect text that `json_text.parse` has read without complaint.

Normative: https://hl7.org/fhir/R4/json.html, RFC 8259
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring as _quoted
from typing import Any, Literal, cast

from profiles import json_text
from profiles.json_parts import MAX_PARTS, Branch, Part, Path, PathError, TooManyParts, joined, scan, shown, split
from profiles.json_text import MAX_DEPTH, Number, write

__all__ = ["Path", "PathError", "TooManyParts", "shown"]  # what an edit speaks of; they are its callers' names

# What all edits of one tree together may add: far more than any patch needs, and no fuel for copies of copies.
MAX_ADDED_VALUES = 1_000_000
MAX_ADDED_CHARACTERS = 64 * 1024 * 1024


# --- compact text ---------------------------------------------------------------------------------------------------

# The first blank of any run between tokens: after a bracket or a quote, after the colon behind a key, after a comma or
# a number and before what may follow it there. A string may hold the like by chance, which costs time and nothing else.
_BLANK = re.compile(
    r""" (?:(?<=[}\]"]\ )(?=[\ :,}\]])|(?<=":\ )|(?<=[{\[]\ )(?=[\ "{}\[\]\-0-9tfn])"""
    r"""|(?<=,\ )(?=[\ "{\[\-0-9tfn])|(?<=[0-9el]\ )(?=[\ ,}\]]))"""
)


def compact(text: str) -> str:
    """The same text without white space between its tokens; strings and numbers keep their spelling."""
    spaced = text[:1] != "{" or text[-1:] != "}" or "\n" in text or "\t" in text or "\r" in text
    if not spaced and not _BLANK.search(text):
        return text
    text = text.removeprefix("\ufeff")
    # A raw control character cannot stand in JSON, so three of them may stand for escapes and strings here.
    escaped = "\\" in text
    bare = text.replace("\\\\", "\x01").replace('\\"', "\x02") if escaped else text
    parts = bare.split('"')
    # What stands between strings is ASCII, and bytes lose characters faster than text does.
    parts[::2] = "\x03".join(parts[::2]).encode().translate(None, b" \n\r\t").decode().split("\x03")
    bare = '"'.join(parts)
    return bare.replace("\x02", '\\"').replace("\x01", "\\\\") if escaped else bare


# --- id, meta, references -------------------------------------------------------------------------------------------

_STORE_SETS = frozenset(("versionId", "lastUpdated", "_versionId", "_lastUpdated"))
_FRONT = frozenset(("resourceType", "id", "meta"))


def splice(text: str, resource: Mapping[str, Any], members: Mapping[str, Any]) -> str:
    """The resource's text, compacted, with these top-level members set, in this order, right after resourceType.

    `resource` is what `parse` made of `text`. A member set to None is left out.
    """
    front = {"resourceType": resource["resourceType"]} if "resourceType" in resource else {}
    front |= {name: value for name, value in members.items() if value is not None}
    rest = _rest(compact(text), frozenset(("resourceType", *members)))
    head = write(front)
    return f"{head[:-1]}{',' if rest and front else ''}{rest}}}"


def framed(text: str, resource: Mapping[str, Any], resource_id: str) -> tuple[str, str]:
    """The resource's text, compacted, opened where the store writes the version: head + members + tail.

    The members are `"versionId":"1","lastUpdated":"…"`; id and meta stand in front, with what else the client's meta
    holds. `resource` is what `parse` made of `text`.
    """
    spelled, rest = _opened(compact(text), resource)
    meta = resource.get("meta")
    kept = spelled[1:-1] if isinstance(meta, dict) else ""
    if kept and not _STORE_SETS.isdisjoint(meta or ()):
        kept = write({name: value for name, value in (meta or {}).items() if name not in _STORE_SETS})[1:-1]
    head = f'{{"resourceType":{_quoted(resource["resourceType"])},"id":{_quoted(resource_id)},"meta":{{'
    return head, f"{',' if kept else ''}{kept}}}{',' if rest else ''}{rest}}}"


def _opened(text: str, resource: Mapping[str, Any]) -> tuple[str, str]:
    """The meta of a compact text as it is spelled ('' for none), and what follows resourceType, id and meta."""
    # Most clients write these first; then a few comparisons find where the rest begins.
    front = f'{{"resourceType":"{resource["resourceType"]}"'
    if "id" in resource:
        front += f',"id":"{resource["id"]}"'
    end = len(front)
    if text.startswith(front):
        if "meta" not in resource:
            return "", text[end + 1 : -1]
        if text.startswith(',"meta":', end):
            begin = end + 8
            end = scan(text, begin)[1]
            return text[begin:end], text[end + 1 : -1]
    meta = cast(dict[str, Part], split(text).parts).get("meta")
    return cast(str, meta.child) if meta else "", _rest(text, _FRONT)


def _rest(text: str, leave: frozenset[str]) -> str:
    """The members of a compact object but those to leave out, as in its text, without the braces."""
    parts = cast(dict[str, Part], split(text).parts)
    return ",".join(part.head + cast(str, part.child) for name, part in parts.items() if name not in leave)


_REFERENCE = re.compile(r'"reference":"([^"\\]*+(?:\\.[^"\\]*+)*+)"')


def rewrite_references(text: str, targets: Mapping[str, str]) -> str:
    """A compact text in which every `reference` whose value is a key of `targets` has the value it maps to."""

    def written(found: re.Match[str]) -> str:
        inside = found[1] if "\\" not in found[1] else json.loads(f'"{found[1]}"')
        target = targets.get(inside)
        # Behind a backslash the quote belongs to a longer name that merely ends like this one.
        if target is None or text[found.start() - 1] == "\\":
            return found[0]
        return f'"reference":{write(target)}'

    return _REFERENCE.sub(written, text) if targets else text


# --- edits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edit:
    """One change: `set` a member or item, `insert` an item before an index, `delete` one, or `move` one to `to`.

    A move takes the value out first; `to` is understood after that. Setting the empty path replaces the whole.
    """

    kind: Literal["set", "insert", "delete", "move"]
    path: Path
    value: Any = None
    to: Path = ()


@dataclass(frozen=True, slots=True)
class Edited:
    """What came of some edits: the new value, and the edits in order, to be repeated on the text."""

    value: dict[str, Any]
    edits: tuple[Edit, ...]

    def text(self, original: str) -> str:
        """`original`, the text of the value before, with the edits made and every other byte left as it was.

        Where that would cut it into too many parts (lists of 400,000 items), the value is written anew.
        """
        try:
            return edited(original, self.edits)
        except TooManyParts:
            return write(self.value)


class Tree:
    """A JSON object under change, given as value or text. The value given stays as it was: what changes is copied.

    Raises PathError for paths that lead nowhere, and when values added grow beyond depth or size limits.
    """

    def __init__(self, value: dict[str, Any] | str) -> None:
        self.root: Any = json_text.parse(value) if isinstance(value, str) else value
        self.edits: list[Edit] = []
        # The containers made here, by identity; holding them keeps their identities from being used again.
        self._mine: dict[int, Any] = {}
        self._values_left = MAX_ADDED_VALUES
        self._characters_left = MAX_ADDED_CHARACTERS

    def get(self, path: Path) -> Any:
        """The value at a path."""
        here = self.root
        for depth, step in enumerate(path):
            here = here[_checked(here, step, path[: depth + 1])]
        return here

    def has(self, path: Path) -> bool:
        """Whether the path leads to a value."""
        try:
            self.get(path)
        except PathError:
            return False
        return True

    def apply(self, edit: Edit, *, shared: bool = False) -> None:
        """Make one change and note it; a change that is refused leaves nothing behind.

        `shared` says that the value to add stands elsewhere in the tree too.
        """
        if shared and isinstance(edit.value, (dict, list)):
            self._mine.clear()
        if edit.kind in ("set", "insert"):
            self._weigh(edit.value, edit.path)
            self._put(edit.path, edit.value, insert=edit.kind == "insert")
        elif edit.kind == "delete":
            self._take(edit.path)
        else:
            self._move(edit)
        self.edits.append(edit)

    def done(self) -> Edited:
        """The value and the edits so far."""
        return Edited(self.root, tuple(self.edits))

    def _move(self, edit: Edit) -> None:
        value = self._take(edit.path)
        try:
            if len(edit.to) > len(edit.path):
                _check_depth(value, edit.to)
            self._put(edit.to, value, insert=True)
        except PathError:
            self._put(edit.path, value, insert=True)
            raise

    def _weigh(self, value: Any, path: Path) -> None:
        values, characters = _check_depth(value, path)
        self._values_left -= values
        self._characters_left -= characters
        if self._values_left < 0 or self._characters_left < 0:
            raise PathError("these changes add too much content: make them in several steps", path)

    def _own(self, path: Path) -> Any:
        """The container at a path, made ours together with all above it."""
        here = self.root = self._copied(self.root, ())
        for depth, step in enumerate(path):
            step = _checked(here, step, path[: depth + 1])
            here[step] = self._copied(here[step], path[: depth + 1])
            here = here[step]
        return here

    def _copied(self, value: Any, path: Path) -> Any:
        if id(value) in self._mine:
            return value
        if not isinstance(value, (dict, list)):
            raise PathError("there is a single value here, which holds nothing: end the path before it", path)
        made = value.copy()
        self._mine[id(made)] = made
        return made

    def _put(self, path: Path, value: Any, *, insert: bool) -> None:
        if not path:
            self.root = value
            return
        holder, step = self._own(path[:-1]), path[-1]
        if isinstance(holder, dict) and isinstance(step, str):
            holder[step] = value
        elif isinstance(holder, list) and isinstance(step, int) and insert and 0 <= step <= len(holder):
            holder.insert(step, value)
        elif isinstance(holder, list) and insert:
            raise _no_such_place(holder, path)
        else:
            holder[_checked(holder, step, path)] = value

    def _take(self, path: Path) -> Any:
        if not path:
            raise PathError("the whole cannot be taken away: delete the resource instead", path)
        holder = self._own(path[:-1])
        return holder.pop(_checked(holder, path[-1], path))


def _checked(holder: Any, step: str | int, path: Path) -> Any:
    """The step, when it leads somewhere in the holder."""
    if isinstance(holder, dict):
        if isinstance(step, str) and step in holder:
            return step
        raise PathError("there is no such element", path)
    if isinstance(holder, list):
        if isinstance(step, int) and 0 <= step < len(holder):
            return step
        raise PathError(f"there is no such item: the list holds {len(holder)}, counted from 0", path)
    raise PathError("there is nothing inside a single value: end the path before it", path)


def _check_depth(value: Any, path: Path) -> tuple[int, int]:
    """How many values and characters this is; PathError when it would stand deeper than `parse` reads."""
    values = characters = 0
    level, depth = [value], len(path)
    while level:
        if depth >= MAX_DEPTH and any(isinstance(item, (dict, list)) for item in level):
            raise PathError(f"this would be nested more than {MAX_DEPTH} deep: flatten it", path)
        values += len(level)
        characters += sum(len(item) for item in level if type(item) is str)
        characters += sum(len(key) for item in level if type(item) is dict for key in item)
        level = [inner for item in level for inner in _inside(item)]
        depth += 1
    return values, characters


def _inside(item: Any) -> Iterable[Any]:
    return item.values() if type(item) is dict else item if type(item) is list else ()


# --- comparing ------------------------------------------------------------------------------------------------------


def same(left: Any, right: Any) -> bool:
    """Whether two values are alike to the last lexeme (`1.0` is not `1.00`); the order of keys does not count."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if type(left) is dict:
        return left.keys() == right.keys() and all(same(item, right[key]) for key, item in left.items())
    if type(left) is list:
        return len(left) == len(right) and all(map(same, left, right))
    if type(left) is Number:
        return left.lexeme == cast(Number, right).lexeme
    return bool(left == right)


def differences(old: Any, new: Any, path: Path = ()) -> list[Edit]:
    """Edits that make `new` out of `old`, none where they are the `same`."""
    if type(old) is dict and type(new) is dict:
        found = [Edit("delete", (*path, key)) for key in old if key not in new]
        for key, value in new.items():
            found += differences(old[key], value, (*path, key)) if key in old else [Edit("set", (*path, key), value)]
        return found
    if type(old) is list and type(new) is list:
        return _list_differences(old, new, path)
    return [] if same(old, new) else [Edit("set", path, new)]


def _list_differences(old: list[Any], new: list[Any], path: Path) -> list[Edit]:
    start, shorter = 0, min(len(old), len(new))
    while start < shorter and same(old[start], new[start]):
        start += 1
    end = 0
    while end < shorter - start and same(old[-1 - end], new[-1 - end]):
        end += 1
    found: list[Edit] = []
    for index in range(start, shorter - end):
        found += differences(old[index], new[index], (*path, index))
    middle = shorter - end
    found += [Edit("delete", (*path, index)) for index in range(len(old) - end - 1, middle - 1, -1)]
    found += [Edit("insert", (*path, index), new[index]) for index in range(middle, len(new) - end)]
    return found


# --- editing text ---------------------------------------------------------------------------------------------------


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits made in order. Raises PathError for paths that lead nowhere, TooManyParts."""
    edits = tuple(edits)
    if not edits:
        return text
    start = len(text) - len(text.lstrip(" \t\n\r\ufeff"))
    body = text[start:].rstrip(" \t\n\r")
    draft = _Draft(body)
    for edit in edits:
        draft.edit(edit)
    return text[:start] + joined(draft.top) + text[start + len(body) :]


class _Draft:
    """A text under edit, cut open as far as the edits so far needed."""

    def __init__(self, text: str) -> None:
        self.top = Part("", "", text)
        self.left = MAX_PARTS

    def edit(self, edit: Edit) -> None:
        if edit.kind == "delete":
            self.take(edit.path)
        elif edit.kind == "move":
            self.put(edit.to, self.take(edit.path).child, insert=True)
        else:
            self.put(edit.path, write(edit.value), insert=edit.kind == "insert")

    def branch(self, path: Path) -> Branch:
        """The object or array at a path."""
        here = self._opened(self.top, ())
        for depth, step in enumerate(path, 1):
            here = self._opened(here.parts[_checked(here.parts, step, path[:depth])], path[:depth])
        return here

    def _opened(self, part: Part, path: Path) -> Branch:
        if isinstance(part.child, str):
            if part.child[0] not in "{[":
                raise PathError("there is a single value here, which holds nothing: end the path before it", path)
            part.child = split(part.child, self.left)
            self.left -= len(part.child.parts)
        return part.child

    def take(self, path: Path) -> Part:
        if not path:
            raise PathError("the whole cannot be taken away: delete the resource instead", path)
        parts = self.branch(path[:-1]).parts
        taken: Part = parts.pop(_checked(parts, path[-1], path))
        return taken

    def put(self, path: Path, child: str | Branch, *, insert: bool) -> None:
        if not path:
            self.top.child = child
            return
        parts, step = self.branch(path[:-1]).parts, path[-1]
        # A new part is spaced like the first of its neighbours.
        like = next(iter(parts.values() if isinstance(parts, dict) else parts), None)
        lead = like.lead if like else ""
        if isinstance(parts, dict) and isinstance(step, str) and step not in parts:
            colon = ": " if like and like.head.endswith(" ") else ":"
            parts[step] = Part(lead, write(step) + colon, child)
        elif isinstance(parts, list) and isinstance(step, int) and insert and 0 <= step <= len(parts):
            parts.insert(step, Part(lead, "", child))
        elif isinstance(parts, list) and insert:
            raise _no_such_place(parts, path)
        else:
            parts[_checked(parts, step, path)].child = child


def _no_such_place(holder: Any, path: Path) -> PathError:
    return PathError(f"an item can be inserted at an index from 0 to {len(holder)} only", path)
