"""How commands speak: results to standard output (text for people, JSON for programs), progress beside it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

QUIET_SECONDS = 2.0


class Failed(Exception):
    """A command did not succeed; the text says why and what to try next."""


def show(value: Any, *, as_json: bool) -> None:
    """One result: a line for each member, or JSON."""
    if as_json or not isinstance(value, dict):
        print_json(value)
        return
    for key, item in value.items():
        text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, indent=1)
        print(f"{key:16} {text}" if "\n" not in text else f"{key}\n{text}")


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows as aligned columns; long cells are cut, all of them are there with --json."""
    if not rows:
        print("(none)")
        return
    cells = [[str(row.get(column, ""))[:60].replace("\n", " ") for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) for i, column in enumerate(columns)]
    for row in [list(columns), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """Lines of progress on standard error: rewritten in place on a terminal, one in two seconds elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._at = 0.0
        self._last = ""

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if line == self._last:
            return
        if self._terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif now - self._at >= QUIET_SECONDS:
            print(line, file=sys.stderr, flush=True)
        else:
            return
        self._at, self._last = now, line

    def end(self) -> None:
        """Leave the line of progress."""
        if self._terminal and self._last:
            print(file=sys.stderr)
