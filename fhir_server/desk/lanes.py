"""What an operator asks of destinations: what waits for them, and how each wants to be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from fhir_server.context import SYSTEM
from fhir_server.desk.words import Args, Json, plain, when
from fhir_server.errors import Invalid
from fhir_server.store.engine import Store
from fhir_server.store.lanes import OnSilence, OnStuck
from fhir_server.store.outbox_desk import Lane, Policy
from fhir_server.store.session import Snapshot


def lane_list(store: Store, args: Args) -> Json:
    """Every destination with its policy and its counts, or the one named `lane`: `address` is where what is made now
    goes, `endpoint` where the last delivery goes that was made."""
    with store.read(SYSTEM) as snapshot:
        return [_lane(lane) | {"address": address_of(snapshot, lane)} for lane in snapshot.lanes(args.get("lane", ""))]


def address_of(snapshot: Snapshot, lane: Lane) -> str:
    """Where a destination is now: as its Endpoint says, '' when that was deleted; without one, as it was told last."""
    kind, _, key = lane.name.partition("/")
    stored = snapshot.get(kind, key) if kind == "Endpoint" and key else None
    if stored is None:
        return lane.endpoint
    return "" if stored.deleted else str(stored.resource().get("address", ""))


def lane_pause(store: Store, args: Args) -> Json:
    """Stop a destination before its next delivery; `reason` is shown to whoever asks why."""
    store.write(SYSTEM, lambda tx: tx.pause(_lane_name(args), args.get("reason", "maintenance")))
    return {"lane": _lane_name(args), "paused": True}


def lane_resume(store: Store, args: Args) -> Json:
    """Let a paused destination go on, at once."""
    store.write(SYSTEM, lambda tx: tx.resume(_lane_name(args)))
    return {"lane": _lane_name(args), "paused": False}


def lane_policy(store: Store, args: Args) -> Json:
    """Change what a destination wants: `on_stuck` block|skip, `on_silence` resend|hold|default, `per_second` (0: no
    limit), `answer_seconds` (0: the installation's), `keep_open_seconds` (0: a connection a message). What is not named
    stays."""
    silence = args.get("on_silence")
    policy = Policy(
        on_stuck=_choice(args.get("on_stuck"), "on_stuck", get_args(OnStuck)),
        on_silence=_choice("" if silence == "default" else silence, "on_silence", get_args(OnSilence)),
        per_second=_number(args, "per_second"),
        answer_seconds=_number(args, "answer_seconds"),
        keep_open_seconds=_number(args, "keep_open_seconds"),
    )
    store.write(SYSTEM, lambda tx: tx.set_policy(_lane_name(args), policy))
    return lane_list(store, args)[0]


def _choice(value: str | None, name: str, allowed: Sequence[str]) -> Any:
    if value is not None and value not in allowed:
        raise Invalid(f"{name} is one of {', '.join(filter(None, allowed))}, not {value}", expression=name, http=400)
    return value


def _number(args: Args, name: str, default: float | None = None) -> float | None:
    if name not in args:
        return default
    try:
        return float(args[name])
    except ValueError as error:
        raise Invalid(f"{name} must be a number, not {args[name]}", expression=name, http=400) from error


def _lane_name(args: Args) -> str:
    if not args.get("lane"):
        raise Invalid("name the lane; `passerelle lane list` shows them", expression="lane", http=400)
    return args["lane"]


def _lane(lane: Lane) -> dict[str, Any]:
    shown = plain(lane)
    shown["oldest"] = when(lane.oldest)
    shown["per_second"] = 1_000_000 / lane.gap if lane.gap else 0
    shown["answer_seconds"] = shown.pop("answer_within") / 1_000_000
    shown["keep_open_seconds"] = shown.pop("keep_open") / 1_000_000
    return shown
