"""Code tables from HL7 v2 to FHIR: the published concept maps, and what of them is ours.

Hides where the maps lie (`profiles/data/v2-to-fhir.json`, built by `profiles.build_v2_maps`). A mapper names the map
and says only what differs, each code with its reason: a French rule, or a code for which HL7 gives no equivalent.

Source: https://build.fhir.org/ig/HL7/v2-to-fhir/concept_maps.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parent / "data" / "v2-to-fhir.json"
NONE: Final = None
"""In place of an equivalent: this code has none here, though HL7 gives it one."""

Overlay = Mapping[str, tuple[str | None, str]]
"""Code -> (our equivalent or NONE, the reason)."""


@cache
def published(name: str) -> Mapping[str, str]:
    """One map as HL7 publishes it; codes in capitals. Raises KeyError for one that is not shipped."""
    return {code.upper(): equivalent for code, equivalent in _maps()[name].items()}


@cache
def _maps() -> Mapping[str, Mapping[str, str]]:
    maps: Mapping[str, Mapping[str, str]] = json.loads(DATA.read_text(encoding="utf-8"))["maps"]
    return maps


def table(name: str, overlay: Overlay | None = None) -> dict[str, str]:
    """Code (in capitals) -> FHIR code: the published map with our differences."""
    ours = {code: equivalent for code, (equivalent, _) in (overlay or {}).items()}
    merged = {**published(name), **ours}
    return {code: equivalent for code, equivalent in merged.items() if equivalent is not None}
