"""Topics `search-*`: the shapes of search over HTTP, ours beside other servers.

Every server is given the same Synthea Bundles and the same few hundred patients with observations of their own; the
values asked for are taken from these at random with a fixed seed. A shape is a hundred different requests in a loop,
so that no server answers from the memory of the last one alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from benchmarks import report, samples
from benchmarks.fhir_target import FhirTarget
from benchmarks.load import Plan
from benchmarks.rounds import Effort, turns
from benchmarks.target import Outcome, Series
from benchmarks.topics_rest import OURS, Field, absolute

Resource = dict[str, Any]
Query = tuple[str, list[tuple[str, str]]]
REQUESTS = 100
GOAL = "3x hapi (p50 and p99), 1x wso2"


class _Values:
    """Random values of what a target stores."""

    def __init__(self, target: FhirTarget, effort: Effort) -> None:
        self.random = random.Random(11)
        people = [(path.lstrip("/"), one) for path, one in target.seeds if one["resourceType"] == "Patient"]
        self.people = people
        self.facts = [one for _, one in target.seeds if one["resourceType"] == "Observation"]
        self.measured = [one for one in self.facts if "valueQuantity" in one] or self.facts
        self.effort = effort

    def code(self) -> str:
        coding = self.random.choice(self.facts)["code"]["coding"][0]
        return f"{coding['system']}|{coding['code']}"

    def patient(self) -> str:
        return self.random.choice(self.people)[0]

    def family(self) -> str:
        return str(self.random.choice(self.people)[1]["name"][0]["family"])[:5]

    def day(self) -> str:
        return str(self.random.choice(self.facts)["effectiveDateTime"])[:10]

    def quantity(self) -> tuple[str, str]:
        one = self.random.choice(self.measured)
        coding, value = one["code"]["coding"][0], one.get("valueQuantity", {"value": 1})
        unit = f"|{value['system']}|{value['code']}" if "code" in value else ""
        return f"{coding['system']}|{coding['code']}", f"gt{value['value']:.2f}{unit}"


def _token(v: _Values) -> Query:
    return "Observation", [("code", v.code())]


def _string(v: _Values) -> Query:
    return "Patient", [("family", v.family())]


def _reference_code(v: _Values) -> Query:
    return "Observation", [("subject", v.patient()), ("code", v.code())]


def _date_range(v: _Values) -> Query:
    day = v.day()
    return "Observation", [("date", f"ge{day}"), ("date", f"le{day}")]


def _quantity(v: _Values) -> Query:
    code, amount = v.quantity()
    return "Observation", [("code", code), ("value-quantity", amount)]


def _chain(v: _Values) -> Query:
    return "Observation", [("subject:Patient.family", v.family()), ("code", v.code())]


def _has(v: _Values) -> Query:
    return "Patient", [("_has:Observation:subject:code", v.code()), ("family", v.family())]


def _include(v: _Values) -> Query:
    return "Observation", [("code", v.code()), ("_include", "Observation:subject"), ("_count", "20")]


def _revinclude(v: _Values) -> Query:
    return "Patient", [("_id", v.patient().rpartition("/")[2]), ("_revinclude", "Observation:subject")]


def _sorted(v: _Values) -> Query:
    return "Observation", [("code", v.code()), ("_sort", "-date"), ("_count", "20")]


def _counted(v: _Values) -> Query:
    return "Observation", [("code", v.code()), ("_summary", "count")]


def _fan_out(v: _Values) -> Query:
    return "Observation", [("subject", v.patient()), ("_count", "200")]


SHAPES: dict[str, tuple[str, Callable[[_Values], Query]]] = {
    "token": ("a token", _token),
    "string": ("the beginning of a name", _string),
    "reference-code": ("a reference and a token", _reference_code),
    "date-range": ("one day", _date_range),
    "quantity": ("a token and a quantity", _quantity),
    "chain": ("a chain and a token", _chain),
    "has": ("`_has` and a name", _has),
    "include": ("a token with `_include`", _include),
    "revinclude": ("an id with `_revinclude`", _revinclude),
    "sorted": ("a token in order of date", _sorted),
    "count": ("the count of a token", _counted),
    "fan-out": ("everything of one patient", _fan_out),
}


def queries(shape: str, target: FhirTarget, effort: Effort) -> list[Query]:
    """A hundred queries of a shape. The target is seeded before."""
    values = _Values(target, effort)
    return [SHAPES[shape][1](values) for _ in range(REQUESTS)]


def search(shape: str) -> Callable[[Field, Effort], report.Report]:
    """The topic of one shape."""

    def topic(ground: Field, effort: Effort) -> report.Report:
        requests = {target.name: _requests(shape, target, effort) for target in ground.targets}
        found = {(target.name, clients): Series() for target in ground.targets for clients in effort.clients}
        deadline, done = time.monotonic() + effort.minutes * 60, 0
        for target in ground.targets:
            _driven(target, requests[target.name], max(effort.clients), effort.http_warm_up)
        while done < effort.rounds and (done == 0 or time.monotonic() < deadline):
            for clients in effort.clients:
                for place in turns(len(ground.targets), done):
                    target = ground.targets[place]
                    outcome = _driven(target, requests[target.name], clients, effort.seconds)
                    found[target.name, clients].outcomes.append(outcome)
            done += 1
        names = [target.name for target in ground.targets]
        grids = [_ratios(found, names, effort.clients), absolute(found, names, effort.clients)]
        return report.Report(f"search-{shape}", f"Search: {SHAPES[shape][0]}", grids, _method(effort, found, done))

    return topic


def _requests(shape: str, target: FhirTarget, effort: Effort) -> list[bytes]:
    target.seed()
    if not target.stocked:
        for bundles in (samples.directory(), samples.patients(effort.bundles)):
            if bundles:
                target.load(bundles, min(8, len(bundles)))
        target.stocked = True
    asked = queries(shape, target, effort)
    return [target.address.request(b"GET", f"/{kind}?{urlencode(pairs)}".encode()) for kind, pairs in asked]


def _driven(target: FhirTarget, requests: list[bytes], clients: int, seconds: float) -> Outcome:
    return target.drive(Plan(target.address, requests, clients, seconds))


def _ratios(found: dict[tuple[str, int], Series], names: Sequence[str], clients: Sequence[int]) -> report.Grid:
    """The other's time as a multiple of ours, at the middle and in the tail."""
    rows = []
    for count in clients:
        ours = found[OURS, count].percentiles(50, 99)
        row = [str(count)]
        for name in names[1:]:
            row += [report.ratio(t, o) for t, o in zip(found[name, count].percentiles(50, 99), ours, strict=True)]
        rows.append(row)
    head = ["Clients", *(f"{name} {at}" for name in names[1:] for at in ("p50", "p99"))]
    return report.Grid(f"The other's time, times ours (goals: {GOAL})", head, rows)


def _method(effort: Effort, found: dict[tuple[str, int], Series], rounds: int) -> list[str]:
    told = [
        f"{REQUESTS} different requests in a loop; closed model, {effort.seconds:g} s a round, {rounds} rounds, one "
        "server after the other in each.",
        f"Stored before: {effort.bundles} Bundles of patients, {effort.seeds} observations of some patients.",
        samples.described(),
    ]
    for (name, clients), series in found.items():
        if series.failures:
            words = " ".join(series.first_failure.split())[:200].replace("|", "/")
            told.append(f"{name} failed {series.failures} of {series.answers} at {clients} clients, first: {words}")
    return told
