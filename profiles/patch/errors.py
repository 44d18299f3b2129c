"""The one error of the patch room, and the limits its three languages share."""

from __future__ import annotations

MAX_OPERATIONS = 1_000
# Longest path, pointer or selector of one operation, in characters.
MAX_PATH = 4_000


class PatchError(ValueError):
    """A patch cannot be applied: `message` says why and what to do.

    `operation` counts from 0 and is None when the patch as a whole is meant; `path` is the operation's path, pointer or
    selector as the client wrote it (cut). `malformed` tells a patch that is none (HTTP 400) from one that does not fit
    the resource (HTTP 422): https://hl7.org/fhir/R4/http.html#patch, RFC 5789 section 2.2.
    """

    def __init__(self, message: str, operation: int | None = None, path: str = "", *, malformed: bool = False) -> None:
        shown = path if len(path) <= 200 else path[:200] + "…"
        where = [f"operation {operation}"] * (operation is not None) + [f"at {shown}"] * bool(shown)
        super().__init__(f"{message} ({', '.join(where)})" if where else message)
        self.message = message
        self.operation = operation
        self.path = shown
        self.malformed = malformed


def check_count(count: int) -> None:
    """Refuse a patch of too many operations."""
    if count > MAX_OPERATIONS:
        raise PatchError(f"the patch has more than {MAX_OPERATIONS} operations: send it in parts", malformed=True)
