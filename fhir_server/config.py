"""All settings in one frozen class, and where each value came from.

Precedence: flag > environment (`PASSERELLE_<NAME>`) > `passerelle.toml` > default. An unknown key is an error that
proposes the nearest name. A secret may stand in a file of its own: `<name>_file` names it. Establishments are tables
`[[sites]]` of the same file (see `fhir_server/patients/sites`). Values that make no sense together are refused:
`load` says so at once, `startable` what only matters to a server.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import parse_qs, urlsplit

PREFIX = "PASSERELLE_"
FILE = "passerelle.toml"
ROLES = ("api", "workers", "mllp", "dicom", "mailbox")
# Settings that are tables of the file, and the key each table is shown by.
_TABLES = {"sites": "key", "hl7_ports": "name"}
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_DRAFT = "http://example.org/fhir/fish/StructureDefinition/"
_SPEC = "https://interop.esante.gouv.fr/ig/fhir/teleexpertise-confluence/"


class ConfigError(Exception):
    """A setting cannot be used; the text names the key and the remedy."""


def _doc(default: Any, text: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"doc": text, "secret": secret})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting of the product. Ports 0 mean "any free port". Lists are written with commas."""

    data_dir: str = _doc("passerelle-data", "folder of the SQLite database and the blobs")
    database_url: str = _doc("", "sqlite:///FILE or postgresql://...; empty = SQLite in data_dir")
    blob_url: str = _doc(
        "", "where large content lies: s3://BUCKET/PREFIX?endpoint=https://HOST&region=...; empty = in data_dir"
    )
    blob_access_key: str = _doc("", "access key of the bucket; empty = AWS_* variables or the machine's role")
    blob_secret_key: str = _doc("", "secret key of the bucket", secret=True)
    blob_timeout_seconds: float = _doc(30.0, "how long the bucket may be silent, and how long a failure is retried")
    blob_keys: str = _doc(
        "", "content is encrypted with these keys: lines `ID BASE64` of 32 bytes, the newest last", secret=True
    )
    roles: str = _doc("all", "what this process does: all, or some of api,workers,mllp,dicom,mailbox")
    bind: str = _doc("127.0.0.1", "address every listener binds")
    http_port: int = _doc(8080, "port of HTTP (8080): /fhir, /dicomweb, /pull, /livez, /readyz")
    http_processes: int = _doc(0, "processes that answer HTTP; 0 = one on SQLite, else one a processor (4 at most)")
    health_port: int = _doc(-1, "/livez and /readyz of a process without the role api; -1 = none, 0 = any free port")
    dicom_port: int = _doc(11112, "port of DICOM (11112): C-STORE and C-ECHO")
    mllp_port: int = _doc(2575, "port of HL7 v2 over MLLP (2575)")
    http_security: Literal["none", "tls"] = _doc(
        "none", "TLS of the HTTP port; `none` behind a proxy that has it, or on loopback"
    )
    mllp_security: Literal["none", "tls", "mutual"] = _doc(
        "none", "TLS of the MLLP port; `mutual` demands a certificate of the partner"
    )
    dicom_security: Literal["none", "tls", "mutual"] = _doc(
        "none", "TLS of the DICOM port; `mutual` demands a certificate of the partner"
    )
    mllp_networks: str = _doc("", "networks whose hosts may speak to the MLLP port; empty = any")
    dicom_networks: str = _doc("", "networks whose hosts may speak to the DICOM port under any AE title; empty = any")
    server_certificate: str = _doc("", "PEM file: our certificate on the HTTP, MLLP and DICOM ports")
    server_key: str = _doc("", "PEM file: its key; empty = in server_certificate")
    server_authorities: str = _doc("", "PEM file: authorities of the partners' certificates (`mutual`)")
    ae_title: str = _doc("PASSERELLE", "our DICOM application entity title")
    dicom_private_classes: bool = _doc(False, "store SOP classes outside the DICOM arc too (private ones)")
    dicom_unknown_callers: bool = _doc(False, "take images of AE titles no establishment declares; auth=none does")
    auth: Literal["smart", "none"] = _doc("smart", "`none` only when everything is bound to loopback")
    auth_issuer: str = _doc("", "auth=smart: the `iss` of accepted access tokens")
    auth_audience: str = _doc("", "auth=smart: the `aud` of accepted access tokens, as a rule public_url")
    auth_jwks: str = _doc("", "auth=smart: the issuer's public keys, a file or an https:// address")
    auth_roles_claim: str = _doc("roles", "auth=smart: the claim that lists roles; dots lead into objects")
    public_url: str = _doc("", "base of the links we emit, e.g. https://host/fhir; empty = as the client called us")
    default_site: str = _doc("", "key of the establishment that owns this server; empty = the first one")
    installation: str = _doc("", "what tells this installation from others; empty = drawn once, kept in the database")
    product_vendor: str = _doc(
        "Projet libre Passerelle", "who publishes the software, in the README of mailed archives"
    )
    smtp: str = _doc("", "MSSanté operator, host:port; empty = no mail is sent")
    smtp_security: Literal["none", "starttls", "tls"] = _doc("starttls", "`none` only towards loopback")
    smtp_user: str = _doc("", "user at the operator's SMTP server; empty = no AUTH")
    smtp_password: str = _doc("", "secret at the operator's SMTP server", secret=True)
    imap: str = _doc("", "mailbox where DSN and MDN come back, host:port; empty = not read")
    imap_security: Literal["none", "starttls", "tls"] = _doc("starttls", "`none` only towards loopback")
    mail_user: str = _doc("", "user of the mailbox; empty = its address")
    mail_password: str = _doc("", "secret of the mailbox", secret=True)
    mail_mechanism: Literal["plain", "xoauth2", "external"] = _doc(
        "plain", "how SMTP and IMAP know us: password, Pro Santé Connect token, client certificate"
    )
    mail_product: str = _doc("passerelle-test", "X-MSS-NIL: product reference of Convergence")
    mail_poll_seconds: float = _doc(30.0, "pause between two looks into the mailbox")
    client_certificate: str = _doc("", "PEM file: our certificate towards partners (mllps:, SMTP, IMAP)")
    client_key: str = _doc("", "PEM file: its key; empty = in client_certificate")
    client_key_password: str = _doc("", "secret of client_key", secret=True)
    client_authorities: str = _doc("", "PEM file: authorities of the partners' servers; empty = the system's")
    delivery_networks: str = _doc(
        "", "hosts, *.domains and networks an Endpoint may name; empty = loopback with auth=none, else any routable"
    )
    retry_first_seconds: float = _doc(5.0, "first pause after a transient failure; doubles each time")
    retry_cap_seconds: float = _doc(900.0, "longest pause between two attempts")
    send_timeout_seconds: float = _doc(30.0, "how long connecting (10 at most) and an answer may take")
    mail_answer_seconds: float = _doc(600.0, "how long a mail operator may take to accept a whole message (RFC 5321)")
    send_limit_seconds: float = _doc(1800.0, "longest conversation with a partner; then it is cut off")
    lease_seconds: float = _doc(
        30.0, "how long a lane stays taken by a worker that fell silent; renewed while it sends"
    )
    senders: int = _doc(
        4, "deliveries one process sends at the same time, beside those whose partner takes over a second"
    )
    stop_seconds: float = _doc(30.0, "how long a stopping process may finish what is under way")
    keep_days: float = _doc(0.0, "days after which settled messages and deliveries go; 0 = only `passerelle retention`")
    study_quiet_seconds: float = _doc(2.0, "silence after which a received study is summed up as ImagingStudy")
    max_body_mib: int = _doc(64, "largest HTTP body and HL7 frame")
    max_object_mib: int = _doc(2048, "largest DICOM object")
    max_bundle_entries: int = _doc(10_000, "entries of one batch or transaction")
    base_aliases: str = _doc("", "further base URLs of this server, with commas; references to them are our own")
    cors_origins: str = _doc("", "web origins whose pages may call us, with commas, e.g. https://app.example.org")
    conditional_delete: Literal["single", "multiple"] = _doc("single", "how many a conditional DELETE may delete")
    referential_integrity: bool = _doc(False, "refuse references to what is not here, and deletes of what is in use")
    statement_timeout_seconds: float = _doc(20.0, "longest single statement")
    extension_active_status: str = _doc(_DRAFT + "fr-coreServiceRequest-SplitActiveStatus", "draft guide, may change")
    extension_patient_consent: str = _doc(_DRAFT + "fr-coreServiceRequest-patientConsent", "draft guide, may change")
    system_active_status: str = _doc(_SPEC + "CodeSystem/active-status-cs", "draft guide, may change")
    sites: tuple[Mapping[str, Any], ...] = field(default=(), metadata={"doc": "[[sites]] tables", "secret": False})
    hl7_ports: tuple[Mapping[str, Any], ...] = field(
        default=(), metadata={"doc": "[[hl7_ports]] tables: more MLLP ports", "secret": False}
    )

    @property
    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{Path(self.data_dir).resolve() / 'passerelle.db'}"

    @property
    def web_scheme(self) -> Literal["http", "https"]:
        """What the HTTP port itself speaks."""
        return "http" if self.http_security == "none" else "https"

    @property
    def web_processes(self) -> int:
        """How many processes answer HTTP."""
        if self.http_processes or self.database.startswith("sqlite"):
            return max(1, self.http_processes)
        return min(4, len(os.sched_getaffinity(0)))

    @property
    def duties(self) -> frozenset[str]:
        """The roles of this process, each by its name."""
        return frozenset(ROLES) if self.roles == "all" else frozenset(listed(self.roles))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and the origin of each: `default`, `flag`, an environment name or a file name."""

    settings: Settings
    origin: Mapping[str, str]

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, value with secrets masked, origin, meaning) of each setting, in declaration order."""
        out = []
        for spec in fields(Settings):
            value = getattr(self.settings, spec.name)
            if spec.name in _TABLES:
                shown = ", ".join(str(table.get(_TABLES[spec.name], "?")) for table in value) or "(none)"
            else:
                shown = "********" if spec.metadata["secret"] and value else str(value)
            out.append((spec.name, _without_password(shown), self.origin[spec.name], str(spec.metadata["doc"])))
        return out


# Settings that may be read from a file: secrets, and the address that may hold one.
FROM_FILE = frozenset({spec.name for spec in fields(Settings) if spec.metadata["secret"]} | {"database_url"})


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read the settings. `flags` hold only what was given on the command line; `defaults` are a command's own.

    Raises ConfigError naming the key for an unknown name or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    path = file or Path(environ.get(PREFIX + "CONFIG", FILE))
    if (file or PREFIX + "CONFIG" in environ) and not path.is_file():
        raise ConfigError(f"the settings file {path} does not exist; create it with `passerelle config init`")
    layers: list[tuple[str, Mapping[str, Any]]] = [("default", defaults or {})]
    if path.is_file():
        try:
            layers.append((str(path), tomllib.loads(path.read_text(encoding="utf-8"))))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
    env = {k[len(PREFIX) :].lower(): v for k, v in environ.items() if k.startswith(PREFIX) and k != PREFIX + "CONFIG"}
    layers += [("environment", env), ("flag", flags or {})]
    values: dict[str, Any] = {}
    origin = {spec.name: "default" for spec in fields(Settings)}
    for name, layer in layers:
        for key, raw in layer.items():
            where = PREFIX + key.upper() if name == "environment" else name
            target = key.removesuffix("_file")
            if key != target and target in FROM_FILE:
                if target in layer:
                    raise ConfigError(f"`{target}` and `{key}` are both set ({where}); keep one")
                raw, key, where = _secret(key, str(raw)), target, f"{where} ({raw})"
            values[key] = _convert(key, raw, where)
            origin[key] = where
    settings = Settings(**values)
    _check(settings)
    return Loaded(settings, origin)


def startable(settings: Settings) -> None:
    """Raise ConfigError unless a server may start with these settings."""
    for wrong, text in (*_identity_rules(settings), *_process_rules(settings), *_tls_rules(settings)):
        if wrong:
            raise ConfigError(text)


def _identity_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    """Nobody unknown speaks to a listener that leaves this machine."""
    missing = [name for name in ("auth_issuer", "auth_audience", "auth_jwks") if not getattr(settings, name)]
    yield (
        settings.auth == "smart" and "api" in settings.duties and bool(missing),
        f"auth=smart needs {', '.join(missing)}: who issues the access tokens, for whom, and with which keys; "
        "to try things out on this machine alone: `passerelle demo`, or PASSERELLE_AUTH=none",
    )
    if is_loopback(settings.bind):
        return
    yield (
        "api" in settings.duties and settings.web_scheme != "https" and not settings.public_url.startswith("https://"),
        f"bind={settings.bind} serves HTTP to other machines: access tokens must not travel in clear. Set "
        "http_security=tls, or public_url to the https:// address of the proxy in front, or bind=127.0.0.1",
    )
    for wire in ("mllp", "dicom"):
        alone = getattr(settings, f"{wire}_security") != "mutual" and not getattr(settings, f"{wire}_networks")
        yield (
            wire in settings.duties and alone,
            f"the {wire.upper()} port would take messages from any machine; set {wire}_networks to the partners' "
            f"networks (such as 10.1.0.0/16), or {wire}_security=mutual, or bind=127.0.0.1",
        )


def _process_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    yield (
        settings.database.startswith("sqlite") and settings.http_processes > 1,
        f"http_processes={settings.http_processes}: on SQLite one process does everything; leave it out, or set "
        "database_url to a PostgreSQL database",
    )
    yield (
        settings.database.startswith("sqlite") and settings.duties != frozenset(ROLES),
        f"roles={settings.roles}: on SQLite one process does everything (roles=all); to share the work among "
        "processes set database_url to a PostgreSQL database",
    )


def _tls_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    yield (
        settings.web_scheme == "https" and settings.public_url.startswith("http://"),
        f"http_security=tls serves https, and public_url={settings.public_url} says http; correct one of them",
    )
    for wire in ("http", "mllp", "dicom"):
        security = getattr(settings, f"{wire}_security")
        yield (
            security != "none" and not settings.server_certificate,
            f"{wire}_security={security} needs server_certificate, a PEM file",
        )
        yield (
            security == "mutual" and not settings.server_authorities,
            f"{wire}_security=mutual needs server_authorities: who signs the partners' certificates",
        )
    for name in ("server_certificate", "server_key", "server_authorities", *_CLIENT_FILES):
        path = getattr(settings, name)
        yield bool(path) and not Path(path).is_file(), f"setting `{name}`: the file {path} does not exist"


_CLIENT_FILES = ("client_certificate", "client_key", "client_authorities")


def version() -> str:
    """The version of the installed product."""
    return importlib.metadata.version("passerelle")


def listed(text: str) -> tuple[str, ...]:
    """The items of a setting written with commas."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def is_loopback(host: str) -> bool:
    """Whether a bind address or host name never leaves this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in LOOPBACK


def in_url(host: str) -> str:
    """A bind address as it stands in a URL: IPv6 in brackets (RFC 3986 3.2.2)."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def host_and_port(name: str, text: str) -> tuple[str, int]:
    """The parts of `host:port`. Raises ConfigError that names the setting."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ConfigError(f"setting `{name}` is {text!r}; write host:port")
    return host.strip("[]"), int(port)


def _secret(key: str, path: str) -> str:
    """The content of a secret's file, without the line end editors add."""
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(f"setting `{key}`: {path} cannot be read ({told})") from error


def _convert(key: str, raw: Any, where: str) -> Any:
    kinds = get_type_hints(Settings)
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else "; `passerelle config show` lists them"
        raise ConfigError(f"unknown setting `{key}` ({where}){hint}")
    kind = kinds[key]
    try:
        if key in _TABLES:
            if isinstance(raw, str):
                raise ValueError(f"{key} are [[{key}]] tables of the settings file")
            return tuple(dict(table) for table in raw)
        if get_origin(kind) is Literal:
            if raw not in get_args(kind):
                raise ValueError("one of " + ", ".join(get_args(kind)))
            return raw
        if kind is bool:
            if str(raw).lower() not in _BOOLEANS:
                raise ValueError("true or false is wanted")
            return _BOOLEANS[str(raw).lower()]
        if isinstance(raw, bool) or (kind is int and isinstance(raw, float)):
            raise ValueError(f"a {kind.__name__} is wanted")
        return kind(raw)
    except (TypeError, ValueError) as error:
        shown = "********" if key in FROM_FILE else repr(raw)
        raise ConfigError(f"setting `{key}` ({where}) cannot be {shown}: {error}") from error


def _check(settings: Settings) -> None:
    for wrong, text in (
        *_bind_rules(settings),
        *_mail_rules(settings),
        *_content_rules(settings),
        *_number_rules(settings),
    ):
        if wrong:
            raise ConfigError(text)


def _bind_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    yield (
        settings.auth == "none" and not is_loopback(settings.bind),
        f"auth=none with bind={settings.bind}: without authentication every listener must stay on loopback; "
        "set PASSERELLE_BIND=127.0.0.1 or configure authentication (auth=smart)",
    )
    unknown = sorted(settings.duties - frozenset(ROLES))
    yield bool(unknown), f"roles: `{', '.join(unknown)}` is none; write all, or some of {', '.join(ROLES)}"
    yield not settings.duties, f"roles is empty; write all, or some of {', '.join(ROLES)}"
    for name in ("mllp_networks", "dicom_networks"):
        for item in listed(getattr(settings, name)):
            yield not _is_network(item), f"setting `{name}`: {item!r} is no network; write 10.1.0.0/16 or an address"
    url = settings.public_url
    yield bool(url) and not re.match(r"https?://[^/]", url), f"public_url={url!r} is no http:// or https:// address"


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _mail_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    for name, security in (("smtp", settings.smtp_security), ("imap", settings.imap_security)):
        address = getattr(settings, name)
        if not address:
            continue
        host, _ = host_and_port(name, address)
        yield (
            security == "none" and not is_loopback(host),
            f"{name}_security=none is for loopback only; set {name}_security=starttls",
        )
    yield bool(settings.smtp_user) and not settings.smtp, "smtp_user is set and smtp is not; name the operator's server"
    yield (
        bool(settings.smtp_password) and not settings.smtp_user,
        "smtp_password is set and smtp_user is not: no AUTH would be tried",
    )
    yield (
        settings.mail_mechanism == "external" and not settings.client_certificate,
        "mail_mechanism=external means our certificate says who we are: set client_certificate",
    )
    yield (
        bool(settings.client_key) and not settings.client_certificate,
        "client_key is set and client_certificate is not; a key goes with its certificate",
    )


def _content_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    url = settings.blob_url
    if not url:
        return
    found = re.match(r"s3://[a-z0-9][a-z0-9.-]+(/[^?#]*)?(\?[^#]*)?\Z", url)
    yield found is None, f"blob_url={url!r} is no s3://BUCKET/PREFIX?endpoint=https://HOST"
    asked = parse_qs(urlsplit(url).query)
    yield bool(set(asked) - {"endpoint", "region"}), "blob_url takes `endpoint` and `region`, and no secret"
    endpoint = urlsplit(asked.get("endpoint", [""])[-1])
    yield (
        endpoint.scheme not in ("", "http", "https") or (bool(endpoint.scheme) and not endpoint.hostname),
        f"blob_url: the endpoint of {url!r} is no https://HOST",
    )
    yield (
        endpoint.scheme == "http" and not is_loopback(endpoint.hostname or ""),
        "blob_url: an http:// endpoint is for loopback only; write https://",
    )


_POSITIVE = (
    "blob_timeout_seconds",
    "mail_poll_seconds", "mail_answer_seconds", "retry_first_seconds", "retry_cap_seconds", "send_timeout_seconds",
    "send_limit_seconds", "lease_seconds", "senders", "stop_seconds", "statement_timeout_seconds", "max_body_mib",
    "max_object_mib", "max_bundle_entries",
)  # fmt: skip


def _number_rules(settings: Settings) -> Iterator[tuple[bool, str]]:
    for name in ("http_port", "dicom_port", "mllp_port"):
        yield not 0 <= getattr(settings, name) <= 65535, f"setting `{name}` must be a TCP port (0 to 65535)"
    yield not 0 <= settings.http_processes <= 64, "setting `http_processes` must be 0 (automatic) to 64"
    yield not -1 <= settings.health_port <= 65535, "setting `health_port` must be a TCP port (0 to 65535), or -1"
    for name in _POSITIVE:
        # `not >`: NaN is no number to wait for.
        yield not getattr(settings, name) > 0, f"setting `{name}` must be greater than 0"
    for name in ("keep_days", "study_quiet_seconds"):
        yield not getattr(settings, name) >= 0, f"setting `{name}` must be 0 or more"
    yield (
        settings.retry_first_seconds > settings.retry_cap_seconds,
        "retry_first_seconds is longer than retry_cap_seconds; the first pause is the shortest",
    )
    yield settings.lease_seconds < 1, "lease_seconds must be 1 at least: it is renewed three times in that time"
    for name in ("send_timeout_seconds", "mail_answer_seconds"):
        yield (
            not getattr(settings, name) < settings.send_limit_seconds,
            f"{name} must be below send_limit_seconds, which ends any sending",
        )


def _without_password(text: str) -> str:
    head, sep, tail = text.partition("://")
    if not sep:
        return text
    tail = re.sub(r"(?i)([?&]password=)[^&]*", r"\1********", tail)
    if "@" in tail and ":" in tail.rsplit("@", 1)[0]:
        credentials, host = tail.rsplit("@", 1)
        tail = f"{credentials.split(':', 1)[0]}:********@{host}"
    return f"{head}://{tail}"
