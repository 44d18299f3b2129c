"""The story of one opinion, told by its partners over the real wires: HL7 v2, FHIR, DICOM, mail.

Used by `demo --play` and by the end-to-end tests. Every step may be repeated: a step that was done before a crash
finds its own traces and goes on. A step that does not hold raises Broken with what was expected and what came.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from dicom_node import archive, sample, scu
from dicom_node.header import Identifier
from fhir_server.config import ConfigError
from fhir_server.demo import people
from fhir_server.demo.peers import received
from hl7v2 import ack, mllp
from hl7v2.message import parse
from mssante import envelope
from mssante.imap import ImapFault, Mailbox

Resource = dict[str, Any]
REQUESTER, EXPERT, GROUP = "moreau", "garnier", "avis-echo"
FAMILY, GIVEN, BIRTH, BASE, IPP, VISIT = "SIMON-TEST", "ALICE", "19920314", "2920399123013", "DEMO0013", "V0013"
INS = people.ins(BASE)
REQUEST = "histoire-01"
ACTIVE = "http://example.org/fhir/fish/StructureDefinition/fr-coreServiceRequest-SplitActiveStatus"
ACTIVE_SYSTEM = "https://interop.esante.gouv.fr/ig/fhir/teleexpertise-confluence/CodeSystem/active-status-cs"


class Broken(Exception):
    """A step of the story does not hold."""


@dataclass(slots=True)
class World:
    """Where the partners find Passerelle, and where they keep what they got.

    `send_clip` sends one DICOM file to the node and returns when it was answered with success; `mailbox` reads the
    requester's mails; `frames` gives the HL7 messages a hospital peer received.
    """

    web: str
    mllp: tuple[str, int]
    dicom: tuple[str, int]
    ae_title: str
    folder: Path
    dpi: str
    pfi: str
    imap: tuple[str, int]
    patience: float = 20.0
    say: Callable[[str], None] = print
    send_clip: Callable[[World, Path], None] | None = None
    frames: Callable[[str], list[bytes]] | None = None
    adt: bytes = b""
    domain: str = "ch-demo.mssante.fr"
    secret: str = "demo"
    patient_query: str = field(default=f"identifier={people.INS_SYSTEM}|{INS}")


def tell(world: World) -> None:
    """The whole story in order."""
    for number, (title, step) in enumerate(STEPS, 1):
        began = time.monotonic()
        try:
            said = step(world)
        except Exception as error:
            raise Broken(f"step {number}. {title}: {told_of(error)}") from error
        world.say(f"{number}. {title}: {said} ({time.monotonic() - began:.1f} s)")


def told_of(error: Exception) -> str:
    """A fault in one line; of a defect also its kind, since its text alone says little."""
    words = " ".join(str(error).split())
    return words if isinstance(error, Broken | OSError | ConfigError) else f"{type(error).__name__}: {words}"


def people_arrive(world: World) -> str:
    """The directory: structures, professionals, the expert groups, the hospital's endpoints."""
    for resource in [*people.structures(world.dpi, world.pfi), *people.professionals(world.domain)]:
        if call(world, "GET", f"{resource['resourceType']}/{resource['id']}")[0] != 200:
            call(world, "PUT", f"{resource['resourceType']}/{resource['id']}", resource, expect=(200, 201))
    site = call(world, "GET", "Organization/ch-demo", expect=(200,))[1]
    endpoints = [{"reference": "Endpoint/dpi"}, {"reference": "Endpoint/pfi"}]
    if site.get("endpoint") != endpoints:
        call(world, "PUT", "Organization/ch-demo", {**site, "endpoint": endpoints}, expect=(200,))
    return "two structures, four professionals, two expert groups, two endpoints of the hospital"


def admission(control_id: str = "HISTOIRE0001", ipp: str = IPP) -> bytes:
    """ADT^A01 of IHE PAM France with a qualified test INS, an IPP, a stay and an open DMP."""
    lines = (
        f"MSH|^~\\&|GAM|CH-DEMO|PASSERELLE|CH-DEMO|20261121090000||ADT^A01^ADT_A01|{control_id}|D|2.5^FRA^2.11"
        "|||||FRA|UNICODE UTF-8|FR||2.11^IHE_FRANCE-2.11-PAM",
        "EVN||20261121090000||||20261121090000",
        f"PID|1||{ipp}^^^CH-DEMO&990000018&N^PI~{INS}^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS||"
        f"{FAMILY}^{GIVEN}^{GIVEN} MARIE^^^^L||{BIRTH}|F|||5 rue du Test^^EXEMPLEVILLE^^75000^FRA^H~^^^^^^BDL^^99123"
        "|||||||V0013^^^CH-DEMO&990000018&M^AN||||||||||||||VALI",
        f"PV1|1|O|^^^CH-DEMO&990000018&N||||||||||||||||{VISIT}^^^CH-DEMO&990000018&M^VN",
        "ZBE|M0013^CH-DEMO^990000018|20261121090000||INSERT|N||Gyn^^^^^CH-DEMO&990000018&N^UF^^^1234||HMS",
        "ZFA|ACTIF|20261121090000|||||||INO|20261121090000|IC|20261121090000",
    )
    return ("\r".join(lines) + "\r").encode()


def patient(world: World) -> str:
    """1. The hospital's admission message makes a Patient and a stay, once."""
    raw = world.adt or admission()
    first = _hl7(world, raw, "AA")
    found = _one(world, "Patient", world.patient_query)
    version = found["meta"]["versionId"]
    if _hl7(world, raw, "AA") != first:
        raise Broken("the same message again should get the same acknowledgement, byte for byte")
    if _one(world, "Patient", world.patient_query)["meta"]["versionId"] != version:
        raise Broken("the same message again changed the Patient")
    told = parse(raw)
    other = raw.replace(told.text("PID-5.2").encode(), b"AUTRE", 1)
    _hl7(world, other, "AE")
    broken = b"\r".join(line for line in raw.replace(b"\n", b"\r").split(b"\r") if line[:3] != b"PID")
    broken = broken.replace(told.control_id.encode(), b"HISTOIRE-KO", 1)
    answer = ack.read(_hl7(world, broken, "AE"))
    if not any(error.location for error in answer.errors):
        raise Broken("an AE should say where (ERR-2)")
    listed = operation(world, "inbox-list", {"state": "error"})
    if not any(row["control_id"] == "HISTOIRE-KO" for row in listed):
        raise Broken("the broken message should show in the inbox")
    return f"AA, Patient/{found['id']} with INS and IPP; repeated, altered and broken messages answered AA, AE, AE"


def request(world: World) -> str:
    """2. A colleague's request as a transaction; it goes out only with the patient's consent."""
    current = call(world, "GET", f"ServiceRequest/{REQUEST}")[1]
    subject = _one(world, "Patient", world.patient_query)["id"]
    if current.get("resourceType") != "ServiceRequest":
        call(world, "POST", "", _bundle(world), expect=(200,))
        current = call(world, "GET", f"ServiceRequest/{REQUEST}", expect=(200,))[1]
    if current["subject"]["reference"] != f"Patient/{subject}":
        raise Broken(f"the conditional reference should lead to Patient/{subject}, not {current['subject']}")
    _one(world, "Patient", world.patient_query)
    if current["status"] == "draft":
        ready = {**current, "status": "active"}
        ready.pop("supportingInfo", None)
        status, refused = call(world, "PUT", f"ServiceRequest/{REQUEST}", ready, who=REQUESTER)
        if status != 422 or "consent" not in json.dumps(refused).lower():
            raise Broken(f"a request without consent should be 422 naming it, not {status} {refused}")
        agreed = {**people.consent(REQUEST, 0), "patient": {"reference": f"Patient/{subject}"}}
        call(world, "PUT", f"Consent/{REQUEST}", agreed, expect=(200, 201))
        ready["supportingInfo"] = [{"reference": f"Consent/{REQUEST}"}]
        call(world, "PUT", f"ServiceRequest/{REQUEST}", ready, who=REQUESTER, expect=(200,))
    task = call(world, "GET", f"Task/{REQUEST}", expect=(200,))[1]
    for kind, query in (
        ("Provenance", f"target=ServiceRequest/{REQUEST}"),
        ("AuditEvent", f"entity=ServiceRequest/{REQUEST}"),
    ):
        if not search(world, kind, query):
            raise Broken(f"a {kind} should stand beside the request")
    return f"draft without consent refused (422), then published; Task {task['status']}"


def images(world: World) -> str:
    """3. An ultrasound clip with the request's accession number finds its request; its frames are served as sent."""
    current = call(world, "GET", f"ServiceRequest/{REQUEST}", expect=(200,))[1]
    accession = next(i["value"] for i in current["identifier"] if i["system"] == people.ACCESSION_SYSTEM)
    held = _one(world, "Patient", f"_id={current['subject']['reference'].partition('/')[2]}")
    name = held["name"][0]
    path = world.folder / "clip.dcm"
    path.write_bytes(
        sample.clip(
            patient_id=Identifier(next(i["value"] for i in held["identifier"] if "PI" in json.dumps(i["type"]))),
            patient_name=f"{name['family']}^{name['given'][0]}",
            birth_date=held["birthDate"].replace("-", ""),
            sex={"female": "F", "male": "M"}.get(held["gender"], "O"),
            accession_number=accession,
        )
    )
    (world.send_clip or _send_clip)(world, path)
    study = _wait(world, "an ImagingStudy linked to the request", lambda: _linked_study(world))
    series = study["series"][0]
    uid = study["identifier"][0]["value"].removeprefix("urn:oid:")
    address = (
        f"{world.web}/dicomweb/studies/{uid}/series/{series['uid']}/instances/{series['instance'][0]['uid']}/frames/2"
    )
    headers = {"accept": "image/jpeg; transfer-syntax=*"}
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
        frame = answer.read()
    if frame != archive.frame(path, archive.frame_table(path), 2):
        raise Broken("frame 2 over WADO-RS differs from the frame that was sent")
    return f"C-STORE 0x0000, {study['id']} linked, frame 2 served unchanged ({len(frame)} bytes of JPEG)"


def exchange(world: World) -> str:
    """4. The expert takes the request, asks, gets an answer with a photo; a wrong step is refused."""
    state = _state(world)
    if state == "ready":
        task = call(world, "GET", f"Task/{REQUEST}", expect=(200,))[1] | {"status": "in-progress"}
        status, refused = call(world, "PUT", f"Task/{REQUEST}", task, who=REQUESTER)
        if status != 422 or "Legal steps" not in json.dumps(refused):
            raise Broken(f"the requester cannot take its own request: expected 422 with the legal steps, got {status}")
        call(world, "PUT", f"Task/{REQUEST}", task, who=EXPERT, expect=(200,))
    if _state(world) == "in_progress" and call(world, "GET", "Communication/histoire-question")[0] != 200:
        question = _message("histoire-question", "Le diamètre du ventricule est-il mesuré dans l'axe ?")
        call(world, "PUT", "Communication/histoire-question", question, who=EXPERT, expect=(201,))
    if _state(world) == "on-hold":
        answer = _message("histoire-reponse", "Oui, photo de la coupe jointe.")
        answer["inResponseTo"] = [{"reference": "Communication/histoire-question"}]
        photo = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(60) + b"\xff\xd9").decode()
        attachment = {"contentType": "image/jpeg", "data": photo, "title": "coupe-transventriculaire.jpg"}
        answer["payload"].append({"contentAttachment": attachment})
        call(world, "PUT", "Communication/histoire-reponse", answer, who=REQUESTER, expect=(201,))
    if _state(world) not in ("in_progress", "completed"):
        raise Broken(f"after the answer the request should be in_progress, not {_state(world)}")
    return "taken, question (on-hold), answer with a photo (in_progress); a wrong step got 422 with the legal ones"


def report(world: World) -> str:
    """5. The signed report: PDF/A and CDA, readable again by FHIR."""
    current = call(world, "GET", f"ServiceRequest/{REQUEST}", expect=(200,))[1]
    if current["status"] != "completed":
        opinion = {
            "resourceType": "DiagnosticReport",
            "id": REQUEST,
            "basedOn": [{"reference": f"ServiceRequest/{REQUEST}"}],
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "85208-7", "display": "CR de télémédecine"}]},
            "subject": current["subject"],
            "conclusion": "Ventricules à 9,4 mm : limite supérieure. Contrôle à 4 semaines, IRM si au-delà de 10 mm.",
        }
        call(world, "PUT", f"DiagnosticReport/{REQUEST}", opinion, who=EXPERT, expect=(200, 201))
    documents = search(world, "DocumentReference", f"related=DiagnosticReport/{REQUEST}")
    if len(documents) != 1:
        raise Broken(f"one DocumentReference should hold the report, there are {len(documents)}")
    kinds = {}
    for content in documents[0]["content"]:
        attachment = content["attachment"]
        kinds[attachment["contentType"]] = raw(world, attachment["url"], attachment["contentType"])
    if not kinds["application/pdf"].startswith(b"%PDF-1.4") or b"<ClinicalDocument" not in kinds["text/xml"]:
        raise Broken("the report should be readable as PDF and CDA")
    return f"final; PDF/A {len(kinds['application/pdf'])} bytes, CDA {len(kinds['text/xml'])} bytes"


def delivery(world: World) -> str:
    """6. To the hospital's DPI and platform by HL7 v2 and to the requester by mail; both legs settle."""
    try:
        rows = _wait(world, "three deliveries handed over and confirmed", lambda: _delivered(world))
    except Broken as late:
        held = operation(world, "outbox-list", {"key": f"ServiceRequest/{REQUEST}"})
        told = "; ".join(f"{r['lane']} {r['state']} {r['leg_state']} {r['leg_text']} {r['error']}" for r in held)
        raise Broken(f"{late}: {told}") from late
    legs = {row["protocol"] + row["second_leg"]: row["leg_state"] for row in rows}
    if legs.get("hl7zam") != "confirmed" or legs.get("maildsn") != "confirmed":
        raise Broken(f"the platform's business ack and the mail's DSN should confirm the second leg: {legs}")
    for name, profile in (("dpi", "CISIS_CDA_HL7_LPS"), ("pfi", "CISIS_CDA_HL7_V2")):
        _arrived_once(world, name, profile, {row["id"] for row in rows if row["lane"] == f"Endpoint/{name}"})
    mails = _wait(world, "one mail in the requester's mailbox", lambda: _mails(world))
    letters = {mail.message_id: mail for mail in map(envelope.read, mails)}
    if len(letters) != 1:
        raise Broken(f"the requester should get the report once, not {len(letters)} times")
    mail = next(iter(letters.values()))
    if mail.xdm is None or not any(a.type == "application/pdf" for a in mail.attachments):
        raise Broken(f"the mail should carry IHE_XDM.ZIP and the PDF: {mail.kind} {mail.refused}")
    return f"DPI and platform (AA, ZAM), mail with IHE_XDM.ZIP (DSN): {mail.subject}"


def trace(world: World) -> str:
    """7. The story can be read back in order."""
    lines = operation(world, "trace", {"id": REQUEST})
    text = "\n".join(f"{line['kind']} {line['text']}" for line in lines)
    wanted = (
        "ADT^A01",
        f"ServiceRequest/{REQUEST} version 1",
        "study ",
        "Communication/",
        "DiagnosticReport/",
        "delivery ",
        "attempt ",
    )
    missing = [word for word in wanted if word not in text]
    if missing:
        raise Broken(f"the trace should name {', '.join(missing)}:\n{text}")
    return f"{len(lines)} lines in order of time"


STEPS: tuple[tuple[str, Callable[[World], str]], ...] = (
    ("Directory", people_arrive),
    ("Patient", patient),
    ("Request", request),
    ("Images", images),
    ("Exchange", exchange),
    ("Report", report),
    ("Delivery", delivery),
    ("Trace", trace),
)


def call(
    world: World, method: str, path: str, body: Resource | None = None, *, who: str = "", expect: tuple[int, ...] = ()
) -> tuple[int, Resource]:
    """One FHIR request as a person of the demo; raises Broken when the status is not one of `expect`."""
    headers = {"content-type": "application/fhir+json", "accept": "application/fhir+json"}
    if who:
        headers["authorization"] = f"Bearer demo:{who}"
    data = json.dumps(body).encode() if body is not None else None
    message = urllib.request.Request(f"{world.web}/fhir/{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(message, timeout=60) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    found: Resource = json.loads(text) if text else {}
    if expect and status not in expect:
        said = "; ".join(issue.get("diagnostics", "") for issue in found.get("issue", ()))
        raise Broken(f"{method} {path} answered {status}, expected {expect}: {said}")
    return status, found


def search(world: World, kind: str, query: str) -> list[Resource]:
    """The resources of a search's first page."""
    bundle = call(world, "GET", f"{kind}?{query}", expect=(200,))[1]
    return [entry["resource"] for entry in bundle.get("entry", ())]


def raw(world: World, path: str, media_type: str) -> bytes:
    """The bytes of a Binary."""
    message = urllib.request.Request(f"{world.web}/fhir/{path}", headers={"accept": media_type})
    with urllib.request.urlopen(message, timeout=60) as answer:
        found: bytes = answer.read()
    return found


def operation(world: World, name: str, arguments: Mapping[str, str]) -> Any:
    """One operator's operation."""
    message = urllib.request.Request(
        f"{world.web}/admin/{name}", json.dumps(arguments).encode(), {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(message, timeout=60) as answer:
        return json.load(answer)


def _hl7(world: World, message: bytes, code: str) -> bytes:
    answer = mllp.send(world.mllp, message, timeout=30)
    told = ack.read(answer)
    if told.code != code:
        words = "; ".join(f"{error.location} {error.text}" for error in told.errors)
        raise Broken(f"expected {code}, got {told.code} {told.text} {words}")
    return answer


def _bundle(world: World) -> Resource:
    """The request with its people: conditional creates by RPPS, the patient by reference to the INS."""
    entries: list[Resource] = []
    mine = {r["resourceType"]: r for r in people.professionals(world.domain) if r["id"] == REQUESTER}
    addresses = {kind: f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, kind)}" for kind in mine}
    for kind, resource in mine.items():
        content = {key: value for key, value in resource.items() if key != "id"}
        if kind == "PractitionerRole":
            content["practitioner"] = {"reference": addresses["Practitioner"]}
        own = resource["identifier"][0]
        known = urlencode({"identifier": f"{own['system']}|{own['value']}"})
        told = {"method": "POST", "url": kind, "ifNoneExist": known}
        entries.append({"fullUrl": addresses[kind], "resource": content, "request": told})
    asked = people.request(
        REQUEST, 0, REQUESTER, GROUP, "Échographie T2 : ventricules latéraux à la limite haute", "draft"
    )
    asked.pop("supportingInfo")
    asked["subject"] = {"reference": f"Patient?{world.patient_query}"}
    asked["requester"] = {"reference": addresses["PractitionerRole"]}
    put = {"method": "PUT", "url": f"ServiceRequest/{REQUEST}"}
    entries.append({"fullUrl": f"{world.web}/fhir/ServiceRequest/{REQUEST}", "resource": asked, "request": put})
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def _message(key: str, text: str) -> Resource:
    return {
        "resourceType": "Communication",
        "id": key,
        "status": "completed",
        "basedOn": [{"reference": f"ServiceRequest/{REQUEST}"}],
        "payload": [{"contentString": text}],
    }


def _state(world: World) -> str:
    current = call(world, "GET", f"ServiceRequest/{REQUEST}", expect=(200,))[1]
    split = [e["valueCoding"]["code"] for e in current.get("extension", ()) if e["url"] == ACTIVE]
    return split[0] if split and current["status"] == "active" else str(current["status"])


def _send_clip(world: World, path: Path) -> None:
    for uid, status in scu.store(world.dicom, [path], called=world.ae_title, calling="ECHO1"):
        if status != 0:
            raise Broken(f"C-STORE of {uid} answered 0x{status:04X}")


def _linked_study(world: World) -> Resource | None:
    found = search(world, "ImagingStudy", f"basedon=ServiceRequest/{REQUEST}")
    return found[0] if found else None


def _delivered(world: World) -> list[dict[str, Any]] | None:
    rows: list[dict[str, Any]] = operation(world, "outbox-list", {"key": f"ServiceRequest/{REQUEST}"})
    settled = [
        row
        for row in rows
        if row["state"] == "sent" and (row["second_leg"] == "none" or row["leg_state"] == "confirmed")
    ]
    stuck = [row for row in rows if row["state"] in ("error", "held")]
    if stuck:
        raise Broken(f"delivery {stuck[0]['id']} is {stuck[0]['state']}: {stuck[0]['error']}")
    return settled if len(settled) == len(rows) == 3 else None


def _arrived_once(world: World, name: str, profile: str, ids: set[str]) -> None:
    """One message of that profile under our control id; a resend after a crash carries the same bytes."""
    messages = (world.frames or (lambda peer: received(world.folder, peer)))(name)
    mine = {raw for raw in messages if parse(raw).control_id in ids}
    if len(mine) != 1 or len(ids) != 1:
        raise Broken(f"{name} should have got one message {ids}, it has {len(mine)} different ones")
    if profile not in parse(next(iter(mine))).text("MSH-21.2"):
        raise Broken(f"{name} should have got a message of profile {profile}")


def _mails(world: World) -> list[bytes] | None:
    address = next(p[10] for p in people.PROFESSIONALS if p[0] == REQUESTER) + "@" + world.domain
    try:
        with Mailbox(world.imap, address, world.secret, security="none") as mailbox:
            found = [mail.raw for uid in mailbox.uids() if (mail := mailbox.fetch(uid)) and mail.raw]
    except ImapFault:
        return None
    return found or None


def _one(world: World, kind: str, query: str) -> Resource:
    found = search(world, kind, quote(query, safe="=&|:/._-"))
    if len(found) != 1:
        raise Broken(f"{kind}?{query} should find one, it finds {len(found)}")
    return found[0]


def _wait(world: World, what: str, look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + world.patience
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Broken(f"{what}: still not there after {world.patience:.0f} s")
        time.sleep(0.1)
