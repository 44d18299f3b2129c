"""A question of the expert as a mail to a requester who asked by HL7 v2 and whose software has no way to show it.

Hides what the requester is told: who asks, about which order of theirs and which patient, the words of the question,
and how to answer. Values for `envelope.notice`; text alone, since there is nothing to file, and no link: there is no
page that a reader of mail could open.

Sources: CI-SIS téléradiologie 1.0 (ballot) has no flow for a question; référentiel socle MSSanté #2, ECO.2.1.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from mappers.fhir_to_identity import PatientIdentity, Professional
from mappers.identity import Site
from mappers.order_number import OrderNumber
from mssante.letter import Letter, plain

LABEL: Final = "Question de téléexpertise"
PREFIX: Final = "[Question] "
_LONGEST: Final = 20_000  # characters of the question
_CUT: Final = "[…]"


def question(
    message: Mapping[str, Any],
    order: OrderNumber,
    patient: PatientIdentity,
    expert: Professional,
    *,
    site: Site,
    asked_at: datetime,
    answer_to: str,
    phone: str = "",
) -> Letter:
    """The letter. `message` is the Communication; `answer_to` the mailbox its reader answers to; `phone` the expert's,
    '' when unknown. Raises ValueError for a question that says nothing."""
    texts = [str(part["contentString"]).strip() for part in message.get("payload", ()) if part.get("contentString")]
    files = sum("contentString" not in part for part in message.get("payload", ()))
    if not any(texts) and not files:
        raise ValueError("the question says nothing")
    who = " ".join(filter(None, (expert.suffix, expert.given, expert.family)))
    test = "Message de test : patient fictif.\n\n" if site.mode == "test" else ""
    said = "\n\n".join(filter(None, texts))
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]} {_CUT}"
    more = f"\n\nPièces jointes, qui ne sont pas dans ce courriel : {files}." if files else ""
    call = f", ou appelez le {plain(phone)}" if phone else ""
    text = (
        f"Bonjour,\n\n{test}{plain(who)} ({plain(expert.org.name)}) vous pose une question au sujet de votre demande "
        f"n° {plain(order.number)} :\n\n{said}{more}\n\nL'avis est en attente de votre réponse. Répondez par "
        f"messagerie sécurisée à {plain(answer_to)}{call}. Si votre logiciel accède à la demande par FHIR, vous pouvez "
        "aussi y répondre.\n"
    )
    return Letter(
        label=LABEL, family=patient.birth_family, given=patient.birth_given, birth_date=patient.birth_date,
        performed=asked_at.astimezone(ZoneInfo(site.time_zone)).date(), codes=(), qualified=patient.ins is not None,
        text=text,
    )  # fmt: skip
