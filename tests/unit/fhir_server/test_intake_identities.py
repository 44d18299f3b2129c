"""ITI-30 and A44: identities are created, changed, merged and parted, and whatever hangs on them follows, on record."""

from __future__ import annotations

from typing import Any

import pytest
from hubs import (
    ADMIN,
    EXPERT,
    PARTNER,
    REQUESTER,
    at_once,
    delivered,
    deliveries,
    found,
    message,
    opinion,
    put,
    read,
    results,
    stored,
    take,
)
from sylve import INS, IPP, patient, person, sample, say, stays, sylve, tell

from fhir_server import changes
from fhir_server.changes import Hub, view_of
from fhir_server.context import SYSTEM
from fhir_server.delivery import arrivals
from fhir_server.delivery.intake_merges import unmerge
from fhir_server.demo import people
from fhir_server.errors import Conflict, NotFound, RuleBroken
from fhir_server.patients import merge
from fhir_server.patients.identity import qualified_ins
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.overtaken import overtaken

Resource = dict[str, Any]
SURVIVOR, GIVEN_UP = "000417", "000399"


@pytest.fixture
def hub(store: Store) -> Hub:
    return sylve(store)


def ids(resource: Resource, system: str = IPP) -> dict[str, str]:
    return {i["value"]: i.get("use", "") for i in resource.get("identifier", ()) if i.get("system") == system}


def ref(hub: Hub, ipp: str) -> str:
    return f"Patient/{patient(hub, ipp)['id']}"


def two(hub: Hub) -> tuple[str, str]:
    """The survivor and the record to be given up, the latter with an observation, a request of a téléexpertise..."""
    tell(hub, "adt-a01-admission")
    assert say(hub, person(GIVEN_UP, "LECOCQ", "Noémie", "19840523")).code == "AA"
    source = ref(hub, GIVEN_UP)
    put(
        hub,
        SYSTEM,
        *people.structures("127.0.0.1:9", "127.0.0.1:10"),
        *people.professionals(),
        people.consent("fusion", 0) | {"patient": {"reference": source}},
        people.request("fusion", 0, "moreau", "avis-echo", "Avis", "draft") | {"subject": {"reference": source}},
        {
            "resourceType": "Observation",
            "id": "o1",
            "status": "final",
            "code": {"text": "Poids"},
            "subject": {"reference": source},
        },
    )
    return ref(hub, SURVIVOR), source


# --- A28, A31 --------------------------------------------------------------------------------------------------------


def test_the_declared_doctor_and_the_choices_about_the_dmp_are_kept(hub: Hub) -> None:
    zfa = "ZFA|ACTIF|20250110|||||||INO|20260301|IC|20260301"
    rol = "ROL||UP|ODRP|99900000029^FERRAND^Paul^^^^^^ASIP-SANTE-PS&1.2.250.1.71.4.2.1&ISO^D^^^RPPS"
    say(hub, person("000600", more=f"{rol}\r{zfa}"))
    held = patient(hub, "000600")
    assert held["generalPractitioner"][0]["identifier"]["value"] == "99900000029"
    consents = found(hub, "Consent", f"patient=Patient/{held['id']}")
    assert {c["category"][0]["text"]: (c["status"], c["provision"]["type"]) for c in consents} == {
        "Alimentation du DMP": ("active", "permit"),
        "Consultation du DMP": ("active", "permit"),
    }
    say(hub, person("000600", more="ZFA|ACTIF|20250110|||||||IO|20260304|NA|20260304"))
    after = found(hub, "Consent", f"patient=Patient/{held['id']}")
    assert {c["category"][0]["text"]: (c["status"], c["provision"]["type"]) for c in after} == {
        "Alimentation du DMP": ("active", "deny"),
        "Consultation du DMP": ("inactive", "permit"),
    }


def test_a_doctor_taken_back_and_fields_deleted_leave_the_patient(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    assert patient(hub).get("generalPractitioner")
    tell(hub, "adt-a31-medecin-traitant-retire")
    assert "generalPractitioner" not in patient(hub)
    assert patient(hub)["telecom"]
    tell(hub, "adt-a31-identite-douteuse", ("VALI~DOUT", "VALI"))
    assert "telecom" not in patient(hub), 'PID-13 says ""'


def test_a_doubtful_identity_loses_its_ins_and_what_carries_it_is_held_back(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    held = patient(hub)
    assert qualified_ins(held)
    note = tell(hub, "adt-a31-identite-douteuse").note
    assert ids(patient(hub), INS) == {} and "INS" in note


# --- A40 -------------------------------------------------------------------------------------------------------------


def test_a_merge_links_both_records_and_everything_follows(hub: Hub) -> None:
    target, source = two(hub)
    key = delivered(hub)
    note = tell(hub, "adt-a40-fusion").note
    survivor, left = read(hub, target), read(hub, source)
    assert left["active"] is False
    assert left["link"] == [{"other": {"reference": target}, "type": "replaced-by"}]
    assert survivor["link"] == [{"other": {"reference": source}, "type": "replaces"}]
    assert ids(survivor)[GIVEN_UP] == "old" and ids(left)[GIVEN_UP] != "old"
    for reference, element in (
        ("Observation/o1", "subject"),
        ("ServiceRequest/fusion", "subject"),
        ("Task/fusion", "for"),
    ):
        assert read(hub, reference)[element]["reference"] == target, reference
    assert read(hub, "Consent/fusion")["patient"]["reference"] == target
    listed = read(hub, f"List/{merge.record_id('fusion', source, target)}")
    moved = {entry["item"]["reference"] for entry in listed["entry"]}
    assert {source, "Observation/o1", "ServiceRequest/fusion", "Task/fusion", "Consent/fusion"} <= moved
    told = found(hub, "Provenance", f"target={target}")
    assert [one["activity"]["coding"][0]["code"] for one in told] == ["fusion"]
    assert "merged into" in note
    with hub.store.read(SYSTEM) as snapshot:
        assert found(hub, "Observation", f"subject={source}") == []
        assert deliveries(hub)[0].id == key and overtaken(snapshot, deliveries(hub)[0]) == ""


def test_what_refers_is_read_page_by_page_and_a_merge_beyond_its_bound_changes_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, source = two(hub)
    many = [read(hub, "Observation/o1") | {"id": f"o{n}"} for n in range(2, 8)]
    put(hub, SYSTEM, *many)
    monkeypatch.setattr(arrivals, "_A_PAGE", 2)
    monkeypatch.setattr(arrivals, "MOST_MOVED", 5)
    told = say(hub, sample("adt-a40-fusion"))
    assert (told.code, told.errors[0].code) == ("AE", "207") and read(hub, source).get("active", True)
    monkeypatch.setattr(arrivals, "MOST_MOVED", 50)
    tell(hub, "adt-a40-fusion")
    assert {read(hub, f"Observation/o{n}")["subject"]["reference"] for n in range(1, 8)} == {target}
    entries = read(hub, f"List/{merge.record_id('fusion', source, target)}")["entry"]
    names = [entry["item"]["reference"] for entry in entries]
    assert names[0] == source and names[1:] == sorted(names[1:]) and len(names) > 10


def test_a_merge_that_would_write_too_many_index_rows_is_refused_with_what_to_do(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, source = two(hub)
    monkeypatch.setattr(changes, "MOST_ROWS", 60)
    told = say(hub, sample("adt-a40-fusion"))
    assert (told.code, told.errors[0].code) == ("AE", "207") and read(hub, source).get("active", True)
    assert "60 searchable values" in told.errors[0].text and "a person must first move" in told.errors[0].text
    put(hub, PARTNER, read(hub, "Observation/o1") | {"subject": {"reference": target}})
    monkeypatch.setattr(changes, "MOST_ROWS", 200_000)
    tell(hub, "adt-a40-fusion")
    assert read(hub, source)["active"] is False


def test_a_list_of_an_earlier_version_in_any_order_still_permits_its_moves(hub: Hub) -> None:
    target, source = two(hub)
    tell(hub, "adt-a40-fusion")
    listed = read(hub, f"List/{merge.record_id('fusion', source, target)}")
    put(hub, SYSTEM, listed | {"entry": [listed["entry"][0], *reversed(listed["entry"][1:])]})
    done = unmerge(hub, ADMIN, target, source)
    assert done.lost == [] and "ServiceRequest/fusion" in done.back


def test_what_has_not_left_for_a_merged_patient_is_held_back(hub: Hub) -> None:
    _, source = two(hub)
    from fhir_server.store.lanes import NewDelivery

    frozen = NewDelivery("l", "mllp://127.0.0.1:9", "hl7", b"x", patient=source)
    key = hub.store.write(SYSTEM, lambda tx: tx.send(frozen))
    tell(hub, "adt-a40-fusion")
    with hub.store.read(SYSTEM) as snapshot:
        delivery = snapshot.delivery(key)
        assert delivery is not None and "merged into" in overtaken(snapshot, delivery)


def test_a_merge_is_undone_and_nothing_is_lost(hub: Hub) -> None:
    target, source = two(hub)
    before = {name: read(hub, name) for name in (source, "Observation/o1", "ServiceRequest/fusion")}
    tell(hub, "adt-a40-fusion")
    done = unmerge(hub, ADMIN, target, source)
    assert {"Observation/o1", "ServiceRequest/fusion", "Task/fusion", "Consent/fusion"} <= set(done.back)
    assert (done.lost, done.followed, done.left) == ([], [], [])
    for name, held in before.items():
        now = read(hub, name)
        assert now == held, name
    assert ids(read(hub, target)) == {SURVIVOR: "usual"} and "link" not in read(hub, target)
    assert read(hub, f"List/{merge.record_id('fusion', source, target)}")["status"] == "retired"
    with pytest.raises(Conflict):
        unmerge(hub, ADMIN, target, source)
    with pytest.raises(NotFound):
        unmerge(hub, ADMIN, target, "Patient/nobody")
    tell(hub, "adt-a40-fusion")
    assert read(hub, source)["active"] is False, "it can be merged again"


def test_what_was_changed_since_the_merge_and_is_gone_is_told(hub: Hub) -> None:
    target, source = two(hub)
    tell(hub, "adt-a40-fusion")
    from hubs import delete

    delete(hub, SYSTEM, "Observation/o1")
    assert unmerge(hub, ADMIN, target, source).lost == ["Observation/o1"]


def merged_further(hub: Hub, survivor: str = "000700") -> str:
    """The survivor of `adt-a40-fusion` is given up for a third record; that one."""
    assert say(hub, person(survivor, "LECOCQ", "Noémie", "19840523")).code == "AA"
    lines = person(survivor, "LECOCQ", "Noémie", "19840523", more=f"MRG|{SURVIVOR}^^^CH-SYLVE&990001234&N^PI")
    told = say(hub, lines.replace(b"ADT^A28^ADT_A05", b"ADT^A40^ADT_A39"))
    assert told.code == "AA", told
    return ref(hub, survivor)


def who_it_is(hub: Hub, reference: str) -> Resource:
    """What a merge changes of a record, and its parting gives back."""
    held = read(hub, reference)
    return {name: held.get(name) for name in ("identifier", "link", "active")}


def test_merges_in_a_row_are_undone_from_the_last_and_leave_each_what_was_its_own(hub: Hub) -> None:
    second, first = two(hub)
    own = "000700"
    assert say(hub, person(own, "LECOCQ", "Noémie", "19840523")).code == "AA"
    whole = {name: read(hub, name) for name in (first, "Observation/o1", "Task/fusion")}
    people_then = {name: who_it_is(hub, name) for name in (first, second, ref(hub, own))}
    tell(hub, "adt-a40-fusion")
    third = merged_further(hub, own)
    assert read(hub, "Observation/o1")["subject"]["reference"] == third
    with pytest.raises(Conflict, match=f"{second} was itself merged into {third} since; undo that merge first"):
        unmerge(hub, ADMIN, second, first)
    assert read(hub, first)["active"] is False and read(hub, "Observation/o1")["subject"]["reference"] == third
    assert unmerge(hub, ADMIN, third, second).lost == []
    assert unmerge(hub, ADMIN, second, first).lost == []
    for name, held in whole.items():
        assert read(hub, name) == held, name
    assert {name: who_it_is(hub, name) for name in people_then} == people_then


def test_what_was_written_since_in_a_request_goes_back_with_it(hub: Hub) -> None:
    """A case is about one person: its report, its messages and its documents are not left to somebody else."""
    target, source = two(hub)
    about = {"code": {"text": "Taille"}, "subject": {"reference": target}}
    mine = {"resourceType": "Observation", "status": "final"} | about
    put(hub, SYSTEM, read(hub, "Organization/sylve") | {"id": "ch-demo"}, mine | {"id": "before"})
    tell(hub, "adt-a40-fusion")
    put(hub, SYSTEM, *(mine | {"id": name} for name in ("of-the-report", "named", "own", "shared")))
    put(hub, SYSTEM, mine | {"id": "elsewhere", "derivedFrom": [{"reference": "Observation/shared"}]})
    request = read(hub, "ServiceRequest/fusion")
    named = [*request.get("supportingInfo", ()), {"reference": "Observation/named"}]
    put(hub, REQUESTER, request | {"status": "active", "supportingInfo": named})
    take(hub, "fusion")
    put(hub, EXPERT, message("question", "fusion"))
    put(hub, REQUESTER, message("answer", "fusion", answers="question"))
    made_of = [{"reference": f"Observation/{name}"} for name in ("of-the-report", "before", "shared")]
    put(hub, EXPERT, opinion(hub, "fusion", result=made_of))
    documents = found(hub, "DocumentReference", "related=DiagnosticReport/fusion")
    since = [f"DocumentReference/{one['id']}" for one in documents]
    since += ["DiagnosticReport/fusion", "Observation/of-the-report"]
    assert len(since) == 3 and {read(hub, name)["subject"]["reference"] for name in since} == {target}
    done = unmerge(hub, ADMIN, target, source)
    assert set(since) <= set(done.followed) and done.lost == []
    expected = ["Observation/before", "Observation/named", "Observation/shared"]
    assert done.left == expected, "the survivor's own, named in the case of another"
    assert {read(hub, name)["subject"]["reference"] for name in since} == {source}
    stay = ("own", "named", "before", "shared", "elsewhere")
    assert {read(hub, f"Observation/{name}")["subject"]["reference"] for name in stay} == {target}
    listed = read(hub, f"List/{merge.record_id('fusion', source, target)}")
    assert listed["status"] == "retired"
    flags = {entry["item"]["reference"]: entry.get("flag", {}).get("text", "") for entry in listed["entry"]}
    assert {flags[name] for name in since} == {"écrit depuis la fusion"}
    with hub.store.read(SYSTEM) as snapshot:
        frozen = [one for one in deliveries(hub) if one.document == "DiagnosticReport/fusion"]
        assert frozen and {one.patient for one in frozen} == {target}
        words = f"ServiceRequest/fusion is about {source} now; these bytes name {target}"
        assert {overtaken(snapshot, one) for one in frozen} == {words}


def test_what_was_written_since_goes_back_although_the_record_of_the_merge_was_changed_after_it(hub: Hub) -> None:
    """The merge was made when it was put on record, not when its List was last changed; made again, it is made then."""
    target, source = two(hub)

    def observed(key: str) -> str:
        about = {"code": {"text": "Taille"}, "basedOn": [{"reference": "ServiceRequest/fusion"}]}
        made = {"resourceType": "Observation", "id": key, "status": "final", "subject": {"reference": target}} | about
        put(hub, SYSTEM, made)
        return f"Observation/{key}"

    tell(hub, "adt-a40-fusion")
    since = observed("since")
    key = merge.record_id("fusion", source, target)
    for note in ("vérifié", "vérifié deux fois"):
        put(hub, SYSTEM, read(hub, f"List/{key}") | {"note": [{"text": note}]})
    done = unmerge(hub, ADMIN, target, source)
    assert (done.followed, done.left) == ([since], [])
    assert read(hub, since)["subject"] == {"reference": source}
    tell(hub, "adt-a40-fusion")
    later = observed("later")
    again = unmerge(hub, ADMIN, target, source)
    assert since in again.back and again.followed == [later]


def test_the_same_merge_again_changes_no_record_and_another_one_is_refused(hub: Hub) -> None:
    target, source = two(hub)
    tell(hub, "adt-a40-fusion")
    version = stored(hub, source)
    assert "before" in tell(hub, "adt-a40-fusion").note
    assert stored(hub, source) == version
    say(hub, person("000700", "AUTRE", "Jean", "19600101"))
    pid = "000417^^^CH-SYLVE&990001234&N^PI~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    other = (pid, "000700^^^CH-SYLVE&990001234&N^PI")
    told = say(
        hub,
        sample(
            "adt-a40-fusion",
            other,
            ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "AUTRE^Jean^Jean"),
            ("19840523|F", "19600101|M"),
        ),
    )
    assert (told.code, told.errors[0].code) == ("AE", "205")
    assert target in told.errors[0].text


def test_a_late_message_under_the_old_number_goes_to_the_survivor(hub: Hub) -> None:
    target, _ = two(hub)
    tell(hub, "adt-a40-fusion")
    name = read(hub, target)["name"]
    ins = "~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    note = tell(hub, "adt-a04-consultation", ("000417^", "000399^"), (ins, "")).note
    assert "given up" in note
    assert read(hub, target)["name"] == name and read(hub, target)["active"] is True
    assert {stay["subject"]["reference"] for stay in found(hub, "Encounter")} == {target}


def test_the_images_of_a_merged_patient_are_those_of_the_survivor(hub: Hub) -> None:
    target, source = two(hub)
    with hub.store.read(SYSTEM) as snapshot:
        assert merge.given_up_for(view_of(snapshot), (IPP, GIVEN_UP)) == frozenset()
    tell(hub, "adt-a40-fusion")
    with hub.store.read(SYSTEM) as snapshot:
        assert merge.given_up_for(view_of(snapshot), (IPP, GIVEN_UP)) == {target}
        assert merge.given_up_for(view_of(snapshot), (IPP, SURVIVOR)) == frozenset(), "it is in force"
    unmerge(hub, ADMIN, target, source)
    with hub.store.read(SYSTEM) as snapshot:
        assert merge.given_up_for(view_of(snapshot), (IPP, GIVEN_UP)) == frozenset()


def test_a_merge_of_nobody_known_is_noted_and_the_number_found_later(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    note = tell(hub, "adt-a40-fusion").note
    assert "nobody known had 000399" in note
    assert ids(patient(hub)) == {SURVIVOR: "usual", GIVEN_UP: "old"}


def test_the_ins_of_the_record_given_up_may_be_that_of_the_survivor(hub: Hub) -> None:
    ins = "~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    tell(hub, "adt-a28-creation-provisoire", ("000417^", "000399^"), ("|PROV|", "|VALI|"))
    tell(hub, "adt-a28-creation-provisoire", (ins, ""))
    assert tell(hub, "adt-a40-fusion").note
    survivor = patient(hub)
    assert ids(survivor, INS) == {"284056912345640": "official"} and survivor["active"]
    assert read(hub, ref(hub, GIVEN_UP))["active"] is False


def test_two_merges_in_one_message_are_both_done(hub: Hub) -> None:
    two(hub)
    say(hub, person("000500"))
    say(hub, person("000501"))
    tell(hub, "adt-a40-deux-fusions")
    assert [patient(hub, ipp).get("active") for ipp in (SURVIVOR, GIVEN_UP, "000500", "000501")] == [
        True,
        False,
        True,
        False,
    ]


def test_a_merge_into_a_doubtful_identity_is_refused(hub: Hub) -> None:
    two(hub)
    told = say(
        hub,
        sample(
            "adt-a40-fusion",
            ("LECOCQ-MARAIS^Noémie^Noémie Anne Hélène", "AUTRE^Jean^Jean"),
            ("19840523|F", "19600101|M"),
        ),
    )
    assert (told.code, told.errors[0].location) == ("AE", "PID^1^3")
    assert all(one.get("active", True) for one in found(hub, "Patient"))


@pytest.mark.parametrize("prior", ["000417^^^CH-SYLVE&990001234&N^PI", "000399^^^INCONNU^PI"])
def test_a_merge_with_itself_or_with_an_undeclared_number_is_refused(hub: Hub, prior: str) -> None:
    two(hub)
    told = say(hub, sample("adt-a40-fusion", ("000399^^^CH-SYLVE&990001234&N^PI", prior)))
    assert (told.code, told.errors[0].location) == ("AE", "MRG^1^1")
    assert ids(patient(hub)) == {SURVIVOR: "usual"}


def test_nobody_but_a_merge_on_record_moves_a_request_to_another_patient(hub: Hub) -> None:
    target, source = two(hub)
    moved = merge.swapped(read(hub, "ServiceRequest/fusion"), source, target)
    for caller in (SYSTEM, PARTNER, ADMIN):
        with pytest.raises(RuleBroken):
            put(hub, caller, moved)
    tell(hub, "adt-a40-fusion")
    with pytest.raises(RuleBroken):
        put(hub, PARTNER, merge.swapped(read(hub, "ServiceRequest/fusion"), target, source))


def test_the_same_merge_sent_twice_at_once_is_done_once(hub: Hub) -> None:
    target, source = two(hub)
    answers = results(at_once(*[lambda: say(hub, sample("adt-a40-fusion"))] * 3))
    assert {answer.code for answer in answers} == {"AA"}
    assert len(found(hub, "Provenance", f"target={target}")) == 1
    assert read(hub, source)["active"] is False


# --- A47 -------------------------------------------------------------------------------------------------------------


def test_a_change_of_the_local_number_keeps_the_old_one_as_old(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    who = patient(hub)["id"]
    ins = "284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS"
    tell(hub, "adt-a47-changement-ins", ("000417^", "000888^"), (ins, "000417^^^CH-SYLVE&990001234&N^PI"))
    held = patient(hub, "000888")
    assert held["id"] == who and ids(held) == {"000888": "usual", "000417": "old"}


def test_a_change_of_the_ins_replaces_it(hub: Hub) -> None:
    old = "284056912345543"
    tell(hub, "adt-a28-creation-provisoire", ("284056912345640", old), ("|PROV|", "|VALI|"))
    assert ids(patient(hub), INS) == {old: "official"}
    tell(hub, "adt-a47-changement-ins")
    assert ids(patient(hub), INS) == {"284056912345640": "official"}


def test_an_ins_is_removed_and_the_identity_lowered(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    value = "284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
    mrg = ("284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS", "MRGINS")
    raw = sample("adt-a47-changement-ins", mrg, (value, value.replace("284056912345640", '""')), ("|VALI|", "|PROV|"))
    assert say(hub, raw.replace(b"MRGINS", value.encode())).code == "AA"
    assert ids(patient(hub), INS) == {}


def test_a_change_for_nobody_known_or_into_somebody_else_is_refused(hub: Hub) -> None:
    told = say(hub, sample("adt-a47-changement-ins"))
    assert (told.code, told.errors[0].code, told.application_code) == ("AE", "204", "902")
    tell(hub, "adt-a01-admission")
    say(hub, person(GIVEN_UP))
    ins = "284056912345543^^^ASIP-SANTE-INS-NIA&1.2.250.1.213.1.4.10&ISO^INS"
    told = say(hub, sample("adt-a47-changement-ins", (ins, f"{GIVEN_UP}^^^CH-SYLVE&990001234&N^PI")))
    assert (told.code, told.errors[0].code) == ("AE", "205")


# --- A44 -------------------------------------------------------------------------------------------------------------


def test_a_stay_of_the_wrong_patient_goes_to_the_right_one_with_what_hangs_on_it(hub: Hub) -> None:
    tell(hub, "adt-a28-creation-provisoire")
    wrong = (("000417^", "000399^"), ("~284056912345640^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS", ""))
    tell(hub, "adt-a01-admission", *wrong, ("V2026-0417", "V2026-0099"), ("26000123", "26000099"))
    stay = stays(hub, GIVEN_UP)[0]
    source, target = ref(hub, GIVEN_UP), ref(hub, SURVIVOR)
    seen = {"resourceType": "Observation", "id": "o2", "status": "final", "code": {"text": "TA"}}
    put(hub, SYSTEM, seen | {"subject": {"reference": source}, "encounter": {"reference": f"Encounter/{stay['id']}"}})
    assert "1 stays" in tell(hub, "adt-a44-dossier-deplace").note
    assert [one["id"] for one in stays(hub)] == [stay["id"]]
    assert "26000123" in {one["value"] for one in stays(hub)[0]["identifier"]}, "the account number of PID"
    assert read(hub, "Observation/o2")["subject"]["reference"] == target
    assert read(hub, source).get("active", True), "the patient stays"
    assert found(hub, "List", f"subject={target}")


def test_a_stay_nobody_knows_cannot_be_moved(hub: Hub) -> None:
    tell(hub, "adt-a01-admission")
    told = say(hub, sample("adt-a44-dossier-deplace"))
    assert (told.code, told.errors[0].code, told.errors[0].location) == ("AE", "204", "MRG^1^1")
    say(hub, person(GIVEN_UP))
    told = say(hub, sample("adt-a44-dossier-deplace"))
    assert (told.code, told.errors[0].location) == ("AE", "MRG^1^3")
