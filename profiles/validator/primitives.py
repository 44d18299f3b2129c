"""Is this JSON value a well-formed FHIR primitive? One test for each of the twenty primitive types.

Hides how each test stays linear in the length of the value: HL7's own regular expressions are not used where they
backtrack (base64Binary). Beyond them, dates must exist in the calendar, integers must fit 32 bits, strings hold at most
1,048,576 characters and no control character that XML cannot carry.

Normative: https://hl7.org/fhir/R4/datatypes.html#primitive, https://hl7.org/fhir/R4/json.html#primitive
"""

from __future__ import annotations

import binascii
import calendar
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from math import isfinite
from typing import Any

from profiles.validator import narrative

Test = Callable[[Any], bool]

MAX_STRING = 1024 * 1024

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SPACE = re.compile(r"\s")
_CODE = re.compile(r"\S++(?:\s\S++)*+")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_OID = re.compile(r"urn:oid:[0-2](?:\.(?:0|[1-9][0-9]*+))++")
_UUID = re.compile(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]++)?"
_ZONE = r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_DAY = r"-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_YEAR = r"(?!0000)[0-9]{4}"
_DATE = re.compile(rf"{_YEAR}(?:-(?:0[1-9]|1[0-2])|{_DAY})?")
_DATE_TIME = re.compile(rf"{_YEAR}(?:-(?:0[1-9]|1[0-2])|{_DAY}(?:T{_CLOCK}{_ZONE})?)?")
_INSTANT = re.compile(rf"{_YEAR}{_DAY}T{_CLOCK}{_ZONE}")
_TIME = re.compile(_CLOCK)
_DIV = re.compile(r"\s*+<div[\s>/]")


def _is_string(value: Any) -> bool:
    return (
        type(value) is str and 0 < len(value) <= MAX_STRING and (value.isprintable() or _CONTROL.search(value) is None)
    )


def _is_code(value: Any) -> bool:
    # Most codes hold no white space at all: the first test settles those without a regular expression.
    return type(value) is str and (value.isalnum() or _CODE.fullmatch(value) is not None)


def _is_uri(value: Any) -> bool:
    return type(value) is str and value != "" and _SPACE.search(value) is None


def _exists(value: str) -> bool:
    """The day, when there is one, is a day of its month."""
    if value[8:10] <= "28":
        return True
    return int(value[8:10]) <= calendar.monthrange(int(value[:4]), int(value[5:7]))[1]


def _is_date(value: Any) -> bool:
    return type(value) is str and _DATE.fullmatch(value) is not None and _exists(value)


def _is_date_time(value: Any) -> bool:
    return type(value) is str and _DATE_TIME.fullmatch(value) is not None and _exists(value)


def _is_instant(value: Any) -> bool:
    return type(value) is str and _INSTANT.fullmatch(value) is not None and _exists(value)


def _is_base64(value: Any) -> bool:
    if type(value) is not str or not value.isascii():
        return False
    compact = "".join(value.split())
    # Python's strict mode tolerates padding after a complete group of four.
    if len(compact) % 4 or compact.endswith("==="):
        return False
    try:
        return binascii.a2b_base64(compact, strict_mode=True) != b""
    except binascii.Error:
        return False


def _is_boolean(value: Any) -> bool:
    return value is True or value is False


def _is_integer(value: Any) -> bool:
    # json_text reads the lexeme -0 as a decimal so as not to lose the sign; FHIR allows it as an integer.
    return (type(value) is int and -(2**31) <= value < 2**31) or getattr(value, "lexeme", "") == "-0"


def _is_unsigned(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_decimal(value: Any) -> bool:
    if type(value) is int:
        return True
    return value.is_finite() if isinstance(value, Decimal) else type(value) is float and isfinite(value)


def _matches(pattern: re.Pattern[str]) -> Test:
    return lambda value: type(value) is str and pattern.fullmatch(value) is not None


def _is_xhtml(value: Any) -> bool:
    return _is_div(value) and not narrative.problem(value)


def _is_div(value: Any) -> bool:
    return type(value) is str and _DIV.match(value) is not None and _CONTROL.search(value) is None


TESTS: Mapping[str, Test] = {
    "base64Binary": _is_base64,
    "boolean": _is_boolean,
    "canonical": _is_uri,
    "code": _is_code,
    "date": _is_date,
    "dateTime": _is_date_time,
    "decimal": _is_decimal,
    "id": _matches(_ID),
    "instant": _is_instant,
    "integer": _is_integer,
    "markdown": _is_string,
    "oid": _matches(_OID),
    "positiveInt": _is_positive,
    "string": _is_string,
    "time": _matches(_TIME),
    "unsignedInt": _is_unsigned,
    "uri": _is_uri,
    "url": _is_uri,
    "uuid": _matches(_UUID),
    "xhtml": _is_xhtml,
}

# The JSON kinds each type is written as; all others are strings.
_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "boolean": ((bool,), "the JSON value true or false, without quotes"),
    "decimal": ((int, float, Decimal), "a JSON number, without quotes"),
    "integer": ((int, float, Decimal), "a whole JSON number, without quotes"),
    "positiveInt": ((int, float, Decimal), "a whole JSON number, without quotes"),
    "unsignedInt": ((int, float, Decimal), "a whole JSON number, without quotes"),
}

_FORMS: Mapping[str, str] = {
    "base64Binary": "base64 text: groups of four of A-Z a-z 0-9 + / with = only as the last padding",
    "canonical": "a URL without white space, with |version when needed",
    "code": "a code without white space at its ends and with single spaces inside",
    "date": "a date that exists, as YYYY, YYYY-MM or YYYY-MM-DD",
    "dateTime": "a date that exists, as YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDThh:mm:ss+zz:zz (with seconds, zone)",
    "decimal": "a finite JSON number",
    "id": "1 to 64 of the characters A-Z a-z 0-9 - and .",
    "instant": "a date and time with seconds and zone, as YYYY-MM-DDThh:mm:ss.sss+zz:zz",
    "integer": "a whole number from -2147483648 to 2147483647, without point or exponent",
    "markdown": f"text of 1 to {MAX_STRING} characters, without control characters but tab, LF and CR",
    "oid": "an OID as urn:oid:1.2.3",
    "positiveInt": "a whole number from 1 to 2147483647, without point or exponent",
    "string": f"text of 1 to {MAX_STRING} characters, without control characters but tab, LF and CR",
    "time": "a time of day as hh:mm:ss, without zone",
    "unsignedInt": "a whole number from 0 to 2147483647, without point or exponent",
    "uri": "a URI without white space",
    "url": "a URL without white space",
    "uuid": "a UUID in lower case as urn:uuid:8-4-4-4-12 hexadecimal digits",
    "xhtml": 'a <div xmlns="http://www.w3.org/1999/xhtml"> element',
}


def explain(type_name: str, value: Any) -> tuple[str, str]:
    """Why a value failed its test: a FHIR issue code and what is expected, to complete "must be ..."."""
    kinds, wanted = _KINDS.get(type_name, ((str,), "a JSON string"))
    if not isinstance(value, kinds) or (isinstance(value, bool) and type_name != "boolean"):
        return "structure", f"{wanted}, not {describe(value)}"
    if type_name == "xhtml" and _is_div(value):
        return "invariant", f"a narrative that is safe to show; this one {narrative.problem(str(value))}"
    if value == "":
        return "value", f"{_FORMS[type_name]}: an empty string is not allowed, leave the element out"
    return "value", f"{_FORMS[type_name]}: {describe(value)} is not"


def describe(value: Any) -> str:
    """A value in a few words, for a message."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value[:60]}…'" if len(value) > 60 else f"'{value}'"
    return str(getattr(value, "lexeme", value))[:60]
