"""The system under test: its addresses, what the user says of it, and what one check holds in its hands.

Hides how a command line becomes addresses, how TLS is set up, and how a check gets a client with the right limits.
"""

from __future__ import annotations

import dataclasses
import secrets
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from conformance import message, wire_dicom, wire_fhir, wire_listener, wire_mllp
from conformance.verdict import Deadline, Transcript

WIRES = ("fhir", "hl7v2", "hl7v2-sender", "hl7v2-files", "dicom")


class UsageError(ValueError):
    """The command line makes no sense; the text says what to write."""


def _option(default: Any, told: str) -> Any:
    return field(default=default, metadata={"help": told})


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may say with `--set NAME=VALUE`."""

    timeout: float = _option(10.0, "seconds to wait for one answer")
    check_seconds: float = _option(300.0, "seconds one check may take")
    run_seconds: float = _option(3600.0, "seconds the whole run may take")
    settle: float = _option(3.0, "seconds a search may lag behind a write")
    token: str = _option("", "bearer token of the FHIR server; better: token_file")
    token_file: str = _option("", "a file that holds the bearer token")
    header: str = _option("", "one more HTTP header, `Name: value`")
    ca_file: str = _option("", "PEM file of the authorities to trust for https, mllps, dicoms")
    cert_file: str = _option("", "PEM file of the client certificate (mutual TLS)")
    key_file: str = _option("", "PEM file of its key")
    keep: bool = _option(False, "yes: leave the FHIR resources that the checks created")
    calling_ae: str = _option("CONFORMITE", "AE title of the kit")
    any_called_ae: bool = _option(False, "yes: the system declares that it accepts any called AE title")
    sending_application: str = _option("CONFORMITE", "MSH-3")
    sending_facility: str = _option("KIT", "MSH-4")
    receiving_application: str = _option("PASSERELLE", "MSH-5")
    receiving_facility: str = _option("PASSERELLE", "MSH-6")
    processing_id: str = _option("D", "MSH-11: D, T or P")
    authority: str = _option("KIT&999999999&M", "assigning authority of the test identifiers, as in PID-3.4")
    family: str = _option("CONFORMITE", "the test patient: family name")
    given: str = _option("ESSAI", "first given name")
    birth_date: str = _option("19790328", "YYYYMMDD")
    sex: str = _option("F", "F, M or U")
    ins: str = _option("", "INS of the test patient; none: the messages carry the local identifier only")
    send_wait: float = _option(120.0, "seconds to wait for a message of the sender")
    resend_wait: float = _option(120.0, "seconds to wait for the sender to send a message again")
    quiet: float = _option(3.0, "seconds in which the sender must not send what it should not")
    record: str = _option("", "a folder that keeps what the sender sent, to be judged as hl7v2-files")
    ins_oid: str = _option("1.2.250.1.213.1.4.10", "OID of the INS: 1.2.250.1.213.1.4.10 is the one for tests")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the system is reached; a wire without an address is skipped."""

    fhir: wire_fhir.Address | None = None
    hl7v2: wire_mllp.Address | None = None
    sender: wire_mllp.Address | None = None
    files: Path | None = None
    dicom: wire_dicom.Address | None = None
    options: Options = field(default_factory=Options)

    def address(self, wire: str) -> object | None:
        """The address of one of `WIRES`."""
        found: object | None = getattr(self, _PLACES[wire])
        return found

    def bearer(self) -> str:
        """The bearer token, '' for none."""
        options = self.options
        if not options.token_file:
            return options.token
        try:
            return Path(options.token_file).read_text().strip()
        except OSError as error:
            raise UsageError(f"token_file: {error}") from None


def target(addresses: Iterable[str], settings: Iterable[str] = ()) -> Target:
    """A target from `fhir=http://host:8080/fhir`-like addresses and `name=value` settings; raises `UsageError`."""
    found: dict[str, Any] = {}
    for text in addresses:
        wire, _, url = text.partition("=")
        if wire not in _READERS or not url:
            raise UsageError(f"--target {text}: write {_FORMS}")
        if _PLACES[wire] in found:
            raise UsageError(f"--target {wire}: one address a wire; run once per system")
        try:
            found[_PLACES[wire]] = _READERS[wire](url)
        except ValueError as error:
            raise UsageError(f"--target {text}: {error}; write {_FORMS}") from None
    if not found:
        raise UsageError(f"no --target: write {_FORMS}")
    return Target(**found, options=_options(settings))


def option_help() -> list[tuple[str, str, str]]:
    """(name, default, help) of every setting."""
    words = {True: "yes", False: "no"}
    rows = [(one.name, one.default, one.metadata["help"]) for one in dataclasses.fields(Options)]
    return [(name, words[value] if isinstance(value, bool) else str(value), told) for name, value, told in rows]


def _options(settings: Iterable[str]) -> Options:
    kinds = {one.name: str(one.type) for one in dataclasses.fields(Options)}
    values: dict[str, Any] = {}
    for text in settings:
        name, separator, value = text.partition("=")
        if name not in kinds or not separator:
            raise UsageError(f"--set {text}: write NAME=VALUE; the names are {', '.join(kinds)}")
        try:
            values[name] = _VALUES[kinds[name]](value)
        except (ValueError, KeyError):
            wanted = {"float": "a number of seconds above 0", "bool": "yes or no"}[kinds[name]]
            raise UsageError(f"--set {text}: {wanted} is expected") from None
    return Options(**values)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise ValueError(text)
    return value


_VALUES: dict[str, Callable[[str], Any]] = {
    "str": str,
    "float": _seconds,
    "bool": lambda text: {"yes": True, "no": False}[text],
}
_FORMS = (
    "fhir=http://HOST:PORT/PATH, hl7v2=mllp://HOST:PORT, hl7v2-sender=mllp://ADDRESS-TO-LISTEN-AT:PORT, "
    "hl7v2-files=FOLDER or dicom=dicom://AETITLE@HOST:PORT (with TLS: https, mllps, dicoms)"
)


def _fhir(url: str) -> wire_fhir.Address:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.username:
        raise ValueError("not a service base URL")
    tls = parts.scheme == "https"
    return wire_fhir.Address(parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls)


def _mllp(url: str) -> wire_mllp.Address:
    parts = urlsplit(url)
    if parts.scheme not in {"mllp", "mllps"} or not parts.hostname or not parts.port:
        raise ValueError("not an MLLP address with a port")
    return wire_mllp.Address(parts.hostname, parts.port, parts.scheme == "mllps")


def _dicom(url: str) -> wire_dicom.Address:
    parts = urlsplit(url)
    if parts.scheme not in {"dicom", "dicoms"} or not parts.hostname or not parts.port or not parts.username:
        raise ValueError("not a DICOM address with an AE title and a port")
    name = unquote(parts.username)
    if not 1 <= len(name) <= 16 or not name.isascii():
        raise ValueError("an AE title has 1 to 16 ASCII characters")
    return wire_dicom.Address(name, parts.hostname, parts.port, parts.scheme == "dicoms")


def _folder(path: str) -> Path:
    found = Path(path)
    if not found.exists():
        raise ValueError("no such file or folder")
    return found


_READERS: dict[str, Callable[[str], Any]] = {
    "fhir": _fhir,
    "hl7v2": _mllp,
    "hl7v2-sender": _mllp,
    "hl7v2-files": _folder,
    "dicom": _dicom,
}
# Where `Target` keeps the address of a wire.
_PLACES = {"fhir": "fhir", "hl7v2": "hl7v2", "hl7v2-sender": "sender", "hl7v2-files": "files", "dicom": "dicom"}


def _tls(options: Options) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_file or None)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file or None)
    except OSError as error:
        raise UsageError(f"TLS files: {error}") from None
    return context


def _own_tls(options: Options) -> ssl.SSLContext:
    """TLS for the kit as a server: its certificate is cert_file; with ca_file the sender must show one too."""
    if not options.cert_file:
        raise UsageError("mllps as a listener needs --set cert_file=... and key_file=...")
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=options.ca_file or None)
        context.load_cert_chain(options.cert_file, options.key_file or None)
    except OSError as error:
        raise UsageError(f"TLS files: {error}") from None
    if options.ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Context:
    """What one check is given: the target, clients with its time limit, unique names. Closed by the runner."""

    def __init__(self, target: Target, *, seconds: float | None = None) -> None:
        options = target.options
        bearer = target.bearer()
        name, _, value = options.header.partition(":")
        self.target = target
        self.options = options
        self.deadline = Deadline.after(seconds if seconds is not None else options.check_seconds)
        self.transcript = Transcript(tuple(secret for secret in (bearer, value.strip()) if secret))
        self._headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        if name and value:
            self._headers[name.strip()] = value.strip()
        self._fhir: wire_fhir.Client | None = None

    @property
    def fhir(self) -> wire_fhir.Client:
        """The FHIR client of this check."""
        if self._fhir is None:
            address = self.target.fhir
            if address is None:
                raise UsageError("this check needs --target fhir=...")
            tls = _tls(self.options) if address.tls else None
            limits = (self.options.timeout, self.deadline, self.transcript)
            self._fhir = wire_fhir.Client(address, *limits, self._headers, tls)
        return self._fhir

    def mllp(self) -> wire_mllp.Connection:
        """A new MLLP connection, opened at its first use."""
        address = self.target.hl7v2
        if address is None:
            raise UsageError("this check needs --target hl7v2=...")
        tls = _tls(self.options) if address.tls else None
        return wire_mllp.Connection(address, self.options.timeout, self.deadline, self.transcript, tls)

    def listener(self) -> wire_listener.Listener:
        """A listener for the sender under test; opened by `with`."""
        address = self.target.sender
        if address is None:
            raise UsageError("this check needs --target hl7v2-sender=...")
        tls = _own_tls(self.options) if address.tls else None
        return wire_listener.Listener(address, self.deadline, self.transcript, tls, self.options.record)

    def messages(self) -> list[message.Message]:
        """The messages of the files to judge."""
        if self.target.files is None:
            raise UsageError("this check needs --target hl7v2-files=...")
        try:
            return message.read(self.target.files)
        except (OSError, ValueError) as error:
            raise UsageError(f"hl7v2-files: {error}") from None

    def association(self) -> wire_dicom.Association:
        """A new DICOM association, not yet requested."""
        address = self.target.dicom
        if address is None:
            raise UsageError("this check needs --target dicom=...")
        tls = _tls(self.options) if address.tls else None
        return wire_dicom.Association(address, self.options.timeout, self.deadline, self.transcript, tls)

    def unique(self, length: int = 20) -> str:
        """A name nobody used before: upper-case letters and digits (MSH-10 of HL7 v2.5 holds 20)."""
        alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
        return "".join(secrets.choice(alphabet) for _ in range(length))

    def until(self, holds: Callable[[], bool], seconds: float | None = None) -> bool:
        """Ask again until `holds()` or `seconds` are over: an index may lag behind (search.html, result currency)."""
        limit = self.deadline.within(self.options.settle if seconds is None else seconds)
        while not holds():
            if limit.remaining_or_zero() == 0:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Delete what this check created, unless the user wants to keep it, and close the connection."""
        if self._fhir is not None:
            if self.options.keep:
                self._fhir.close()
            else:
                self._fhir.clean_up()
