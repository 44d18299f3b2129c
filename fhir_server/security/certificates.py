"""TLS contexts the settings describe: ours towards partners, and ours on the ports they call."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Literal

from fhir_server.config import ConfigError, Settings
from mssante.channel import Credentials, tls_context

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` has no name for
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def towards_partners(settings: Settings) -> ssl.SSLContext:
    """For mllps: endpoints and the mail operator: TLS 1.2 or better by the national rules, chain and name checked,
    with our certificate when one is set. Raises ConfigError naming the files."""
    try:
        return tls_context(
            authorities=settings.client_authorities or None,
            certificate=settings.client_certificate or None,
            key=settings.client_key or None,
            password=settings.client_key_password or None,
        )
    except (OSError, ValueError) as fault:
        names = "client_certificate, client_key, client_key_password, client_authorities"
        raise ConfigError(f"{names}: these do not go together or cannot be read ({fault})") from fault


def shown(settings: Settings) -> str:
    """The certificate that our HTTP port shows from now on, as PEM; '' where it serves without TLS. Raises
    ConfigError."""
    if settings.web_scheme == "http":
        return ""
    try:
        found = _CERTIFICATE.search(Path(settings.server_certificate).read_text("latin-1"))
    except OSError as fault:
        raise ConfigError(f"server_certificate cannot be read ({fault})") from fault
    if found is None:
        raise ConfigError(f"server_certificate: {settings.server_certificate} holds no certificate")
    return found[0]


def towards(certificate: str) -> ssl.SSLContext | None:
    """For commands that ask the serving process beside them, which shows exactly this certificate (PEM), whatever name
    it bears and whether or not its time is over; None where it serves without TLS."""
    if not certificate:
        return None
    context = ssl.create_default_context(cadata=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    return context


def mail_credentials(settings: Settings) -> Credentials | None:
    """Who we are to the operator's SMTP server; None when it asks for nobody."""
    if settings.mail_mechanism == "external":
        return Credentials(settings.smtp_user, mechanism="external")
    if not settings.smtp_user:
        return None
    return Credentials(settings.smtp_user, settings.smtp_password, settings.mail_mechanism)


def on_port(settings: Settings, security: Literal["none", "tls", "mutual"]) -> ssl.SSLContext | None:
    """For a port of ours; `mutual` demands a certificate of one of `server_authorities`. Raises ConfigError."""
    if security == "none":
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.server_certificate, settings.server_key or None)
        if security == "mutual":
            context.load_verify_locations(settings.server_authorities)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
    except (OSError, ValueError) as fault:
        names = "server_certificate, server_key, server_authorities"
        raise ConfigError(f"{names}: these do not go together or cannot be read ({fault})") from fault
