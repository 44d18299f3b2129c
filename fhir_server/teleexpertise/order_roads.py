"""By which Endpoint an order, and all that is said about it, gets to whom.

Hides who is asked, which changes while a request is out: at first everybody it names; once somebody took it, they and
those among the asked that they belong to; nobody once it is closed. One application is one addressee, by however many
Endpoints it is reached, and is told about a request in one lane while that leads there: two lanes keep no order.

Sources: CI-SIS téléradiologie 1.0 (ballot), flows 1 to 3; https://hl7.org/fhir/R4/servicerequest.html (performer).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fhir_server.teleexpertise import distribution, order_record, sides
from fhir_server.teleexpertise.case import Context, Ordered
from fhir_server.teleexpertise.distribution import Destination
from fhir_server.teleexpertise.order_record import ASKED, Orders
from fhir_server.teleexpertise.parties import Candidate, candidates, site_at
from fhir_server.teleexpertise.states import holder, state_of
from mappers.order_number import placer_of

Resource = dict[str, Any]
ANSWERED = "tlr-1.0"
"""What an Endpoint asks for that gets the answers to its own orders."""


def road(candidate: Candidate) -> Destination:
    """The way of an order to an Endpoint."""
    return distribution.hl7_road(candidate, ASKED)


def among(whom: Ordered | Destination, known: Iterable[Candidate]) -> bool:
    """Whether an addressee is at the end of one of these Endpoints."""
    return any(order_record.same(whom, road(one)) for one in known)


def asked(request: Resource, ctx: Context) -> list[Candidate]:
    """Who is to hold an order now.

    Who ordered by HL7 v2 is not told their own order where the same house is asked: of the applications of both sides a
    group's own remains, unless it is also the one that gets the answer.
    """
    found = at_the_asked(_awaited(request, ctx), ctx)
    if placer_of(request) is None:
        return found
    groups = (ctx.view.get(str(one.get("reference", ""))) or {} for one in request.get("performer", ()))
    own = {item.get("reference") for group in groups for item in group.get("endpoint", ())}
    ordering = asking(request, ctx)
    answered = [one for one in (*ordering, *found) if ANSWERED in distribution.profiles(one.endpoint)]
    return [
        one
        for one in found
        if not among(road(one), ordering) or (one.reference in own and not among(road(one), answered))
    ]


def _awaited(request: Resource, ctx: Context) -> Sequence[Mapping[str, Any]]:
    """The performers from whom something is awaited."""
    state = state_of(request, ctx.settings)
    performers: Sequence[Mapping[str, Any]] = request.get("performer", ())
    if state not in ("in_progress", "on-hold"):
        return performers if state == "ready" else ()
    taker = holder(request, state)
    if not taker:
        return performers
    role = ctx.view.get(str(taker["reference"])) or {}
    named = ((one, str(one.get("reference"))) for one in performers)
    own = _called_in(str(taker["reference"]), ctx)
    return [*(one for one, key in named if key in own or sides.belongs(role, frozenset({key}), ctx.view)), taker]


def _called_in(taker: str, ctx: Context) -> frozenset[str]:
    """The groups in whose name a person takes a request just now: a token may say what the directory does not. The
    groups of a message are those that its sender answers for."""
    return ctx.caller.groups if ctx.caller.who == taker and ctx.caller.channel != "mllp" else frozenset()


def at_the_asked(parties: Iterable[Mapping[str, Any]], ctx: Context) -> list[Candidate]:
    """The Endpoints of groups, structures and people that are asked: what the asking side knows of the patient opens no
    road here."""
    return candidates({"performer": list(parties)}, {}, {}, ctx.view, ctx.sites)


def asking(request: Resource, ctx: Context) -> list[Candidate]:
    """The Endpoints of the side that asks: the requester, the place of the stay, the hospital whose patient number the
    request carries."""
    side: Resource = {name: request[name] for name in ("requester", "encounter", "subject") if name in request}
    patient = ctx.view.get(request["subject"].get("reference", "")) or {}
    return candidates(side, {}, patient, ctx.view, ctx.sites)


def at(lane: str, request: Resource, ctx: Context) -> Candidate:
    """Who holds an order in a lane, as one who is asked where they still are."""
    endpoint = ctx.view.get(lane) or {}
    return next(
        (one for one in at_the_asked(request.get("performer", ()), ctx) if one.reference == lane),
        Candidate(lane, endpoint, site_at(endpoint, ctx.view, ctx.sites)),
    )


def why_not(candidate: Candidate, whom: Ordered | Destination) -> str:
    """Why an Endpoint leads no order to an addressee, or ''."""
    if why := distribution.out_of_service(candidate):
        return why
    if ASKED not in distribution.profiles(candidate.endpoint):
        return f"{candidate.reference} ne reçoit plus de demandes ({ASKED})"
    return "" if order_record.same(whom, road(candidate)) else f"{candidate.reference} mène à une autre application"


def kept(wanted: Candidate, held: Orders, request: Resource, ctx: Context) -> Candidate:
    """The Endpoint by which who is asked was told of this request before, while it leads there."""
    lanes = (one.lane for one in reversed(held.lines) if order_record.same(one, road(wanted)))
    before = at(next(lanes, wanted.reference), request, ctx)
    return replace(before, site=before.site or wanted.site) if not why_not(before, road(wanted)) else wanted


def left_behind(wanted: Candidate, held: Orders, ctx: Context) -> list[Ordered]:
    """What was said to an addressee in other lanes than this and has not left: it might come behind what follows."""
    elsewhere = (one for one in held.settled if one.lane != wanted.reference and not one.ended)
    known = (one for one in elsewhere if order_record.same(one, road(wanted)))
    return [one for one in known if ctx.handed(one.delivery) in ("waits", "kept")]


def spoke(held: Sequence[Ordered], ctx: Context) -> Ordered | None:
    """Which of these took or refused by HL7 v2 just now: who bears the name of the message (MSH-3, MSH-4), else the
    only one of those it spoke for. None where that is not known, and for a step of a person, of which no application
    knows.
    """
    if ctx.caller.channel != "mllp" or "expert" not in ctx.caller.roles:
        return None
    named = [one for one in held if one.addressee.removeprefix("hl7:").replace("|", " ") == ctx.caller.display]
    near = at_the_asked(({"reference": one} for one in sorted(ctx.caller.groups)), ctx)
    own = named or [one for one in held if among(one, near)]
    return own[0] if len(own) == 1 else None
