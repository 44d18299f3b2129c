"""One road of a report becomes frozen bytes: an HL7 message in the flavour its Endpoint asks for, or a mail.

The action is told the same way on every road: a first version (T02), one that takes the place of what the addressee
holds (T10), or its taking back (T04; by mail a letter without documents, since no standard says it to a software).
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from fhir_server.config import version
from fhir_server.errors import Invalid
from fhir_server.store.lanes import NewDelivery
from fhir_server.teleexpertise import distribution
from fhir_server.teleexpertise.case import Context
from fhir_server.teleexpertise.distribution import Destination
from fhir_server.teleexpertise.readiness import practising
from mappers import fhir_to_hl7v2, fhir_to_xdm
from mappers.cda_to_report import confidentiality_sent
from mappers.fhir_to_hl7v2_plain import plain
from mappers.fhir_to_hl7v2_segments import Visit
from mappers.fhir_to_hl7v2_visit import visit_of
from mappers.fhir_to_identity import Professional
from mappers.fhir_to_report import NORMAL, Report
from mappers.french import VISIBILITY_OID
from mappers.identity import Mailbox, Site
from mappers.mapped import Loss, Mapped
from mssante import envelope
from mssante.letter import Address

Resource = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Content:
    """What every road of one version carries: the value, its PDF and its CDA, why it differs from what was sent before
    (`reason`, '' when it does not), what the deliveries are found by, and what the value and its PDF leave out. Of a
    version that was sent before: the INS that stands in it with its OID (`sent_ins`), and whether the value has other
    identifiers by now (`renumbered`)."""

    value: Report
    pdf: bytes
    cda: bytes
    site: Site
    opinion: Resource
    keys: tuple[tuple[str, str], ...]
    reason: str = ""
    losses: tuple[Loss, ...] = ()
    sent_ins: tuple[str, str] | None = None
    renumbered: bool = False

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the value and its PDF leave out, in words."""
        return tuple(f"{loss.source}: {loss.reason}" for loss in self.losses)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The delivery of one road, which tells all that its bytes leave out. `unheard`: who may not see the report, which
    this road cannot say, in French for the case; `left_out`: what else its message leaves out, for who wrote the
    report."""

    delivery: NewDelivery
    unheard: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def freeze(road: Destination, key: str, content: Content, ctx: Context) -> Frozen:
    """The delivery `key` for one road. Raises ValueError when its message cannot be written."""
    value = _withdrawn(road, content) if road.trigger == "T04" else replace(content.value, replaces=road.replaces)
    content = replace(content, value=value)
    if road.kind == "mail":
        written, media = Mapped(_mail(road, key, content, ctx)), "message/rfc822"
        endpoint = mail_endpoint(road, content.site)
    else:
        written, media, endpoint = _message(road, key, content, ctx), "x-application/hl7-v2+er7", road.endpoint
    delivery = NewDelivery(
        lane=road.lane,
        endpoint=endpoint,
        protocol=road.kind,
        payload=written.value,
        id=key,
        media_type=media,
        title=road.display,
        keys=_keys(road, content),
        patient=value.patient.reference,
        case=f"ServiceRequest/{value.request_id}",
        document=f"DiagnosticReport/{content.opinion['id']}",
        second_leg=road.second_leg,
        on_stuck="skip",
    )
    lost = [loss for loss in written.losses if loss.source not in _BY_NATURE]
    unheard = {loss: said for loss in lost if (said := _unheard(road, loss, value))}
    others = tuple(
        f"{road.flavour}, {road.display}: {loss.source} {loss.reason}" for loss in lost if loss not in unheard
    )
    told = replace(delivery, left_out=(*content.left_out, *unheard.values(), *others))
    return Frozen(told, tuple(unheard.values()), others)


def _withdrawn(road: Destination, content: Content) -> Report:
    """The value that is taken back. The DMP knows its document by the INS in it, whosever that is by now."""
    value = content.value
    if not road.dmp or content.sent_ins is None:
        return value
    return replace(value, patient=replace(value.patient, ins=content.sent_ins))


def _keys(road: Destination, content: Content) -> tuple[tuple[str, str], ...]:
    """What a delivery is found by; before all the INS in the document it encloses, which the patient may have lost."""
    encloses = road.kind == "hl7" or road.trigger != "T04"
    own = (("ins", content.sent_ins[0]),) if encloses and content.sent_ins else ()
    return tuple(dict.fromkeys((*own, *content.keys)))


# What no message of a flavour carries: the plain ones have no CDA, which who chose the Endpoint's profile knows.
_BY_NATURE = frozenset({"OBX-5"})


def _unheard(road: Destination, loss: Loss, value: Report) -> str:
    """In French, when what a message leaves out is who may see the report; else ''."""
    said = {f"Report.visibility {one.code}": one.display for one in value.visibility}
    said["Report.confidentiality"] = value.confidentiality.display
    if loss.source not in said:
        return ""
    why = f"son profil {road.flavour} n'a pas de place pour « {said[loss.source]} »"
    return f"Confidentialité non transmise à {road.display} : {why}."


def _message(road: Destination, key: str, content: Content, ctx: Context) -> Mapped[bytes]:
    """The HL7 message in the flavour the Endpoint asks for."""
    flavour = distribution.FLAVOURS[road.flavour]
    value, to = content.value, {
        "site": content.site,
        "control_id": key,
        "now": ctx.now,
        "receiving_application": road.application,
        "receiving_facility": road.facility,
        "trigger": road.trigger,
    }  # fmt: skip
    sent: Mapping[str, Any] = to
    visit = stay_for(road, ctx.view.get(f"ServiceRequest/{value.request_id}") or {}, ctx)
    options = fhir_to_hl7v2.Options(
        visit=visit,
        confidentiality_changed=_seen_by_others(road, value, ctx),
        recipient=_whose(road, content.site, ctx),
    )
    match flavour.message:
        case "mdm":
            profile = flavour.profile or "lps-1.1"
            return fhir_to_hl7v2.mdm(value, content.cda, profile=profile, dmp=road.dmp, options=options, **sent)
        case "oru":
            return fhir_to_hl7v2.oru(value, content.cda, dmp=road.dmp, options=options, **sent)
        case "plain-mdm":
            return plain(value, content.pdf, kind="MDM", visit=visit, **sent)
    return plain(value, content.pdf, kind="ORU", visit=visit, **sent)


def _whose(road: Destination, site: Site, ctx: Context) -> Professional | None:
    """The person whose own software is at the end of a road, in the role that has it there: who holds a version is
    recorded as a person."""
    named = [road.person] if road.person else []
    if road.person.startswith("Practitioner/"):
        roles = ctx.view.find("PractitionerRole", f"practitioner={road.person}")
        here = [role for role in roles if road.lane in (one.get("reference") for one in role.get("endpoint", ()))]
        named = [f"PractitionerRole/{role['id']}" for role in here] + named
    return next(filter(None, (practising(one, site, ctx) for one in named)), None)


CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
VISIBILITY = f"urn:oid:{VISIBILITY_OID}"


def security_labels(value: Report) -> list[Resource]:
    """DocumentReference.securityLabel of a report: nothing while it is confidential as usual and hidden from nobody."""
    if value.confidentiality.code == NORMAL.code and not value.visibility:
        return []
    codings = [(CONFIDENTIALITY, value.confidentiality), *((VISIBILITY, one) for one in value.visibility)]
    return [{"coding": [{"system": system, "code": one.code, "display": one.display}]} for system, one in codings]


def _seen_by_others(road: Destination, value: Report, ctx: Context) -> bool:
    """Whether a replacement is to be seen by others than the version its addressee holds (MODIF_CONF_CODE)."""
    if road.trigger != "T10":
        return False
    before = ctx.view.get(f"DocumentReference/{road.replaces}") or {}
    told = {str(one["code"]) for one in labels_of(before)} or {_confidentiality_sent(before, ctx)}
    return told != {value.confidentiality.code, *(one.code for one in value.visibility)}


def _confidentiality_sent(record: Resource, ctx: Context) -> str:
    """N, R or V of a document without labels, which may be older than they are: as its CDA tells it."""
    clinical = enclosed(record, ctx).get("text/xml", b"")
    try:
        return confidentiality_sent(clinical) if clinical else NORMAL.code
    except ValueError:
        return NORMAL.code


def enclosed(record: Resource, ctx: Context) -> Mapping[str, bytes]:
    """The content of a DocumentReference by its media type."""
    found: dict[str, bytes] = {}
    for part in record.get("content", ()):
        attachment = part.get("attachment", {})
        binary = ctx.view.get(str(attachment.get("url", ""))) or {}
        found[str(attachment.get("contentType", ""))] = base64.b64decode(binary.get("data", ""))
    return found


def labels_of(record: Resource) -> list[Resource]:
    """The Codings of DocumentReference.securityLabel."""
    found = (coding for concept in record.get("securityLabel", ()) for coding in concept.get("coding", ()))
    return [coding for coding in found if coding.get("code")]


def stay_for(road: Destination, request: Resource, ctx: Context) -> Visit | None:
    """The stay of a request, for the establishment that counts it; None for everybody else."""
    stay = ctx.view.get(request.get("encounter", {}).get("reference", "")) or {}
    if not road.site or stay.get("subject", {}).get("reference") != request.get("subject", {}).get("reference"):
        return None
    return visit_of(stay, ctx.sites.by_key(road.site))


def _sender(site: Site) -> Mailbox:
    box = next((box for box in site.mailboxes if box.kind == "APP"), None) or next(iter(site.mailboxes), None)
    if box is None:
        raise Invalid(
            f"{site.name} has no MSSanté mailbox to send from; add [[sites.mailboxes]] to the settings",
            expression="Organization.telecom",
        )
    return box


def mail_endpoint(road: Destination, site: Site) -> str:
    """Where a mail goes, and which of the site's mailboxes sends it. Raises Invalid when it has none."""
    return f"mssante:{road.mailbox}?from={_sender(site).address}"


def letterhead(mailbox: str, key: str, site: Site, ctx: Context) -> dict[str, Any]:
    """What every mail of a site to a mailbox begins with, as `envelope` takes it. Raises Invalid as above."""
    box = _sender(site)
    us = Address(box.address, box.display)
    return {
        "delivery_id": key,
        "date": ctx.now.astimezone(ZoneInfo(site.time_zone)),
        "sender": us,
        "recipients": (Address(mailbox),),
        "product": ctx.settings.mail_product,
        "reply_to": us,
        "notify_to": us,
    }


def _mail(road: Destination, key: str, content: Content, ctx: Context) -> bytes:
    site, value = content.site, content.value
    to = letterhead(road.mailbox, key, site, ctx)
    to["about"] = envelope.message_id_of(road.after, to["sender"].address) if road.after else ""
    if road.trigger == "T04":
        return envelope.notice(fhir_to_xdm.withdrawal(value, site, content.reason), **to)
    files = fhir_to_xdm.files(
        value,
        site,
        cda=content.cda,
        submission_id=_submission(key),
        submitted_at=ctx.now,
        application=fhir_to_xdm.Application(version=version(), vendor=ctx.settings.product_vendor),
        replaced_submission=_submission(road.after) if road.after else "",
    )
    letter = fhir_to_xdm.letter(value, site, content.reason)
    return envelope.mail(letter, xdm=envelope.xdm_zip(files, at=ctx.now), pdf=content.pdf, **to)


def _submission(delivery: str) -> str:
    """The UUID of the submission that a mail carries: a later one can name what was in it."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:passerelle:submission:{delivery}"))
