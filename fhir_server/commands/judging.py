"""Looking at content and at other systems: `fhirpath`, `conformance`."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from fhir_server.commands.output import Failed
from fhir_server.commands.settings import Args


def fhirpath(args: Args) -> int:
    """Evaluate a FHIRPath expression on a resource (JSON or XML file, - for standard input); a value a line."""
    from profiles import json_text
    from profiles.fhirpath import engine
    from profiles.fhirpath.errors import FhirPathError

    raw = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    try:
        if raw.lstrip()[:1] == b"<":
            from profiles import xml_text

            resource = xml_text.from_xml(raw)
        else:
            resource = json_text.parse(raw)
        values = engine.compile(args.expression)(resource, trace=_traced)
    except FhirPathError as error:
        raise Failed(f"{error}; http://hl7.org/fhirpath/N1 has the grammar") from error
    except ValueError as error:
        raise Failed(f"{args.file}: {error}") from error
    if args.json:
        print(json_text.write([value if _plain(value) else str(value) for value in values]))
        return 0
    for value in values:
        print(value if isinstance(value, str) else json_text.write(value) if _plain(value) else value)
    return 0


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, dict | list | str | bool | int | Decimal)


def _traced(name: str, items: Any) -> None:
    print(f"trace {name}: {items}", file=sys.stderr)


def conformance(args: Args) -> int:
    """Test any system: list, run, report. See `passerelle conformance -- --help`."""
    from conformance.__main__ import main as judge

    return int(judge(args.rest, prog="passerelle conformance"))
