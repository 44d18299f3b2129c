"""The one error of the FHIRPath room: what is wrong, where, and at which stage it was noticed."""

from __future__ import annotations

from typing import Literal

_LONGEST = 500

Stage = Literal["syntax", "semantic", "execution"]


class FhirPathError(ValueError):
    """The expression cannot be read, makes no sense for the model, or failed on this input.

    `kind` names the stage; `line` and `column` count from 1 and are 0 when the place is unknown. What the message
    quotes of a hostile expression is cut.
    """

    def __init__(self, message: str, *, kind: Stage = "execution", line: int = 0, column: int = 0) -> None:
        message = message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "..."
        super().__init__(f"line {line}, column {column}: {message}" if line else message)
        self.message = message
        self.kind: Stage = kind
        self.line = line
        self.column = column


def syntax_error(source: str, at: int, message: str) -> FhirPathError:
    """A FhirPathError of kind `syntax` at the character offset `at` of `source`."""
    return placed(FhirPathError(message, kind="syntax"), source, at)


def placed(error: FhirPathError, source: str, at: int) -> FhirPathError:
    """The same error with the line and column of offset `at`, unless it has a place already."""
    if error.line:
        return error
    before = source[:at]
    line = before.count("\n") + 1
    column = at - (before.rfind("\n") + 1) + 1
    return FhirPathError(error.message, kind=error.kind, line=line, column=column)
