"""The addresses within a request: fullUrls, conditional references and this server's own URLs become `Type/id`.

A reference is looked up the way bundle.html#references says: an absolute one among the fullUrls, a relative one after
being made absolute with the base of its own entry's fullUrl; a version of an entry becomes the version it is given
here. What names no entry and stays relative means this server. Beside references, trules asks for elements of type
uri, url, oid and uuid, and for links in the narrative; canonical, string and markdown are text and stay.

Sources: https://hl7.org/fhir/R4/bundle.html#references, https://hl7.org/fhir/R4/http.html#trules
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fhir_server.errors import Invalid
from fhir_server.search import references
from profiles import definitions

Resource = dict[str, Any]
# Where a value stands: the place around it, its name or number there, and the type when it is a resource itself.
_Place = tuple[Any, str | int, str]
_REPLACED_TYPES = frozenset({"uri", "url", "oid", "uuid"})
_ELSEWHERE = ("http:", "https:", "urn:")
# Nothing is given back once read, and an attribute begins after a blank: hostile text is read once.
_TAG = re.compile(r"""<(?:a|img)\b((?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+)>""")
_ATTRIBUTE = re.compile(r"""(?<=\s)([^\s=<>"']++)(\s*+=\s*+)("[^"<]*+"|'[^'<]*+')""")


@dataclass(frozen=True, slots=True)
class _Named:
    """What a fullUrl stands for: `Type/id`, the version its sender calls it ('' when not told), and the one it gets."""

    reference: str
    told: str
    version: int


class Links:
    """What the entries of one request are called and what became of them."""

    def __init__(self, bases: Sequence[str], conditional: Callable[[str, str], str]) -> None:
        """`bases` are the URLs that mean this server; `conditional` answers a conditional reference at a place."""
        self._bases = bases
        self._conditional = conditional
        self._named: dict[str, _Named] = {}

    def name(self, full_url: str, reference: str, expression: str, *, told: str = "", version: int = 1) -> None:
        """Say what a fullUrl stands for: `told` is the meta.versionId in the entry, `version` the one it is given.

        Raises Invalid (400) when it stands for something else already.
        """
        if self._named.setdefault(full_url, _Named(reference, told, version)).reference != reference:
            text = f"{full_url} is the fullUrl of two entries; give each its own"
            raise Invalid(text, expression=expression, http=400)

    def reference(self, full_url: str) -> str | None:
        """`Type/id` of the entry with that fullUrl, None before it has been decided."""
        named = self._named.get(full_url)
        return named.reference if named else None

    def replaced(self, resource: Resource, expression: str, full_url: str = "") -> Resource:
        """The resource of the entry at `full_url` with every address replaced; `expression` is where it stands.

        A Bundle kept as a resource is a room of its own: what refers within it is left alone. Raises Invalid for a
        urn:uuid or urn:oid that is the fullUrl of no entry, and as the conditional references do.
        """
        if resource["resourceType"] == "Bundle":
            return resource
        return dict(_Replacing(self, references.base_of(full_url), expression).walk(resource, None))

    def of_reference(self, value: str, base: str, path: Callable[[], str]) -> str:
        """What a Reference.reference becomes; `base` is that of the entry it stands in."""
        if named := self._named.get(value):
            return named.reference
        if value.startswith("#"):
            return value
        absolute = value
        if base and references.is_local(value):
            absolute = f"{base}/{value}"
        whole, _, version = absolute.partition("/_history/")
        if named := self._named.get(whole):
            if not version:
                return named.reference
            if named.told in ("", version):
                return f"{named.reference}/_history/{named.version}"
            # Another version of what an entry brings: it is where it came from, and not this server's.
            return references.relative(absolute, self._bases) or absolute
        if own := references.relative(value, self._bases):
            return own
        if _is_conditional(value):
            return self._conditional(value, path())
        if value.startswith(("urn:uuid:", "urn:oid:")):
            raise Invalid(f"{value} is the fullUrl of no entry of this Bundle", expression=path(), code="not-found")
        return value

    def of_narrative(self, div: str) -> str:
        """The narrative with the `href` of `a` and the `src` of `img` replaced where they are exactly a fullUrl."""

        def attribute(found: re.Match[str]) -> str:
            link = found[1] in ("href", "src")
            new = self.reference(html.unescape(found[3][1:-1])) if link else None
            return found[0] if new is None else f'{found[1]}{found[2]}"{new}"'

        def tag(found: re.Match[str]) -> str:
            start = found.start(1) - found.start()
            return found[0][:start] + _ATTRIBUTE.sub(attribute, found[1]) + ">"

        return _TAG.sub(tag, div) if self._named else div


def conditional(resource: Resource) -> Iterator[str]:
    """The conditional references in a resource, one by one, in their order."""
    left: list[Any] = [] if resource["resourceType"] == "Bundle" else [resource]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            value = one.get("reference")
            if isinstance(value, str) and _is_conditional(value):
                yield value
        inner = one.values() if isinstance(one, dict) else one
        left.extend(reversed([part for part in inner if isinstance(part, (dict, list))]))


def _is_conditional(value: str) -> bool:
    return "?" in value and not value.startswith(_ELSEWHERE)


class _Replacing:
    """One walk through one resource."""

    def __init__(self, links: Links, base: str, expression: str) -> None:
        self.links, self.base, self.expression = links, base, expression

    def walk(self, value: Any, place: _Place | None) -> Any:
        if isinstance(value, dict):
            kind = value.get("resourceType")
            if isinstance(kind, str):
                place = (place[0], place[1], kind) if place else (None, "", kind)
            return {name: self.walk(item, (place, name, "")) for name, item in value.items()}
        if isinstance(value, list):
            return [self.walk(item, (place, number, "")) for number, item in enumerate(value)]
        if isinstance(value, str) and place:
            return self._string(value, place)
        return value

    def _string(self, value: str, place: _Place) -> str:
        if place[1] == "reference":
            return self.links.of_reference(value, self.base, lambda: self._path(place))
        if place[1] == "div" and _type_at(place) == "xhtml":
            return self.links.of_narrative(value)
        new = self.links.reference(value)
        return new if new is not None and _type_at(place) in _REPLACED_TYPES else value

    def _path(self, place: _Place) -> str:
        """FHIRPath of a place: `Bundle.entry[0].resource.subject.reference`."""
        steps = []
        at: Any = place
        while at[0] is not None:
            steps.append(f"[{at[1]}]" if isinstance(at[1], int) else f".{at[1]}")
            at = at[0]
        return (self.expression or at[2]) + "".join(reversed(steps))


def _type_at(place: _Place) -> str:
    """The FHIR type of the element at a place, '' when the definitions know none."""
    names = []
    at: Any = place
    while not at[2]:
        if isinstance(at[1], str):
            names.append(at[1])
        at = at[0]
    return _type_of(at[2], tuple(reversed(names)))


@lru_cache(maxsize=4096)
def _type_of(resource_type: str, names: tuple[str, ...]) -> str:
    where, kind = resource_type, ""
    for name in names:
        child = definitions.children(where).get(name.removeprefix("_"))
        if child is None:
            return ""
        where, kind = child.place, child.type
    return kind
