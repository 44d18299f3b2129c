"""Page links: opaque, signed with a key of the installation, good for one search only.

A link carries where its page begins. The signature covers that and the search it belongs to, so that a position which
this server did not give, or gave for another search, is refused before the store sees it.

Source: https://hl7.org/fhir/R4/http.html#paging
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from urllib.parse import urlencode

from fhir_server.changes import Hub
from fhir_server.errors import Malformed

PAGE = "_page"
_LONGEST = 8_000
_SIGNATURE = 16
Pairs = Sequence[tuple[str, str]]


def address(path: str, pairs: Pairs) -> str:
    """A path with its parameters; the path alone when there are none."""
    return f"{path}?{urlencode(pairs)}" if pairs else path


def link(hub: Hub, base: str, path: str, pairs: Pairs, position: tuple[object, ...]) -> str:
    """The URL of the page that begins behind a position of the search `path?pairs`."""
    text = json.dumps(position, separators=(",", ":")).encode()
    token = base64.urlsafe_b64encode(_signed(hub, path, pairs, text) + text).decode("ascii").rstrip("=")
    return f"{base}/{address(path, [*pairs, (PAGE, token)])}"


def position(hub: Hub, path: str, pairs: Pairs, token: str) -> tuple[object, ...]:
    """The position a page link of `path?pairs` carries, () for the first page. Raises Malformed for any other token."""
    if not token:
        return ()
    try:
        if len(token) > _LONGEST or not token.isascii():
            raise ValueError
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        raw = b""
    text = raw[_SIGNATURE:]
    if not hmac.compare_digest(raw[:_SIGNATURE], _signed(hub, path, pairs, text)):
        raise Malformed("this page link is damaged, or of another search; start again without it")
    found: list[object] = json.loads(text)
    return tuple(found)


def _signed(hub: Hub, path: str, pairs: Pairs, text: bytes) -> bytes:
    about = address(path, pairs).encode("utf-8", "surrogatepass") + b"\n" + text
    return hmac.new(hub.store.link_key, about, hashlib.sha256).digest()[:_SIGNATURE]
