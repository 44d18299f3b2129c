"""The matricule INS: 13 characters and a key of two digits.

The key is 97 - (N mod 97), N being the 13 characters with the department 2A read as 19 and 2B as 18.
Source: référentiel INS and its guide d'implantation (https://esante.gouv.fr/produits-services/referentiel-ins).
"""

from __future__ import annotations

import re
from typing import Final

_SHAPE: Final = re.compile(r"[0-9]{5}([0-9]{2}|2[AB])[0-9]{8}\Z")


def key_of(body: str) -> str:
    """The two-digit key of the 13 characters of an INS."""
    digits = body[:5] + {"2A": "19", "2B": "18"}.get(body[5:7], body[5:7]) + body[7:]
    return f"{97 - int(digits) % 97:02d}"


def shaped(value: str) -> bool:
    """Whether this has the 15 characters of an INS, whatever its key."""
    return _SHAPE.match(value) is not None


def fault(value: str) -> str:
    """What is wrong with an INS, '' for nothing."""
    if not shaped(value):
        return "an INS has 13 characters and a key of two digits"
    expected = key_of(value[:13])
    return "" if value[13:] == expected else f"the key of the INS is {value[13:]}, {expected} was expected"
