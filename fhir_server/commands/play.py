"""Playing a partner: `send hl7|dicom|fhir|mail`, and `echo` to ask whether somebody is there."""

from __future__ import annotations

import json
import smtplib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fhir_server.commands.output import Failed, print_json
from fhir_server.commands.serving import readyz
from fhir_server.commands.settings import Args, loaded

_SECONDS = 30.0
# Characters of an answer that settles nothing; --json has it whole.
_SHOWN = 400


def send_hl7(args: Args) -> int:
    """Send HL7 v2 files over MLLP and print what each was answered; exit 1 unless all are AA or CA. An answer for
    another message, or one that cannot be read, leaves unknown what became of the file: it is shown as it came."""
    scheme = "mllps" if args.to.startswith("mllps:") else "mllp"
    host, port, _ = target(args.to, scheme, "mllp://host:port or mllps://host:port")
    tls = _tls(args) if scheme == "mllps" else None
    told: list[dict[str, Any]] = []
    try:
        for name in args.files:
            told.append({"file": name, **_sent_hl7((host, port), name, tls, args.to)})
            if not args.json:
                print(_answer_line(told[-1]))
    finally:
        if args.json:
            print_json(told)
    return 0 if all(one["code"] in ("AA", "CA") for one in told) else 1


def _sent_hl7(address: tuple[str, int], name: str, tls: ssl.SSLContext | None, to: str) -> dict[str, Any]:
    """What one file was answered. Raises Failed when nothing came back."""
    from fhir_server.delivery.answers import UNKNOWN, acknowledged, unsettled
    from hl7v2 import mllp

    try:
        return acknowledged(mllp.send(address, Path(name).read_bytes(), timeout=_SECONDS, tls=tls))
    except mllp.MllpFault as fault:
        if fault.stage == "ack":
            return unsettled(fault.text, fault.answer)
        if fault.stage == "answer":
            raise Failed(f"{name}: {UNKNOWN}: {fault.code} {fault.text}") from fault
        raise Failed(f"{name}: {fault.stage} {fault.code} {fault.text}; is a listener at {to}?") from fault


def _answer_line(told: Mapping[str, Any]) -> str:
    if told["outcome"] == "unknown":
        return f"{told['file']}: {told['text']}; it answered {told['answer'][:_SHOWN]!r}"
    # What MSA-3 says as well is said once.
    said = (f"{one['location']} {one['code']} {one['text'] if one['text'] != told['text'] else ''}".strip()
            for one in told["errors"])  # fmt: skip
    return f"{told['file']}: {told['code']} {told['control_id']} {told['text']} {'; '.join(said)}".rstrip()


def send_dicom(args: Args) -> int:
    """Send DICOM files by C-STORE and print the status of each; exit 1 unless all are 0x0000."""
    from dicom_node import scu

    host, port, called, tls = _dicom(args, args.to)
    files = [Path(name) for name in args.files]
    try:
        results = scu.store((host, port), files, called=called, calling=args.calling, tls=tls)
    except scu.DicomFault as fault:
        raise Failed(f"{fault.stage} {fault.code} {fault.text}; is a DICOM node at {args.to}?") from fault
    for uid, status in results:
        print(f"{uid}: 0x{status:04X}")
    return 0 if all(status == 0 for _, status in results) else 1


def send_fhir(args: Args) -> int:
    """Send FHIR resources (JSON files) to a base URL: a batch or transaction to the base, a resource with an id by PUT,
    any other by POST. Prints the status of each; exit 1 unless all are 2xx."""
    failed = False
    for name in args.files:
        data = Path(name).read_bytes()
        try:
            resource = json.loads(data)
            kind, key = str(resource["resourceType"]), str(resource.get("id", ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Failed(f"{name}: this is no FHIR resource in JSON ({error})") from error
        bundle = kind == "Bundle" and resource.get("type") in ("batch", "transaction")
        url = args.to.rstrip("/") + ("" if bundle else f"/{kind}/{key}" if key else f"/{kind}")
        headers = {"content-type": "application/fhir+json", "accept": "application/fhir+json"}
        if args.token:
            headers["authorization"] = f"Bearer {args.token}"
        status, words = _http(url, "PUT" if key and not bundle else "POST", data, headers)
        failed = failed or not 200 <= status < 300
        print(f"{name}: {status} {words}".rstrip())
    return 1 if failed else 0


def _http(url: str, method: str, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
    """(status, location or the server's words)."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise Failed(f"{url}: write http://host:port/fhir")
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=60) as answer:
            return answer.status, answer.headers.get("location", "")
    except urllib.error.HTTPError as error:
        with error:
            try:
                told = json.load(error)["issue"]
                return error.code, "; ".join(str(issue.get("diagnostics", "")) for issue in told)
            except (ValueError, LookupError, TypeError, AttributeError):
                return error.code, str(error.reason)
    except (OSError, ValueError) as error:
        raise Failed(f"{url} does not answer ({error}); is a FHIR server there?") from error


def send_mail(args: Args) -> int:
    """Hand mail files (message/rfc822) to an SMTP server with the settings' security and credentials."""
    from fhir_server.security.certificates import mail_credentials
    from mssante import smtp

    settings = loaded(args).settings
    host, port, _ = target(args.to, "smtp", "smtp://host:port")
    for name in args.files:
        raw = Path(name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        try:
            done = smtp.send(
                (host, port),
                args.sender,
                args.recipient,
                raw,
                envelope_id=Path(name).stem[:20],
                security=args.security or settings.smtp_security,
                context=_tls(args),
                credentials=mail_credentials(settings),
                timeout=_SECONDS,
                answer_timeout=_SECONDS,
            )
        except (smtp.SmtpFault, ValueError) as fault:
            raise Failed(f"{name}: {fault}; is a mail server at {args.to}?") from fault
        print(f"{name}: {done.code} {done.text}")
    return 0


def echo(args: Args) -> int:
    """Is somebody there? C-ECHO for dicom:// and dicoms:// (TLS), NOOP for smtp://, readyz for http://. HL7 has no
    echo: mllp:// and mllps:// are only connected to, unless --exchange says that the partner may be sent a query."""
    scheme = args.url.partition(":")[0]
    if scheme in ("dicom", "dicoms"):
        return _echo_dicom(args)
    if scheme in ("mllp", "mllps"):
        return _echo_mllp(args, scheme)
    if scheme == "smtp":
        return _echo_smtp(args)
    if scheme in ("http", "https"):
        return readyz(args)
    raise Failed(
        f"echo {args.url}: write dicom://AETITLE@host:port, dicoms://AETITLE@host:port, mllp://host:port, "
        "mllps://host:port, smtp://host:port or http://host:port/readyz"
    )


def _echo_dicom(args: Args) -> int:
    from dicom_node import scu

    host, port, called, tls = _dicom(args, args.url)
    try:
        scu.echo((host, port), called=called, calling=args.calling, tls=tls)
    except scu.DicomFault as fault:
        told = f"{args.url}: {fault.stage} {fault.code} {fault.text}"
        raise Failed(f"{told}; check host, port and AE title") from fault
    print(f"{args.url} answers C-ECHO")
    return 0


def _echo_mllp(args: Args, scheme: str) -> int:
    host, port, _ = target(args.url, scheme, f"{scheme}://host:port")
    tls = _tls(args) if scheme == "mllps" else None
    if args.exchange:
        return _exchange(args.url, (host, port), tls)
    try:
        with socket.create_connection((host, port), timeout=_SECONDS) as raw:
            if tls is not None:
                tls.wrap_socket(raw, server_hostname=host).close()
    except OSError as fault:
        raise Failed(f"{args.url}: {fault}; check host and port") from fault
    print(f"{args.url} takes connections; nothing was sent (--exchange sends a query, which the partner may record)")
    return 0


# HL7 v2.5 chapter 14: a network management query asks for statistics and changes nothing. Who does not know it refuses
# it, which is an answer all the same.
_QUERY = (
    "MSH|^~\\&|PASSERELLE|||{host}|{at:%Y%m%d%H%M%S}||NMQ^N01^NMQ_N01|{key}|T|2.5\r"
    "QRD|{at:%Y%m%d%H%M%S}|R|I|{key}||||STA\r"
)


def _exchange(url: str, address: tuple[str, int], tls: ssl.SSLContext | None) -> int:
    """A query and its acknowledgement; whatever the partner says of it, it speaks HL7."""
    from fhir_server.context import new_delivery_id, now
    from hl7v2 import ack, mllp

    query = _QUERY.format(host=address[0].replace("|", " "), at=now(), key=new_delivery_id()).encode()
    try:
        told = ack.read(mllp.send(address, query, timeout=_SECONDS, tls=tls))
    except mllp.MllpFault as fault:
        raise Failed(f"{url}: {fault.stage} {fault.code} {fault.text}; something else than HL7 may listen") from fault
    print(f"{url} answers a query with {told.code} {told.text}".rstrip())
    return 0


def _echo_smtp(args: Args) -> int:
    host, port, _ = target(args.url, "smtp", "smtp://host:port")
    try:
        with smtplib.SMTP(host, port, timeout=_SECONDS) as server:
            code, words = server.noop()
    except (OSError, smtplib.SMTPException) as fault:
        raise Failed(f"{args.url}: {fault}; check host and port") from fault
    print(f"{args.url}: {code} {words.decode(errors='replace')}")
    return 0 if code == 250 else 1


def _tls(args: Args) -> ssl.SSLContext:
    from fhir_server.security.certificates import towards_partners

    return towards_partners(loaded(args).settings)


def _dicom(args: Args, url: str) -> tuple[str, int, str, ssl.SSLContext | None]:
    """(host, port, called AE title, TLS) of dicom:// or, over TLS, dicoms://."""
    scheme = "dicoms" if url.startswith("dicoms:") else "dicom"
    host, port, title = target(url, scheme, "dicom://AETITLE@host:port or dicoms://AETITLE@host:port")
    return host, port, title or "ANY-SCP", _tls(args) if scheme == "dicoms" else None


def target(url: str, scheme: str, form: str) -> tuple[str, int, str]:
    """(host, port, user) of an address. Raises Failed that says how to write it."""
    try:
        parts = urlsplit(url)
        if parts.scheme == scheme and parts.hostname and parts.port:
            return parts.hostname, parts.port, parts.username or ""
    except ValueError:
        pass
    raise Failed(f"{url}: write {form}")
