"""What this server notes on the Task of a case, in French for who reads it: what happened to its report, who it did not
reach and why, and the coded word by which such cases are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fhir_server.context import instant
from fhir_server.teleexpertise.case import SERVER, STEP_SYSTEM, Context
from fhir_server.teleexpertise.distribution import Plan
from fhir_server.teleexpertise.states import FRENCH

Resource = dict[str, Any]
HANDED_OVER = "urn:passerelle:remise"
"""Task.businessStatus.coding: `partielle` when somebody does not get the report, `aucune` when nobody does."""
NOT_HANDED_OVER = " non remis"
"""In every sentence this server notes about somebody who does not get something."""
NOBODY = "Le compte rendu n'a de chemin vers personne ; voir les notes."
NOBODY_TOLD = "Le retrait n'a pu être annoncé à personne ; voir les notes."


def told(
    request: Resource, plan: Plan, ctx: Context, *, report: bool = True, also: Sequence[str] = (), nobody: str = NOBODY
) -> tuple[Resource, ...]:
    """The case's Task with what happened to its report (`also`) and what did not reach somebody: a note each, and for
    a report a coded word that finds such cases, gone when everybody is reached; `nobody` is said when nobody is."""
    task = ctx.view.get(f"Task/{request['id']}")
    if task is None or not (plan.shut or also):
        return ()
    texts = [*also, *(shut.text for shut in plan.shut)]
    notes = [{"authorString": SERVER, "time": instant(ctx.now), "text": text} for text in texts]
    out = task | {"note": [*task.get("note", ()), *notes]}
    if not report:
        return (out,)
    status = {name: value for name, value in task.get("businessStatus", {}).items() if name != "coding"}
    out.pop("statusReason", None)
    if plan.shut:
        code = "partielle" if plan.destinations else "aucune"
        status["coding"] = [{"system": HANDED_OVER, "code": code}]
    if plan.shut and not plan.destinations:
        out["statusReason"] = {"text": nobody}
    out["businessStatus"] = status
    return (out,)


def noted(task: Resource) -> list[str]:
    """What this server noted on a Task; nothing for any other resource."""
    notes = task.get("note", ()) if task.get("resourceType") == "Task" else ()
    return [str(note.get("text", "")) for note in notes if note.get("authorString") == SERVER]


def not_reached(task: Resource) -> list[str]:
    """What this server noted on a Task: who did not get the report and why; nothing for any other resource."""
    return [text for text in noted(task) if NOT_HANDED_OVER in text]


def step_of(resource: Resource) -> str:
    """The step of a case that a Provenance of this server tells of, in French; '' for anything else."""
    codings = resource.get("activity", {}).get("coding", ()) if resource.get("resourceType") == "Provenance" else ()
    return next((FRENCH.get(one.get("code", ""), "") for one in codings if one.get("system") == STEP_SYSTEM), "")
