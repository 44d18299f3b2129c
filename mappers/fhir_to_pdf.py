"""The report as a French A4 document, PDF/A-1b: what a professional reads and the law keeps.

Hidden here: the layout, and how much of a text without measure is printed (a visible notice says where the rest is).
How a page is made is in `mappers.pdfa`. The same Report always gives the same bytes.

Sources: code de la santé publique R.6316-3 and R.6316-4 (authentication of both professionals, identification of the
patient, what the trace holds); référentiel national d'identitovigilance (traits shown beside an INS).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mappers import french
from mappers.fhir_to_report import Exchange, Professional, Report
from mappers.mapped import Loss, Mapped
from mappers.pdfa import (
    INK,
    Colour,
    Sheet,
    blank_sheet,
    box,
    breadth,
    finish,
    line_height,
    missing_text,
    one_line,
    open_sheet,
    put,
    room,
    short_lines,
    text_lines,
)

_MUTED: Colour = (92, 102, 116)
_ACCENT: Colour = (22, 74, 112)
_ALERT: Colour = (170, 28, 32)
_TINT: Colour = (241, 245, 249)
_RULE: Colour = (203, 212, 222)
_WHITE: Colour = (255, 255, 255)
_LEFT, _RIGHT, _TOP, _WIDTH = 18.0, 192.0, 24.0, 174.0

# The most lines a block may take: far above what a person writes, and a bound on pages.
_CONSENT, _REASON, _IMAGES, _EXCHANGE = "Consentement", "Motif de la demande", "Images examinées", "Échanges"
_CONCLUSION = "Conclusion de l’expert"
_LINES = {_CONSENT: 12, _REASON: 260, _IMAGES: 200, _EXCHANGE: 1600, _CONCLUSION: 1500}
_MESSAGE_LINES, _TRACE_LINES, _CORRECTION_LINES, _ATTACHMENTS = 200, 40, 400, 20


def pdf(report: Report) -> bytes:
    """The PDF/A-1b bytes of a report. No text makes it fail: `rendering` tells what could not be printed."""
    return rendering(report).value


def rendering(report: Report) -> Mapped[bytes]:
    """The PDF/A-1b bytes, and as losses the characters and the ends of texts that are not in them.

    Laid out twice: once to learn the number of pages, with a pen that draws nothing, once with it. Takes about 0.1 s,
    at most about 0.6 s, and at most some 80 pages, whatever the texts.
    """
    counted = blank_sheet(lambda page: _running_head(page, report))
    _draw(counted, report)
    sheet = open_sheet(
        lambda page: _running_head(page, report),
        counted.page,
        title=report.title,
        author=_person(report.expert),
        document_id=report.id,
        at=report.signed_at,
    )
    _draw(sheet, report)
    losses = list(sheet.cuts)
    if sheet.missing:
        losses.append(Loss("Report", missing_text(sheet)))
    return Mapped(finish(sheet), tuple(losses))


def _draw(sheet: Sheet, report: Report) -> None:
    _letterhead(sheet, report)
    _patient(sheet, report)
    _professionals(sheet, report)
    _instants(sheet, report)
    _section(sheet, report, _CONSENT, report.consent)
    _section(sheet, report, _REASON, report.reason)
    if report.images:
        _section(sheet, report, _IMAGES, "\n\n".join(report.images))
    if report.exchange:
        _exchange(sheet, report)
    _conclusion(sheet, report)
    _trace(sheet, report)


# --- what every page carries ---------------------------------------------------------------------------------------


def _running_head(sheet: Sheet, report: Report) -> None:
    """Whom it is about, which document, page n of m; the mark of a test document, which is no medical record."""
    who = report.patient
    born = who.birth_date.strftime("%d/%m/%Y")
    name = f"{who.birth_family} {who.birth_given}"
    ins = f" · INS {who.ins[0]}" if who.ins else ""
    box(sheet, _LEFT, 280, _WIDTH, 0.2, _RULE)
    put(sheet, _LEFT, 281.6, f"{one_line(sheet, name, 90)} · {born}{ins}", size=7.5, colour=_MUTED)
    put(sheet, _LEFT, 285.2, f"Document {report.id} · version {report.version}", size=7.5, colour=_MUTED)
    put(sheet, _RIGHT, 281.6, f"Page {sheet.page} / {sheet.total}", size=7.5, colour=_MUTED, right=True)
    put(sheet, _RIGHT, 285.2, "Compte rendu de téléexpertise", size=7.5, colour=_MUTED, right=True)
    if sheet.page > 1:
        put(sheet, _LEFT, 11, "Compte rendu de téléexpertise", size=8, strong=True, colour=_ACCENT)
        put(sheet, _LEFT + 45, 11, f"{one_line(sheet, name, 58)} · {born}", size=8, colour=_MUTED)
        box(sheet, _LEFT, 17, _WIDTH, 0.3, _ACCENT)
    if report.test:
        top, label = 9 if sheet.page > 1 else 13, "DOCUMENT DE TEST"
        box(sheet, 142, top, 50, 6.4, _ALERT)
        middle = 167 - breadth(sheet, label, 10, True) / 2
        put(sheet, middle, top + 1.15, label, size=10, strong=True, colour=_WHITE)
    sheet.y = _TOP


# --- the first page ------------------------------------------------------------------------------------------------


def _stack(
    sheet: Sheet, text: str, size: float, *, strong: bool = False, colour: Colour = INK, width: float = _WIDTH
) -> None:
    """A short text from the left margin down."""
    for line in short_lines(sheet, text, size, strong, width):
        put(sheet, _LEFT, sheet.y, line, size=size, strong=strong, colour=colour)
        sheet.y += line_height(size)


def _letterhead(sheet: Sheet, report: Report) -> None:
    org = report.expert.org
    sheet.y = 13.0
    _stack(sheet, org.name, 12, strong=True, width=118 if report.test else _WIDTH)
    where = (org.address, f"FINESS {org.finess}" if org.finess else "", _phone(org.telecom))
    sheet.y = max(sheet.y, 19.8 if report.test else 0)
    _stack(sheet, " · ".join(filter(None, where)), 8.5, colour=_MUTED)
    box(sheet, _LEFT, sheet.y + 1.6, _WIDTH, 0.7, _ACCENT)
    sheet.y += 6.5
    heading, _, subject = report.title.partition(" - ")
    _stack(sheet, heading, 21, strong=True, colour=_ACCENT)
    _stack(sheet, subject[:1].upper() + subject[1:], 12.5)
    sheet.y += 0.8
    status = f"Validé le {french.instant(report.signed_at, report.zone)} · version {report.version}"
    _stack(sheet, f"{status} · confidentialité : {report.confidentiality.display}", 9, colour=_MUTED)
    if report.visibility:
        _stack(sheet, " · ".join(one.display for one in report.visibility), 9, strong=True, colour=_ALERT)
    if report.replaces:
        _stack(sheet, f"Annule et remplace le document {report.replaces}", 9, strong=True, colour=_ALERT)
        if report.correction:
            _correction(sheet, report)
    sheet.y += 3


def _correction(sheet: Sheet, report: Report) -> None:
    """Why the version before was replaced, whole: the document says it nowhere else."""
    told = f"Motif de la correction : {report.correction}"
    lines, cut = text_lines(sheet, told, 9, False, _WIDTH, _CORRECTION_LINES)
    _prose(sheet, lines, size=9, colour=_ALERT)
    if cut:
        _cut(sheet, report, "Motif de la correction : texte trop long, coupé ici")


def _cells(
    sheet: Sheet, x: float, y: float, widths: Sequence[float], row: Sequence[tuple[str, str]], *, draw: bool
) -> float:
    """One row of label-over-value cells; returns its height. Measured first, with `draw` false."""
    tallest = 0.0
    for (label, value), width in zip(row, widths, strict=True):
        values = short_lines(sheet, value, 10, False, width - 3)
        tallest = max(tallest, line_height(7.5) + max(len(values), 1) * line_height(10))
        if draw:
            put(sheet, x, y, label, size=7.5, colour=_MUTED)
            for index, line in enumerate(values):
                put(sheet, x, y + line_height(7.5) + index * line_height(10), line, size=10)
        x += width
    return tallest + 1.6


def _patient(sheet: Sheet, report: Report) -> None:
    who = report.patient
    cog = f" (COG {who.birth_cog})" if who.birth_cog else ""
    used = f"{who.used_family} {who.used_given}".strip()
    local = " ; ".join(f"{value} ({hd[0] or oid})" for value, oid, hd, _ in who.local_ids)
    ins, oid = ("aucun : identité non qualifiée", ""), ("", "")
    if who.ins:
        nature = french.INS_NATURES.get(who.ins[1], "nature inconnue")
        ins, oid = (f"{who.ins[0]} ({nature})", "Matricule INS, identité qualifiée"), (who.ins[1], "OID de l’INS")
    rows = (
        (
            ("Nom de naissance", who.birth_family),
            ("Prénoms de naissance", who.birth_givens or who.birth_given),
            ("Nom et prénom utilisés", used or "identiques"),
        ),
        (
            ("Date de naissance", french.day_text(who.birth_date)),
            ("Sexe", french.GENDERS.get(who.gender, who.gender)),
            ("Lieu de naissance", f"{who.birth_city}{cog}".strip() or "non renseigné"),
        ),
        ((ins[1] or "Matricule INS", ins[0]), (oid[1], oid[0]), ("IPP", local or "aucun")),
    )
    columns = (62.0, 54.0, 52.0)
    name = short_lines(sheet, f"{who.birth_family} {who.birth_given}", 14, True, 160)
    head = 7.0 + len(name) * line_height(14) + 1.4
    heights = [_cells(sheet, 0, 0, columns, row, draw=False) for row in rows]
    tall = head + sum(heights) + 0.8
    room(sheet, tall)
    box(sheet, _LEFT, sheet.y, _WIDTH, tall, _TINT)
    box(sheet, _LEFT, sheet.y, 1.2, tall, _ACCENT)
    x, y = _LEFT + 5, sheet.y + 2.4
    put(sheet, x, y, "PATIENT", size=8, strong=True, colour=_ACCENT)
    y += line_height(8) + 0.4
    for line in name:
        put(sheet, x, y, line, size=14, strong=True)
        y += line_height(14)
    y += 1.0
    for row, tall in zip(rows, heights, strict=True):
        _cells(sheet, x, y, columns, row, draw=True)
        y += tall
    sheet.y = y + 6


def _person(who: Professional) -> str:
    title = french.TITLE_TEXTS.get(who.suffix) or french.CIVILITY_TEXTS.get(who.prefix, "")
    return f"{title} {who.given} {who.family}".strip()


def _phone(telecom: str) -> str:
    digits = telecom.removeprefix("tel:")
    paired = " ".join(digits[index : index + 2] for index in range(0, 10, 2))
    return f"Tél. {paired if len(digits) == 10 and digits.isdigit() else digits}" if digits else ""


def _professionals(sheet: Sheet, report: Report) -> None:
    """Both professionals side by side, with everything that authenticates them."""
    cards: list[tuple[str, list[tuple[str, float, bool]]]] = []
    for label, who in (("PROFESSIONNEL REQUÉRANT", report.requester), ("EXPERT REQUIS", report.expert)):
        facts = (
            (_person(who), 12, True),
            (who.specialty.display.removesuffix(" (SM)"), 9.5, False),
            (f"RPPS {who.rpps}", 9.5, False),
            (who.org.name, 9.5, False),
            (f"FINESS {who.org.finess}" if who.org.finess else "FINESS non renseigné", 9.5, False),
            (who.mailbox, 9.5, False),
        )
        lines = [(line, size, strong) for text, size, strong in facts for line in _card(sheet, text, size, strong)]
        cards.append((label, lines))
    gap, top, width = 6.0, 6.6, 84.0
    tall = max(sum(line_height(size) for _, size, _ in lines) for _, lines in cards) + top + 2
    room(sheet, tall)
    for index, (label, lines) in enumerate(cards):
        x, y = _LEFT + index * (width + gap), sheet.y
        box(sheet, x, y, width, 0.3, _ACCENT)
        put(sheet, x, y + 2, label, size=8, strong=True, colour=_ACCENT)
        y += top
        for line, size, strong in lines:
            put(sheet, x, y, line, size=size, strong=strong)
            y += line_height(size)
    sheet.y += tall + 1


def _card(sheet: Sheet, text: str, size: float, strong: bool) -> list[str]:
    return short_lines(sheet, text, size, strong, 82)


def _instants(sheet: Sheet, report: Report) -> None:
    steps = (
        ("Demande", report.requested_at),
        ("Début de l’expertise", report.started_at),
        ("Fin de l’expertise", report.ended_at),
        ("Validation", report.signed_at),
    )
    room(sheet, 16)
    box(sheet, _LEFT, sheet.y, _WIDTH, 13.6, _TINT)
    for index, (label, at) in enumerate(steps):
        x = _LEFT + 3 + index * 43
        day = at.astimezone(french.zone(report.zone)).date()
        put(sheet, x, sheet.y + 1.8, label, size=7.5, colour=_MUTED)
        put(sheet, x, sheet.y + 5.0, french.day_text(day), size=9.5, strong=True)
        put(sheet, x, sheet.y + 9.0, french.clock(at, report.zone), size=8.5)
    sheet.y += 17


# --- the texts -----------------------------------------------------------------------------------------------------


def _heading(sheet: Sheet, title: str) -> None:
    room(sheet, 20)
    sheet.y += 1.5
    put(sheet, _LEFT, sheet.y, title, size=12, strong=True, colour=_ACCENT)
    sheet.y += line_height(12) + 0.4
    box(sheet, _LEFT, sheet.y, _WIDTH, 0.2, _RULE)
    sheet.y += 1.8


def _prose(
    sheet: Sheet,
    lines: Iterable[str],
    *,
    x: float = _LEFT,
    size: float = 10,
    bar: Colour | None = None,
    colour: Colour = INK,
) -> None:
    """Lines one under the other over as many pages as it takes, with a coloured bar in the margin if asked."""
    for line in lines:
        step = line_height(size) * (1 if line else 0.5)
        room(sheet, step)
        if bar:
            box(sheet, x - 3.4, sheet.y, 1.0, step + 0.05, bar)
        put(sheet, x, sheet.y, line, size=size, colour=colour)
        sheet.y += step


def _cut(sheet: Sheet, report: Report, what: str) -> None:
    """Say on the page, and to the caller, that a text goes on elsewhere."""
    notice = f"[{what} ; l’intégralité est dans le dossier de la demande {report.request_id}.]"
    sheet.cuts[Loss("Report", notice)] = None
    for line in short_lines(sheet, notice, 9.5, True, _WIDTH - 6):
        room(sheet, line_height(9.5))
        put(sheet, _LEFT, sheet.y, line, size=9.5, strong=True, colour=_ALERT)
        sheet.y += line_height(9.5)


def _section(sheet: Sheet, report: Report, title: str, text: str) -> None:
    _heading(sheet, title)
    lines, cut = text_lines(sheet, text, 10, False, _WIDTH, _LINES[title])
    _prose(sheet, lines or ["Non renseigné"])
    if cut:
        _cut(sheet, report, f"{title} : texte trop long, coupé ici")
    sheet.y += 2


def _exchange(sheet: Sheet, report: Report) -> None:
    _heading(sheet, _EXCHANGE)
    left, count = _LINES[_EXCHANGE], len(report.exchange)
    for index, message in enumerate(report.exchange):
        if left <= 0:
            _cut(sheet, report, f"Échanges coupés : il manque {count - index} messages sur {count}")
            break
        left -= _message(sheet, report, message)
    sheet.y += 1


def _message(sheet: Sheet, report: Report, message: Exchange) -> int:
    """One message of the exchange; returns the lines it took."""
    x, width = _LEFT + 3.4, _WIDTH - 4
    lines, cut = text_lines(sheet, message.text, 10, False, width, _MESSAGE_LINES)
    for title in message.attachments[:_ATTACHMENTS]:
        lines += short_lines(sheet, f"Pièce jointe : {title}", 10, False, width)
    if len(message.attachments) > _ATTACHMENTS:
        lines.append(f"[et {len(message.attachments) - _ATTACHMENTS} autres pièces jointes]")
    room(sheet, line_height(9) + 2 * line_height(10))
    box(sheet, _LEFT, sheet.y, 1.0, line_height(9.5) + 0.05, _RULE)
    put(sheet, x, sheet.y, one_line(sheet, message.author, 110, 9.5, True), size=9.5, strong=True)
    put(sheet, _RIGHT, sheet.y, french.instant(message.at, report.zone), size=8.5, colour=_MUTED, right=True)
    sheet.y += line_height(9.5)
    _prose(sheet, lines, x=x, bar=_RULE)
    if cut:
        _cut(sheet, report, "Message trop long, coupé ici")
    sheet.y += 2
    return len(lines) + 2


def _conclusion(sheet: Sheet, report: Report) -> None:
    _heading(sheet, _CONCLUSION)
    lines, cut = text_lines(sheet, report.conclusion, 11, False, _WIDTH - 4, _LINES[_CONCLUSION])
    _prose(sheet, lines, x=_LEFT + 3.4, size=11, bar=_ACCENT)
    if cut:
        _cut(sheet, report, "Conclusion : texte trop long, coupé ici")
    room(sheet, 14)
    sheet.y += 3
    signed = f"Validé par {_person(report.expert)}, RPPS {report.expert.rpps}"
    for text, strong in ((signed, True), (f"le {french.instant(report.signed_at, report.zone)}", False)):
        for line in short_lines(sheet, text, 10, strong, 120):
            put(sheet, _RIGHT, sheet.y, line, size=10, strong=strong, right=True)
            sheet.y += line_height(10)
    sheet.y += 2


def _trace(sheet: Sheet, report: Report) -> None:
    """The facts R.6316-4 wants on record, and the identifiers by which the record is found again."""
    _heading(sheet, "Traçabilité (code de la santé publique, article R.6316-4)")
    requester, expert = report.requester, report.expert
    span = (french.instant(at, report.zone) for at in (report.started_at, report.ended_at))
    accession = f" · numéro d’accès {report.accession}" if report.accession else ""
    rows = [
        ("Acte", f"{report.act.code} · {report.act.display}"),
        ("Requérant", f"{_person(requester)}, RPPS {requester.rpps}"),
        ("Requis", f"{_person(expert)}, RPPS {expert.rpps}"),
        ("Date et heure", " - ".join(span)),
        ("Incidents techniques", "\n".join(report.incidents) or "aucun incident signalé"),
        ("Demande", f"{report.request_id}{accession}"),
        ("Document", f"{report.id} · version {report.version} · série {report.set_id}"),
    ]
    if report.test:
        rows.append(("Nature", "document de test, sans valeur médicale ni juridique"))
    for label, value in rows:
        _trace_row(sheet, report, label, value)
    if sheet.missing:
        _trace_row(sheet, report, "Caractères", missing_text(sheet))


def _trace_row(sheet: Sheet, report: Report, label: str, value: str) -> None:
    lines, cut = text_lines(sheet, value, 9, False, 134, _TRACE_LINES)
    room(sheet, line_height(9) * min(len(lines), 3) + 1)
    put(sheet, _LEFT, sheet.y, label, size=9, colour=_MUTED)
    _prose(sheet, lines, x=_LEFT + 40, size=9)
    if cut:
        _cut(sheet, report, f"{label} : texte trop long, coupé ici")
    sheet.y += 0.8
