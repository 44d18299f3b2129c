"""What an incoming mail is: a delivery notice, a disposition notice, an integration error, documents, or just a mail.

Nothing here decides what to do with it. Sources: RFC 3464 (DSN), RFC 8098 (MDN), RFC 6522 (multipart/report); the
error codes and subjects of the ANS volet "Transmission vers un LPS d'un document CDA-R2 par courriel MSSanté"
(https://github.com/ansforge/IG-hl7v2-volet-trans-lps-doc-cda-courriel-mss); référentiel socle MSSanté #2, ECO.2.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from mssante import archive, coherence, metadata, mime
from mssante.xml_text import XmlRefused

Kind = Literal["dsn", "mdn", "error", "xdm", "other"]

_XDM_SUBJECT = re.compile(r"^(?:\[Annule et remplace\]\s*)?xdm/1\.0/ddm", re.IGNORECASE)
_ERROR_SUBJECT = re.compile(r"^\[(?:KO|Erreur)[^\]]{0,80}\]\s*(?:\[\s*(\d{3})\s*\])?", re.IGNORECASE)
_ANS_CODE = re.compile(r"\b(\d{3})\b(?:\s*\^\s*(.{1,300}))?")
_ANGLE = re.compile(r"<\s*([^<>\s]{1,320})\s*>")
_BARE = re.compile(r"[^\s<>()\[\],;:\"\\]{1,160}@[^\s<>()\[\],;:\"\\]{1,255}")
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,998}>")
_FIELD = re.compile(rb"([!-9;-~]{1,80}):[^\n]*\n(?:[ \t][^\n]*\n)*")
_PUT_BEFORE = re.compile(
    rb"return-path|received|x-received|received-spf|authentication-results|delivered-to|x-original-to|envelope-to"
    rb"|dkim-signature|arc-[!-9;-~]+|x-spam-[!-9;-~]+|x-virus-[!-9;-~]+",
    re.IGNORECASE,
)
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_TEXT_LIMIT = 1024 * 1024
_REPORT_LIMIT = 256 * 1024
_REPORT_LINES = 5000


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file of the mail: its name (never a path), media type and content."""

    name: str
    type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """What a DSN says of one recipient. `action` is failed, delayed, delivered, relayed or expanded, in lower case."""

    recipient: str
    original_recipient: str
    action: str
    status: str
    diagnostic: str
    remote: str


@dataclass(frozen=True, slots=True)
class Dsn:
    """A delivery status notification. `envelope_id` is the ENVID of the sending, '' when the reporter lost it."""

    envelope_id: str
    reporter: str
    original_message_id: str
    recipients: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class Mdn:
    """A disposition notification. `disposition` is processed, displayed, deleted...; `modifier` as written.

    `error_code` and `error_text` are the ANS integration error (`902`, `Identifiant de patient inconnu`), or ''.
    """

    original_message_id: str
    recipient: str
    mode: str
    disposition: str
    modifier: str
    error_code: str
    error_text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document of an XDM archive: its metadata, its bytes, and where the two contradict each other."""

    path: str
    content: bytes
    entry: metadata.Entry
    differences: tuple[coherence.Difference, ...]


@dataclass(frozen=True, slots=True)
class Xdm:
    """The archive: the one patient it speaks of (None when METADATA.XML names none) and its documents."""

    patient: metadata.PatientId | None
    traits: metadata.Traits
    submission: metadata.Submission
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class Received:
    """One incoming mail. Addresses are bare and in lower case; `text` is the plain body, at most 1 MiB.

    `refused` is (code, sentence) when the mail or its archive is hostile, damaged or unusable; the header fields that
    could still be read are filled, so that the sender can be told. `tolerated` names the known faults accepted.
    """

    kind: Kind
    message_id: str = ""
    subject: str = ""
    sender: str = ""
    reply_to: str = ""
    to: tuple[str, ...] = ()
    date: datetime | None = None
    in_reply_to: str = ""
    references: tuple[str, ...] = ()
    notify_to: str = ""
    automatic: bool = False
    codes: tuple[str, ...] = ()
    ins: str = ""
    product: str = ""
    last_word: bool = False
    text: str = ""
    attachments: tuple[Attachment, ...] = ()
    dsn: Dsn | None = None
    mdn: Mdn | None = None
    xdm: Xdm | None = None
    error: tuple[str, str] | None = None
    refused: tuple[str, str] | None = None
    tolerated: tuple[str, ...] = ()


def carried(raw: bytes) -> bytes:
    """The mail without the fields that operators put before it on its way: two copies of one mail, come by two of our
    addresses, are the same in this.

    Sources: RFC 5321, 4.4 (trace); RFC 7208, 9.1; RFC 8601, 4.1; RFC 6376, 3.5 (DKIM-Signature); RFC 8617, 4 (ARC);
    Delivered-To and X-Original-To as Postfix writes them, X-Spam-* and X-Virus-* as mail filters do.
    """
    at = 0
    while (field := _FIELD.match(raw, at)) is not None and _PUT_BEFORE.fullmatch(field[1]):
        at = field.end()
    return raw[at:]


def read(
    raw: bytes,
    *,
    limits: mime.Limits = mime.DEFAULT_LIMITS,
    archive_limits: archive.Limits = archive.DEFAULT_LIMITS,
) -> Received:
    """Classify an incoming mail. Never raises, whatever the bytes; time and memory are bounded by the limits."""
    try:
        root = mime.parse(raw, limits)
    except mime.MimeRefused as problem:
        return replace(_envelope(_header_only(raw, limits)), refused=(problem.code, problem.text))
    parts = [part for part in root.walk() if not part.parts]
    text = next((part.text()[:_TEXT_LIMIT] for part in parts if part.type == "text/plain" and not part.file_name), "")
    mail = replace(_envelope(root), text=text)
    by_type = {part.type: part for part in parts}
    if "message/delivery-status" in by_type:
        return replace(mail, kind="dsn", dsn=_dsn(by_type["message/delivery-status"], parts))
    if "message/disposition-notification" in by_type:
        mdn = _mdn(by_type["message/disposition-notification"])
        error = (mdn.error_code, mdn.error_text) if mdn.error_code else None
        return replace(mail, kind="mdn", mdn=mdn, error=error)
    return _ordinary(replace(mail, attachments=_attachments(parts)), archive_limits)


def _ordinary(mail: Received, limits: archive.Limits) -> Received:
    """A mail that is no notice. An integration error brings the original archive back: it is not read again."""
    failed = _ERROR_SUBJECT.match(mail.subject)
    if failed:
        return replace(mail, kind="error", error=(failed.group(1) or "", mail.text.strip().partition("\n")[0].strip()))
    zipped = _archive_of(mail.attachments, bool(_XDM_SUBJECT.match(mail.subject)))
    if zipped is None:
        return mail
    beside = tuple(attachment for attachment in mail.attachments if attachment is not zipped)
    return _with_documents(zipped.content, replace(mail, kind="xdm", attachments=beside), limits)


def _attachments(parts: list[mime.Part]) -> tuple[Attachment, ...]:
    inline = ("text/", "multipart/", "message/")
    named = ((part, part.file_name) for part in parts)
    return tuple(
        Attachment(_base_name(name), part.type, part.content())
        for part, name in named
        if name or not part.type.startswith(inline)
    )


def addresses(value: str) -> tuple[str, ...]:
    """The bare addresses of an address header, lower case, in order; comments and display names left out."""
    found: list[str] = []
    for item in _unquoted(value).split(","):
        match = _ANGLE.search(item) or _BARE.search(item)
        text = (match.group(match.lastindex or 0) if match else "").lower()
        if "@" in text:
            found.append(text)
    return tuple(found)


def _unquoted(value: str) -> str:
    """Without its quoted strings: a display name may hold commas and even an address."""
    kept: list[str] = []
    quoted = escaped = False
    for character in value:
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif not quoted:
            kept.append(character)
    return "".join(kept)


def _header_only(raw: bytes, limits: mime.Limits) -> mime.Part:
    """The header fields that fit in the limits, of a mail that may not."""
    lines = mime.header_block(raw[: limits.header]).split(b"\n")[: limits.fields]
    return mime.Part(mime.fields(b"\n".join(lines), limits), b"")


def _envelope(root: mime.Part) -> Received:
    def first(name: str) -> str:
        return next(iter(addresses(root.raw(name))), "")

    automatic = root.header("auto-submitted").lower()
    subject = root.header("subject")
    return Received(
        kind="other",
        message_id=next(iter(_MESSAGE_ID.findall(root.header("message-id"))), ""),
        subject=subject,
        sender=first("from") or first("sender"),
        reply_to=first("reply-to"),
        to=addresses(root.raw("to")),
        date=_date(root.header("date")),
        in_reply_to=next(iter(_MESSAGE_ID.findall(root.header("in-reply-to"))), ""),
        references=tuple(_MESSAGE_ID.findall(root.header("references"))[-50:]),
        notify_to=first("disposition-notification-to"),
        automatic=bool(automatic) and automatic != "no",
        codes=tuple(code for code in re.split(r"[,;\s]+", root.header("x-mss-codecda")) if code)[:50],
        ins=root.header("x-mss-ins").upper()[:1],
        product=root.header("x-mss-nil"),
        last_word=root.header("x-mss-mes").upper() == "FIN" or subject == "[FIN]",
    )


def _date(value: str) -> datetime | None:
    try:
        return parsedate_to_datetime(value[:200])
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _groups(part: mime.Part) -> list[dict[str, str]]:
    """The field groups of a report part; some reporters leave several blank lines between two recipients."""
    groups: list[list[bytes]] = [[]]
    for line in part.content()[:_REPORT_LIMIT].splitlines()[:_REPORT_LINES]:
        if line.strip():
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
    limits = mime.Limits(fields=_REPORT_LINES)
    found = (mime.fields(b"\r\n".join(group), limits) for group in groups if group)
    return [{name: mime.decoded(value) for name, value in reversed(block)} for block in found]


def _typed(value: str) -> str:
    """The value of a `type; value` field, the address part only when there is one."""
    text = value.partition(";")[2].strip() or value.strip()
    match = _ANGLE.search(text)
    return match.group(1) if match else text


def _dsn(part: mime.Part, parts: list[mime.Part]) -> Dsn:
    groups = _groups(part)
    about = groups[0] if groups else {}
    recipients = tuple(
        Notice(
            recipient=_typed(group.get("final-recipient", "")).lower(),
            original_recipient=_typed(group.get("original-recipient", "")).lower(),
            action=group.get("action", "").strip().lower(),
            status=next(iter(_STATUS.findall(group.get("status", ""))), ""),
            diagnostic=group.get("diagnostic-code", "").partition(";")[2].strip() or group.get("diagnostic-code", ""),
            remote=_typed(group.get("remote-mta", "")),
        )
        for group in groups
        if "action" in group or "final-recipient" in group
    )
    return Dsn(
        about.get("original-envelope-id", ""), _typed(about.get("reporting-mta", "")), _original(parts), recipients
    )


def _original(parts: list[mime.Part]) -> str:
    """The Message-ID of the mail a notice speaks of, from the copy or the headers it brings back."""
    for part in parts:
        if part.type in {"message/rfc822", "text/rfc822-headers", "message/global-headers", "message/global"}:
            header = _header_only(part.content(), mime.DEFAULT_LIMITS).header("message-id")
            return next(iter(_MESSAGE_ID.findall(header)), "")
    return ""


def _mdn(part: mime.Part) -> Mdn:
    group: dict[str, str] = {}
    for block in _groups(part):
        group = {**block, **group}
    mode, _, outcome = group.get("disposition", "").partition(";")
    disposition, _, modifier = outcome.strip().partition("/")
    named = _ANS_CODE.search(modifier) or _ANS_CODE.search(group.get("error", ""))
    return Mdn(
        original_message_id=next(iter(_MESSAGE_ID.findall(group.get("original-message-id", ""))), ""),
        recipient=_typed(group.get("final-recipient", "")).lower(),
        mode=mode.strip().lower(),
        disposition=disposition.strip().lower(),
        modifier=modifier.strip(),
        error_code=named.group(1) if named else "",
        error_text=(named.group(2) or "").strip() if named else "",
    )


def _base_name(name: str) -> str:
    return re.split(r"[/\\]", name)[-1][:255]


def _archive_of(attachments: tuple[Attachment, ...], announced: bool) -> Attachment | None:
    """The attachment named IHE_XDM.ZIP in any case; or, under an XDM subject, the first zip."""
    for attachment in attachments:
        if attachment.name.upper() == archive.FILE_NAME:
            return attachment
    zips = (a for a in attachments if a.content.startswith(b"PK\x03\x04"))
    return next(zips, None) if announced else None


def _with_documents(zipped: bytes, mail: Received, limits: archive.Limits) -> Received:
    try:
        xdm, tolerated = _xdm(archive.unpack(zipped, limits))
    except archive.ArchiveRefused as problem:
        return replace(mail, refused=(problem.code, problem.text))
    except XmlRefused as problem:
        return replace(mail, refused=("metadata", str(problem)))
    return replace(mail, xdm=xdm, tolerated=tolerated)


def _xdm(files: dict[str, bytes]) -> tuple[Xdm, tuple[str, ...]]:
    paths = [path for path in files if path.upper().rpartition("/")[2] == "METADATA.XML"]
    if not paths:
        raise XmlRefused("the archive holds no METADATA.XML")
    tolerated: list[str] = []
    documents: list[Document] = []
    submissions = []
    for path in paths:
        submission = metadata.read(files[path])
        submissions.append(submission)
        folder = path[: -len("METADATA.XML")]
        if folder.upper() != archive.SUBSET:
            tolerated.append(f"METADATA.XML found in {folder or 'the top folder'} instead of {archive.SUBSET}")
        documents += [_document(files, folder, entry, tolerated) for entry in submission.entries]
    named = {(d.entry.patient.oid, d.entry.patient.value) for d in documents if d.entry.patient}
    named |= {(s.patient.oid, s.patient.value) for s in submissions if s.patient}
    if len(named) > 1:
        raise XmlRefused("the archive speaks of several patients; one mail carries one patient (ECO.2.1.1)")
    first = submissions[0]
    return Xdm(first.patient, documents[0].entry.traits, first, tuple(documents)), tuple(tolerated)


def _document(files: dict[str, bytes], folder: str, entry: metadata.Entry, tolerated: list[str]) -> Document:
    """Find the file of an entry: by URI in any case, else by its SHA-1."""
    by_path = {path.upper(): path for path in files}
    wanted = (folder + entry.slot("URI").replace("\\", "/")).upper()
    path = by_path.get(wanted, "")
    if not path:
        digest = entry.slot("hash").lower()
        same = (p for p, data in files.items() if hashlib.sha1(data, usedforsecurity=False).hexdigest() == digest)
        path = next(same, "")
        tolerated.append(f"no file is named {entry.slot('URI')!r}; found by its hash")
    if not path:
        raise XmlRefused(f"METADATA.XML describes {entry.slot('URI')!r}, which the archive does not hold")
    if entry.mime_type not in {"text/xml", "application/xslt+xml", "application/xml"}:
        return Document(path, files[path], entry, ())
    return Document(path, files[path], entry, coherence.incoherences(entry, files[path]))
