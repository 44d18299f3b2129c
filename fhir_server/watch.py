"""What monitoring reads of the traffic: Prometheus metrics, and alerts as data. Names are a promise; see NAMES.

Nothing here counts finished rows: a scrape costs the same beside a million of them.
Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fhir_server.context import SYSTEM
from fhir_server.errors import Invalid
from fhir_server.store.engine import Store
from fhir_server.store.session import Snapshot

SECOND = 1_000_000

NAMES: Mapping[str, tuple[Literal["counter", "gauge"], str]] = {
    "passerelle_inbox_received_total": ("counter", "messages received by every wire, ever"),
    "passerelle_inbox_unsettled": ("gauge", "messages not taken in, by channel and state"),
    "passerelle_outbox_created_total": ("counter", "deliveries made, ever"),
    "passerelle_outbox_attempts_total": ("counter", "attempts begun, ever"),
    "passerelle_outbox_waiting": ("gauge", "deliveries of a lane that wait or are being sent"),
    "passerelle_outbox_stuck": ("gauge", "deliveries of a lane that are held or failed: a person decides"),
    "passerelle_outbox_oldest_seconds": ("gauge", "age of the oldest delivery of a lane that waits, 0 = none"),
    "passerelle_outbox_failures": ("gauge", "attempts of a lane in a row that failed"),
    "passerelle_outbox_paused": ("gauge", "1 while a person has paused the lane"),
    "passerelle_outbox_failed_ratio": (
        "gauge",
        "share of a lane's attempts, among the outbox's last 2000, that failed",
    ),
    "passerelle_outbox_unconfirmed": ("gauge", "deliveries handed over whose second leg (zam, dsn) is awaited"),
    "passerelle_outbox_unconfirmed_oldest_seconds": ("gauge", "age of the oldest of them"),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One value of one name, with its labels in order."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


def metrics(store: Store) -> list[Metric]:
    """Every metric of the traffic, the same in every process of an installation."""
    with store.read(SYSTEM) as snapshot:
        return [Metric("passerelle_" + name, labels, float(value)) for name, labels, value in _values(snapshot, store)]


_Labels = tuple[tuple[str, str], ...]


def _values(snapshot: Snapshot, store: Store) -> Iterator[tuple[str, _Labels, float]]:
    now = store.moment()
    received, created, begun = snapshot.totals()
    yield "inbox_received_total", (), received
    for (channel, state), count in sorted(snapshot.unsettled().items()):
        yield "inbox_unsettled", (("channel", channel), ("state", state)), count
    yield "outbox_created_total", (), created
    yield "outbox_attempts_total", (), begun
    for lane in snapshot.lanes():
        label = (("lane", lane.name),)
        yield "outbox_waiting", label, lane.open
        yield "outbox_stuck", label, lane.stuck
        yield "outbox_oldest_seconds", label, max(0, now - lane.oldest) / SECOND if lane.oldest else 0
        yield "outbox_failures", label, lane.failures
        yield "outbox_paused", label, int(lane.paused)
    for rate in snapshot.attempt_rates():
        yield "outbox_failed_ratio", (("lane", rate.lane),), rate.failed / rate.ended
    for leg in snapshot.waiting_legs():
        yield "outbox_unconfirmed", (("leg", leg.kind),), leg.count
        yield "outbox_unconfirmed_oldest_seconds", (("leg", leg.kind),), max(0, now - leg.oldest) / SECOND


def text(found: list[Metric]) -> str:
    """Prometheus' text format 0.0.4."""
    lines: list[str] = []
    for name, (kind, doc) in NAMES.items():
        values = [metric for metric in found if metric.name == name]
        if values:
            lines += [f"# HELP {name} {doc}", f"# TYPE {name} {kind}"]
        for metric in values:
            labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in metric.labels)
            lines.append(f"{name}{{{labels}}} {metric.value:.15g}" if labels else f"{name} {metric.value:.15g}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# What is asked for when the caller names no limit: seconds a delivery may wait, share of attempts that may fail (of at
# least so many), seconds a confirmation may stay out.
LIMITS: Mapping[str, float] = {
    "oldest_seconds": 900.0,
    "failed_ratio": 0.5,
    "failed_least": 10.0,
    "unconfirmed_seconds": 172_800.0,
}


def alerts(store: Store, args: Mapping[str, str]) -> list[dict[str, Any]]:
    """What somebody should look at now: `{"alert", "subject", "value", "limit", "text"}`, the same order every time.

    The limits of `LIMITS` may be given as arguments. Raises Invalid for one that is no number.
    """
    limits = {name: _limit(args, name, default) for name, default in LIMITS.items()}
    with store.read(SYSTEM) as snapshot:
        return [
            {"alert": alert, "subject": subject, "value": round(value, 3), "limit": limit, "text": words}
            for alert, subject, value, limit, words in _alerts(snapshot, limits, store.moment())
        ]


def _alerts(snapshot: Snapshot, limits: Mapping[str, float], now: int) -> Iterator[tuple[str, str, float, float, str]]:
    for lane in snapshot.lanes():
        if lane.stuck:
            told = f"{lane.stuck} deliveries to {lane.name} wait for a person: `passerelle outbox list` shows why"
            yield "stuck", lane.name, lane.stuck, 0, told
        age = (now - lane.oldest) / SECOND if lane.oldest else 0
        if age > limits["oldest_seconds"]:
            why = f"paused: {lane.paused_note}" if lane.paused else f"{lane.failures} attempts in a row failed"
            told = f"the oldest delivery to {lane.name} waits for {age:.0f} s ({why})"
            yield "oldest", lane.name, age, limits["oldest_seconds"], told
    for rate in snapshot.attempt_rates():
        ratio = rate.failed / rate.ended
        if rate.ended >= limits["failed_least"] and ratio > limits["failed_ratio"]:
            told = f"{rate.failed} of the last {rate.ended} attempts to {rate.lane} failed"
            yield "failed", rate.lane, ratio, limits["failed_ratio"], told
    for leg in snapshot.waiting_legs():
        age = (now - leg.oldest) / SECOND
        if age > limits["unconfirmed_seconds"]:
            told = f"{leg.count} deliveries await their {leg.kind}, the oldest for {age:.0f} s"
            yield "unconfirmed", leg.kind, age, limits["unconfirmed_seconds"], told
    for (channel, state), count in sorted(snapshot.unsettled().items()):
        if state in ("error", "conflict"):
            told = f"{count} messages of {channel} are in state {state}: `passerelle inbox list` shows them"
            yield "inbox", f"{channel} {state}", count, 0, told


def _limit(args: Mapping[str, str], name: str, default: float) -> float:
    try:
        return float(args.get(name, default))
    except ValueError as error:
        raise Invalid(f"{name} must be a number, not {args[name]}", expression=name, http=400) from error
