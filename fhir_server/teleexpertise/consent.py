"""The patient's consent to a téléexpertise: which record covers a request, at which moment.

CSP R.6316-1 to -4; https://hl7.org/fhir/R4/consent.html (provision.type, provision.period, status).
A consent is searched for while the request goes out; a report that answers later stands on the one it went out with.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fhir_server.context import micros
from fhir_server.errors import RuleBroken
from fhir_server.search.values import date_range
from fhir_server.teleexpertise.case import STEP_SYSTEM, Context, Resource

SCOPE = "treatment"
"""Consent.scope of what concerns care (consentscope); an opposition to the DMP is of scope patient-privacy."""
SCOPES = "http://terminology.hl7.org/CodeSystem/consentscope"
# To be treated, or to have one's data shared: both agree to an opinion asked of somebody else; research does not.
_SENDING = frozenset({"ask", "publish"})
_COVERING = frozenset({SCOPE, "patient-privacy"})


def consent_of(request: Resource, ctx: Context, *, at: datetime | None = None) -> Resource | None:
    """The Consent that covers the request; a bare one stands for the draft guide's boolean; None without any.

    `at` is the moment it must be in force; without it the period does not count (a request that is out). A refusal on
    record beats a consent given before it, and the boolean always.
    """
    named = [found for key in _named(request) if (found := ctx.view.get(key)) and _of_patient(found, request)]
    refusals = [found for found in [*named, *_recorded(request, ctx)] if _refuses(found) and _in_force(found, at, ctx)]
    for consent in named:
        if (
            not _refuses(consent)
            and not _uncovering(consent)
            and _in_force(consent, at, ctx)
            and _given(consent, request, ctx)
        ):
            later = [refusal for refusal in refusals if _start(refusal, ctx) >= _start(consent, ctx)]
            if not later:
                return consent
    if _declared(request, ctx) and not refusals:
        return {"resourceType": "Consent", "status": "active", "dateTime": request["authoredOn"]}
    return None


def need_consent(request: Resource, ctx: Context) -> tuple[Resource, tuple[tuple[str, str], ...]]:
    """The consent a request goes out with, and the claim that no refusal stands beside it. Raises RuleBroken."""
    consent = consent_of(request, ctx, at=ctx.now)
    if consent is None:
        why = "".join(f"{word}; " for key in _named(request) if (word := _uncovering(ctx.view.get(key) or {})))
        raise RuleBroken(
            f"{why}no consent of the patient is recorded: send an active Consent of this patient that permits, is in "
            "force and that the request names in supportingInfo, or set the draft guide's patientConsent extension to "
            "true (which counts only when no refusal is recorded); until then the request can be kept as draft",
            expression="ServiceRequest.supportingInfo",
        )
    return consent, (("Consent", _query(request)),)


def consent_sent_with(request: Resource, ctx: Context) -> Resource | None:
    """The Consent a request went out with, as it stood then: the Provenance of that step names it. A correction stands
    on it whatever became of it since. None without any, or when the draft guide's boolean stood for it."""
    for told in ctx.view.find("Provenance", f"target=ServiceRequest/{request['id']}"):
        steps = {
            one.get("code") for one in told.get("activity", {}).get("coding", ()) if one.get("system") == STEP_SYSTEM
        }
        for entity in told.get("entity", ()) if steps & _SENDING else ():
            reference = str(entity.get("what", {}).get("reference", ""))
            found = ctx.view.get(reference) if reference.startswith("Consent/") else None
            if found:
                return found | {"status": "active"}
    return None


def _named(request: Resource) -> list[str]:
    references = (item.get("reference", "") for item in request.get("supportingInfo", ()))
    return [reference for reference in references if reference.startswith("Consent/")]


def _query(request: Resource) -> str:
    return f"patient={request['subject']['reference']}&status=active&scope={SCOPE}"


def _recorded(request: Resource, ctx: Context) -> list[Resource]:
    """What is on record of this patient about care, named by the request or not."""
    found = ctx.view.find("Consent", _query(request))
    return [one for one in found if _of_patient(one, request)]


def _of_patient(consent: Resource, request: Resource) -> bool:
    held = consent.get("patient", {}).get("reference")
    return consent.get("status") == "active" and held is not None and held == request["subject"].get("reference")


def _refuses(consent: Mapping[str, Any]) -> bool:
    """A refusal, whole or in part: which part would be a person's to read."""
    root = consent.get("provision", {})
    return bool(root.get("type", "permit") != "permit") or _denies_within(root)


def _denies_within(provision: Mapping[str, Any]) -> bool:
    return any(one.get("type") == "deny" or _denies_within(one) for one in provision.get("provision", ()))


def _uncovering(consent: Resource) -> str:
    """Why an agreement does not cover a téléexpertise whatever its dates, or ''."""
    if not consent:
        return ""
    name = f"Consent/{consent['id']}"
    codings = consent.get("scope", {}).get("coding", ())
    if not any(one.get("system") == SCOPES and one.get("code") in _COVERING for one in codings):
        return f"{name} is not about care: its scope is neither treatment nor patient-privacy ({SCOPES})"
    if consent.get("provision", {}).get("provision"):
        return f"{name} has provisions within its provision, exceptions that are not interpreted here"
    return ""


def _declared(request: Resource, ctx: Context) -> bool:
    wanted = ctx.settings.extension_patient_consent
    return any(e.get("url") == wanted and e.get("valueBoolean") is True for e in request.get("extension", ()))


def _in_force(consent: Resource, at: datetime | None, ctx: Context) -> bool:
    """Whether `at` lies in the period; a date alone lasts to the end of that day in the establishment's zone."""
    if at is None:
        return True
    period = consent.get("provision", {}).get("period", {})
    begins, ends = _range(period.get("start"), ctx), _range(period.get("end"), ctx)
    moment = micros(at)
    return not (begins and moment < begins[0]) and not (ends and moment >= ends[1])


def _given(consent: Resource, request: Resource, ctx: Context) -> bool:
    """A consent dated after the request and after now was not given yet."""
    asked = _range(request.get("authoredOn"), ctx)
    return _start(consent, ctx) <= max(micros(ctx.now), asked[1] if asked else 0)


def _start(consent: Resource, ctx: Context) -> int:
    """When it was recorded; a permission without a date is the oldest, a refusal without one the latest."""
    found = _range(consent.get("dateTime"), ctx)
    if found:
        return found[0]
    return micros(ctx.now) if _refuses(consent) else 0


def _range(text: Any, ctx: Context) -> tuple[int, int] | None:
    """The interval [low, high) of a FHIR date or dateTime in microseconds; None for nothing or what is no date."""
    return date_range(text, ctx.sites.default.time_zone) if isinstance(text, str) else None
