"""Which téléexpertise a resource belongs to, and that it stays there: nothing moves from one patient's case to another.

A resource belongs to a case by `basedOn`, `focus` or `context.related`. What a case finds here when it begins was not
made by its steps: a report that is there already would look like its own, unsigned and never sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fhir_server.context import View
from fhir_server.errors import RuleBroken
from fhir_server.teleexpertise.case import Context, Resource, based_on, is_case

Claims = tuple[tuple[str, str], ...]
_ELEMENTS = ("basedOn", "focus")
# A ServiceRequest is its own case; Provenance has a rule of its own; an Encounter follows the hospital's movements.
_FREE = frozenset({"ServiceRequest", "Provenance", "Encounter"})
# Written by steps of the workflow alone, whatever wire they come by.
_OF_STEPS = frozenset({"DiagnosticReport", "Communication", "Task"})
_WIRES = frozenset({"dicom", "mllp"})
_MADE = ("DiagnosticReport", "Communication")
_VOID = frozenset({"entered-in-error", "cancelled", "not-done"})


def stays_in_case(before: Resource | None, after: Resource, ctx: Context) -> None:
    """A resource that belongs to a téléexpertise does not leave it. Raises RuleBroken naming the element.

    The wires match images and orders again by their numbers, and may move what is no step of a case.
    """
    kind = after["resourceType"]
    if before is None or kind in _FREE or (ctx.caller.channel in _WIRES and kind not in _OF_STEPS):
        return
    held, wanted = _cases(before, ctx.view), _cases(after, ctx.view)
    if kind == "Task" and not wanted and f"ServiceRequest/{after['id']}" in held:
        return  # the case's own Task: what is left out of it is filled in again
    if held and (not wanted or set(wanted) - set(held)):
        case, element = next(iter(held.items()))
        element = next((path for key, path in wanted.items() if key not in held), element)
        text = f"this {kind} belongs to {case} and stays there; write a new one for another request"
        raise RuleBroken(text, expression=f"{kind}.{element}")


def _cases(resource: Mapping[str, Any], view: View) -> dict[str, str]:
    """Each téléexpertise a resource names, and by which element."""
    places = {element: resource.get(element, ()) for element in _ELEMENTS}
    context = resource.get("context")
    places["context.related"] = context.get("related", ()) if isinstance(context, Mapping) else ()
    return {
        key: element
        for element, named in places.items()
        for key in based_on({"basedOn": [one for one in _listed(named) if isinstance(one, Mapping)]})
        if is_case(view.get(key) or {})
    }


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else [value]


def begins_empty(request: Resource, ctx: Context) -> Claims:
    """Nothing that a case makes itself is there before it; the claims that keep it so. Raises RuleBroken."""
    case = f"ServiceRequest/{request['id']}"
    claims = tuple((kind, f"based-on={case}") for kind in _MADE)
    new = {(one["resourceType"], one["id"]) for kind in _MADE for one in ctx.view.written(kind)}
    for kind, query in claims:
        for found in ctx.view.find(kind, query):
            # What is written in this very request passes the rules of the case itself.
            if (kind, found["id"]) not in new and found.get("status") not in _VOID:
                text = (
                    f"{kind}/{found['id']} is based on {case} already and was not made in this téléexpertise; "
                    "mark it entered-in-error or delete it first, or ask under another id"
                )
                raise RuleBroken(text, expression="ServiceRequest.id")
    return claims


def outside_claims(after: Resource) -> Claims:
    """What a report or message outside any case stands on: that its requests do not become cases meanwhile."""
    keys = based_on(after)
    locks = tuple((after["resourceType"], f"based-on={key}") for key in keys)
    return locks + tuple(("ServiceRequest", f"_id={key.partition('/')[2]}") for key in keys)
