"""Selection, preconditions, limits and the five outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conformance import capabilities, runner
from conformance.target import WIRES, Context, Options, Target, UsageError, target
from conformance.verdict import Failed, Skipped, Unreachable, expect
from conformance.wire_mllp import Address

CLAUSE = ("https://example.org/clause",)
NOWHERE = Target(hl7v2=Address("127.0.0.1", 9, False))


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers a function as a check of the HL7 v2 wire, and forgets it after the test."""
    runner.load()
    before = dict(runner._registry)

    def one(name: str, function: runner.Function, **more: Any) -> None:
        runner.check(id=f"hl7v2.{name}", title=name, verifies=CLAUSE, wire="hl7v2", **more)(function)

    yield one
    runner._registry.clear()
    runner._registry.update(before)


def judge(name: str, to: Target = NOWHERE) -> runner.Result:
    (result,) = runner.run(to, only=[f"hl7v2.{name}"]).results
    return result


def test_a_check_that_returns_has_passed(register: Callable[..., None]) -> None:
    register("fine", lambda at: None)
    run = runner.run(NOWHERE, only=["hl7v2.fine"])
    assert [one.status for one in run.results] == ["pass"]
    assert run.exit_code == 0


def test_a_failure_carries_expected_found_clause_and_hint(register: Callable[..., None]) -> None:
    register("wrong", lambda at: expect(False, "two", "one"), hint="count again")
    result = judge("wrong")
    assert (result.status, result.expected, result.found) == ("fail", "two", "one")
    assert (result.clause, result.hint) == (CLAUSE[0], "count again")
    assert runner.run(NOWHERE, only=["hl7v2.wrong"]).exit_code == 1


def test_the_clause_of_an_expectation_goes_before_that_of_the_check(register: Callable[..., None]) -> None:
    register("wrong", lambda at: expect(False, "a", "b", clause="https://example.org/other", hint="look there"))
    assert (judge("wrong").clause, judge("wrong").hint) == ("https://example.org/other", "look there")


def test_an_absent_precondition_found_on_the_way_skips(register: Callable[..., None]) -> None:
    def skips(at: Context) -> None:
        raise Skipped("there is no such thing here")

    register("skips", skips)
    assert (judge("skips").status, judge("skips").message) == ("skip", "there is no such thing here")


def test_a_wire_without_an_address_skips_and_says_so(register: Callable[..., None]) -> None:
    register("fine", lambda at: None)
    result = judge("fine", target(["fhir=http://127.0.0.1:9/fhir"]))
    assert (result.status, result.message) == ("skip", "no --target hl7v2=... was given")


def test_a_setting_that_a_check_needs_skips_when_it_is_absent(register: Callable[..., None]) -> None:
    register("ins", lambda at: None, needs=("set:ins",))
    assert (judge("ins").status, judge("ins").message) == ("skip", "the check needs --set ins=...")
    given = Target(hl7v2=NOWHERE.hl7v2, options=Options(ins="279035121518989"))
    assert judge("ins", given).status == "pass"


def test_a_run_in_which_nothing_could_be_judged_is_no_pass(register: Callable[..., None]) -> None:
    register("ins", lambda at: None, needs=("set:ins",))
    assert runner.run(NOWHERE, only=["hl7v2.ins"]).exit_code == 1


def test_an_unreachable_system_is_an_error_and_no_verdict(register: Callable[..., None]) -> None:
    def knocks(at: Context) -> None:
        raise Unreachable("nobody there")

    register("knocks", knocks)
    assert (judge("knocks").status, judge("knocks").message) == ("error", "nobody there")


def test_a_defect_of_a_check_is_an_error_and_does_not_end_the_run(register: Callable[..., None]) -> None:
    register("defect", lambda at: [][1])
    register("fine", lambda at: None)
    run = runner.run(NOWHERE, only=["hl7v2.defect", "hl7v2.fine"])
    assert [one.status for one in run.results] == ["error", "pass"]
    assert "the check itself broke: IndexError" in run.results[0].message


def test_omitted_checks_appear_as_omitted_and_are_not_run(register: Callable[..., None]) -> None:
    called: list[str] = []
    register("first", lambda at: called.append("first"))
    register("second", lambda at: called.append("second"))
    run = runner.run(NOWHERE, only=["hl7v2.first", "hl7v2.second"], omit=["hl7v2.f*"])
    assert [one.status for one in run.results] == ["omit", "pass"]
    assert called == ["second"]


def test_checks_of_another_level_do_not_appear(register: Callable[..., None]) -> None:
    register("first", lambda at: None, level="N1")
    register("second", lambda at: None, level="N2")
    run = runner.run(NOWHERE, only=["hl7v2.first", "hl7v2.second"], level="N2")
    assert [one.id for one in run.results] == ["hl7v2.second"]


@pytest.mark.parametrize("chosen", [{"only": ["hl7v2.typo"]}, {"omit": ["hl7v2.typo"]}], ids=["only", "omit"])
def test_a_pattern_that_matches_no_check_is_a_usage_error(chosen: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"no check is called hl7v2\.typo"):
        runner.run(NOWHERE, **chosen)


def test_a_check_cannot_take_longer_than_its_time(register: Callable[..., None]) -> None:
    def waits(at: Context) -> None:
        while True:
            at.deadline.remaining()

    register("waits", waits)
    slow = Target(hl7v2=NOWHERE.hl7v2, options=Options(check_seconds=0.05))
    begun = time.monotonic()
    assert judge("waits", slow).status == "error"
    assert time.monotonic() - begun < 60


def test_checks_beyond_the_time_of_the_run_are_errors_not_passes(register: Callable[..., None]) -> None:
    def waits(at: Context) -> None:
        while at.deadline.remaining_or_zero():
            pass

    register("waits", waits)
    register("waits-more", waits)
    short = Target(hl7v2=NOWHERE.hl7v2, options=Options(run_seconds=0.05))
    run = runner.run(short, only=["hl7v2.waits", "hl7v2.waits-more"])
    assert run.results[1].status == "error"
    assert "the run has used up its 0.05 s" in run.results[1].message


def test_secrets_appear_neither_in_messages_nor_in_evidence(register: Callable[..., None]) -> None:
    def leaks(at: Context) -> None:
        at.transcript.sent("Authorization: Bearer s3cr3t-token")
        raise Failed("no secret", "s3cr3t-token")

    register("leaks", leaks)
    keyed = Target(hl7v2=NOWHERE.hl7v2, options=Options(token="s3cr3t-token"))
    result = judge("leaks", keyed)
    assert "s3cr3t" not in repr(result)
    assert "***" in result.found


def test_two_checks_of_one_id_are_refused(register: Callable[..., None]) -> None:
    register("fine", lambda at: None)
    with pytest.raises(ValueError, match="two checks of one id"):
        register("fine", lambda at: None)


def test_a_check_without_a_clause_is_refused() -> None:
    with pytest.raises(ValueError, match="names the clauses"):
        runner.check(id="fhir.x", title="x", verifies=(), wire="fhir")


@pytest.mark.parametrize(("name", "wire"), [("hl7v2.x", "fhir"), ("smtp.x", "smtp")])
def test_an_id_begins_with_a_known_wire(name: str, wire: str) -> None:
    with pytest.raises(ValueError, match="begins with its wire"):
        runner.check(id=name, title="x", verifies=CLAUSE, wire=wire)


def test_every_check_of_the_package_names_clauses_and_reads_as_a_sentence() -> None:
    checks = runner.load()
    assert len(checks) >= 10
    for one in checks:
        assert any(url.startswith("https://") or " " in url for url in one.verifies), one.id
        assert len(one.title) > 12, one.id
        assert one.title[0].isupper(), one.id
        assert not one.title.endswith("."), one.id
    assert {one.wire for one in checks} == set(WIRES)


def test_the_kit_holds_the_checks_it_promises() -> None:
    ids = [one.id for one in runner.load()]
    search = [one for one in ids if one.startswith(("fhir.search", "fhir.paging", "fhir.unknown-parameter"))]
    assert len([one for one in ids if one.startswith("fhir.") and one not in search]) >= 25
    assert len(search) >= 25
    assert len([one for one in ids if one.startswith("hl7v2")]) >= 40
    assert {one.level for one in runner.load() if one.wire == "hl7v2"} == {"N1", "N2", "N3"}


def declared(**resource: Any) -> dict[str, object]:
    entry = {"type": "Patient", **resource}
    rest = {"mode": "server", "resource": [entry], "interaction": [{"code": "transaction"}]}
    return {"rest": ["rubbish", {"mode": "client"}, rest]}


@pytest.mark.parametrize(
    ("need", "statement", "reason"),
    [
        ("fhir:Patient.create", declared(interaction=[{"code": "create"}]), ""),
        ("fhir:Patient.create", declared(), "the CapabilityStatement declares no create of Patient"),
        ("fhir:Observation.create", declared(), "the CapabilityStatement declares no Observation"),
        ("fhir:transaction", declared(), ""),
        ("fhir:batch", declared(), "the CapabilityStatement declares no batch"),
        ("fhir:compartment/patient", declared(), "the CapabilityStatement declares no compartment patient"),
        (
            "fhir:compartment/patient",
            {"rest": [{"mode": "server", "compartment": ["http://hl7.org/fhir/CompartmentDefinition/patient"]}]},
            "",
        ),
        ("fhir:Patient?identifier", declared(searchParam=[{"name": "identifier"}]), ""),
        (
            "fhir:Patient?identifier",
            declared(searchParam=["x"]),
            "the CapabilityStatement declares no search parameter",
        ),
        ("fhir:Patient.conditionalCreate", declared(conditionalCreate=True), ""),
        ("fhir:Patient.conditionalCreate", declared(), "the CapabilityStatement says conditionalCreate None"),
        ("fhir:Patient.versioned", declared(versioning="no-version"), "says versioning 'no-version'"),
        ("fhir:Patient.versioned", declared(versioning=["versioned"]), "says versioning"),
        ("fhir:Patient.conditionalRead", declared(conditionalRead="full-support"), ""),
        ("fhir:Patient.create", {"rest": 7}, "the CapabilityStatement declares no Patient"),
        ("fhir:Patient.create", None, ""),
    ],
)
def test_needs_are_answered_from_the_capability_statement(
    need: str, statement: dict[str, object] | None, reason: str
) -> None:
    told = capabilities.absent(need, statement, NOWHERE)
    assert (told == "") is (reason == "")
    assert reason in told
