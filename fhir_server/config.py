"""All settings in one frozen class, and where each value came from.

Precedence: flag > environment (`PASSERELLE_<NAME>`) > `passerelle.toml` > default. An unknown key is an error that
proposes the nearest name. Establishments are tables `[[sites]]` of the same file (see `fhir_server/patients/sites`).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

PREFIX = "PASSERELLE_"
FILE = "passerelle.toml"
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
    """Every setting of the product. Ports 0 mean "any free port"."""

    data_dir: str = _doc("passerelle-data", "folder of the SQLite database and the blobs")
    database_url: str = _doc("", "sqlite:///FILE or postgresql://...; empty = SQLite in data_dir")
    bind: str = _doc("127.0.0.1", "address every listener binds")
    http_port: int = _doc(8080, "HTTP: /fhir, /dicomweb, /livez, /readyz")
    dicom_port: int = _doc(11112, "DICOM C-STORE and C-ECHO")
    mllp_port: int = _doc(2575, "HL7 v2 over MLLP")
    ae_title: str = _doc("PASSERELLE", "our DICOM application entity title")
    dicom_private_classes: bool = _doc(False, "store SOP classes outside the DICOM arc too (private ones)")
    auth: Literal["smart", "none"] = _doc("smart", "`none` only when everything is bound to loopback")
    public_url: str = _doc("", "base of the links we emit, e.g. https://host/fhir; empty = as the client called us")
    default_site: str = _doc("", "key of the establishment that owns this server; empty = the first one")
    smtp: str = _doc("", "MSSanté operator, host:port; empty = no mail is sent")
    smtp_security: Literal["none", "starttls", "tls"] = _doc("starttls", "`none` only towards loopback")
    imap: str = _doc("", "mailbox where DSN and MDN come back, host:port; empty = not read")
    imap_security: Literal["none", "starttls", "tls"] = _doc("starttls", "`none` only towards loopback")
    mail_user: str = _doc("", "user of the mailbox; empty = its address")
    mail_password: str = _doc("", "secret of the mailbox", secret=True)
    mail_product: str = _doc("passerelle-test", "X-MSS-NIL: product reference of Convergence")
    mail_poll_seconds: float = _doc(30.0, "pause between two looks into the mailbox")
    retry_first_seconds: float = _doc(5.0, "first pause after a transient failure; doubles each time")
    retry_cap_seconds: float = _doc(900.0, "longest pause between two attempts")
    send_timeout_seconds: float = _doc(30.0, "how long a partner may take to answer")
    lease_seconds: float = _doc(120.0, "how long a worker holds a lane without renewing")
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

    @property
    def database(self) -> str:
        """The database URL in force."""
        return self.database_url or f"sqlite:///{Path(self.data_dir).resolve() / 'passerelle.db'}"


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
            if spec.name == "sites":
                shown = ", ".join(str(site.get("key", "?")) for site in value) or "(none)"
            else:
                shown = "********" if spec.metadata["secret"] and value else str(value)
            out.append((spec.name, _without_password(shown), self.origin[spec.name], str(spec.metadata["doc"])))
        return out


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
            values[key] = _convert(key, raw, where)
            origin[key] = where
    settings = Settings(**values)
    _check(settings)
    return Loaded(settings, origin)


def is_loopback(host: str) -> bool:
    """Whether a bind address or host name never leaves this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host in LOOPBACK


def _convert(key: str, raw: Any, where: str) -> Any:
    kinds = get_type_hints(Settings)
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else "; `passerelle config show` lists them"
        raise ConfigError(f"unknown setting `{key}` ({where}){hint}")
    kind = kinds[key]
    try:
        if key == "sites":
            if isinstance(raw, str):
                raise ValueError("sites are [[sites]] tables of the settings file")
            return tuple(dict(site) for site in raw)
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
        raise ConfigError(f"setting `{key}` ({where}) cannot be {raw!r}: {error}") from error


def _check(settings: Settings) -> None:
    if settings.auth == "none" and not is_loopback(settings.bind):
        raise ConfigError(
            f"auth=none with bind={settings.bind}: without authentication every listener must stay on loopback; "
            "set PASSERELLE_BIND=127.0.0.1 or configure authentication"
        )
    for name in ("http_port", "dicom_port", "mllp_port"):
        if not 0 <= getattr(settings, name) <= 65535:
            raise ConfigError(f"setting `{name}` must be a TCP port (0 to 65535)")
    for name, security in (("smtp", settings.smtp_security), ("imap", settings.imap_security)):
        address = getattr(settings, name)
        if address and security == "none" and not is_loopback(address.rpartition(":")[0]):
            raise ConfigError(f"{name}_security=none is for loopback only; set {name}_security=starttls")


def _without_password(text: str) -> str:
    head, sep, tail = text.partition("://")
    if not sep:
        return text
    tail = re.sub(r"(?i)([?&]password=)[^&]*", r"\1********", tail)
    if "@" in tail and ":" in tail.rsplit("@", 1)[0]:
        credentials, host = tail.rsplit("@", 1)
        tail = f"{credentials.split(':', 1)[0]}:********@{host}"
    return f"{head}://{tail}"
