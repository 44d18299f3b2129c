"""What a change of one resource means for its téléexpertise: guards first, then the resources that follow.

Pure: it reads through a `View` and returns resources to write in the same transaction. The same function stands
behind a PUT, a PATCH, an operation, a Bundle entry and an HL7 message. The rules stand in the modules of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fhir_server.patients import merge
from fhir_server.teleexpertise import exchange, opinion, protection, request
from fhir_server.teleexpertise.belonging import stays_in_case
from fhir_server.teleexpertise.case import Consequences as Consequences
from fhir_server.teleexpertise.case import Context as Context
from fhir_server.teleexpertise.case import Resource
from fhir_server.teleexpertise.case import is_case as is_case
from fhir_server.teleexpertise.protection import guard_delete as guard_delete

Rule = Callable[[Resource | None, Resource, Context], Consequences]
_RULES: Mapping[str, Rule] = {
    "ServiceRequest": request.service_request,
    "Task": request.task_rule,
    "Communication": exchange.communication,
    "DiagnosticReport": opinion.diagnostic_report,
    "DocumentReference": protection.document_reference,
    "Binary": protection.binary,
    "Consent": protection.consent,
    "Provenance": protection.provenance,
    **dict.fromkeys(protection.WRITTEN_BY_OTHERS, protection.directory),
}


def consequences(before: Resource | None, after: Resource, ctx: Context) -> Consequences:
    """Guards and consequences of writing `after` over `before`. Raises RuleBroken or Invalid (422), Conflict (409)."""
    rule = _RULES.get(after["resourceType"])
    if merge.allows(before, after, ctx.caller, ctx.view):
        return Consequences(after)
    stays_in_case(before, after, ctx)
    return rule(before, after, ctx) if rule else Consequences(after)
