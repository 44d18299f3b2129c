"""Index rows of one resource: the values the store keeps beside its text, one tuple list per search type.

The parameter id (`pid`) is a positive 63-bit hash of the SearchParameter's URL, expression and the extractor's
version, so that a changed meaning gets a new id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class IndexRows:
    """Rows without the rid, in the column order of `store/tables`.

    string: (pid, folded, exact) · token: (pid, system or '', code, text folded)
    date: (pid, low µs, high µs exclusive)
    number: (pid, low, high) · uri: (pid, uri) · coords: (pid, latitude, longitude)
    quantity: (pid, system or '', code or '', low, high, canonical unit or '', canonical low, canonical high)
    reference: (pid, type or '', id or '', url or '', identifier system or '', identifier value or '')
    words: (pid, folded words with a space between them), at most one row for the narrative and one for the rest
    contained: (type, id, its rows) of each contained resource, which are searched only when asked for
    `scopes`: (kind, key) with kind case, patient, organisation.
    `inside`: no rows, but the types of the contained resources by id while rows are made; None without any.
    """

    string: list[tuple[int, str, str]] = field(default_factory=list)
    token: list[tuple[int, str, str, str]] = field(default_factory=list)
    date: list[tuple[int, int, int]] = field(default_factory=list)
    number: list[tuple[int, float, float]] = field(default_factory=list)
    quantity: list[tuple[int, str, str, float, float, str, float, float]] = field(default_factory=list)
    reference: list[tuple[int, str, str, str, str, str]] = field(default_factory=list)
    uri: list[tuple[int, str]] = field(default_factory=list)
    coords: list[tuple[int, float, float]] = field(default_factory=list)
    words: list[tuple[int, str]] = field(default_factory=list)
    contained: list[tuple[str, str, IndexRows]] = field(default_factory=list)
    scopes: list[tuple[str, str]] = field(default_factory=list)
    inside: Mapping[str, str] | None = field(default=None, compare=False, repr=False)


Pids = tuple[int, ...]
Emit = Callable[[IndexRows, Pids, Any, str], None]
"""Adds the rows of a value for some parameters; the last argument is the zone of dates that have none."""
