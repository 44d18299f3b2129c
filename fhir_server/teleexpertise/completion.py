"""What a request made from an order still lacks, said on the request until it goes out.

Hides how a reader is told: a tag by which such drafts are found, and a note of this server in French. Both are taken
off by the step that sends the request: from then on they are not true, and a note leaves with an order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fhir_server.teleexpertise.case import SERVER

Resource = dict[str, Any]
TO_COMPLETE = {"system": "urn:passerelle:demande", "code": "a-completer", "display": "à compléter"}
MISSING: Mapping[str, str] = {
    "consent": "le consentement du patient",
    "question": "la question posée à l'expert",
    "requester": "le professionnel requérant, connu de l'annuaire",
    "reason": "le motif de la demande",
    "birthDate": "la date de naissance du patient",
    "performer": "le groupe d'experts sollicité",
}
"""What a request needs beyond an order, as its reader is told."""
_PREFIX, _BETWEEN = "À compléter avant envoi : ", " ; "


def to_complete(request: Resource, missing: Iterable[str]) -> Resource:
    """The same request, which says what it lacks: keys of MISSING."""
    text = _PREFIX + _BETWEEN.join(MISSING[name] for name in missing)
    note = {"authorString": SERVER, "text": text}
    meta = dict(request.get("meta", {}))
    tags = [tag for tag in meta.get("tag", ()) if not _is_tag(tag)]
    return {**request, "note": [*request.get("note", ()), note], "meta": {**meta, "tag": [*tags, TO_COMPLETE]}}


def completed(request: Resource) -> Resource:
    """The same request without the tag and the note; what a person wrote into that note stays."""
    out = dict(request)
    _keep(out, "note", [note for note in request.get("note", ()) if not _is_ours(note)])
    meta = dict(request.get("meta", {}))
    _keep(meta, "tag", [tag for tag in meta.get("tag", ()) if not _is_tag(tag)])
    _keep(out, "meta", meta)
    return out


def _keep(where: Resource, element: str, value: Any) -> None:
    if value:
        where[element] = value
    else:
        where.pop(element, None)


def _is_tag(tag: Mapping[str, Any]) -> bool:
    return all(tag.get(name) == TO_COMPLETE[name] for name in ("system", "code"))


def _is_ours(note: Mapping[str, Any]) -> bool:
    text = str(note.get("text") or "")
    named = text.removeprefix(_PREFIX).split(_BETWEEN)
    return text.startswith(_PREFIX) and set(named) <= set(MISSING.values())
