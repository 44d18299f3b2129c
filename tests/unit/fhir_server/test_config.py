"""Settings: precedence, origin, unknown keys, secrets, and the rule that no listener leaves loopback unprotected."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fhir_server.config import ConfigError, Settings, is_loopback, load, startable


def write(folder: Path, text: str) -> Path:
    path = folder / "passerelle.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "http_port = 1\ndicom_port = 2\nmllp_port = 3\n")
    loaded = load({"http_port": 10}, {"PASSERELLE_HTTP_PORT": "20", "PASSERELLE_DICOM_PORT": "21"}, file)
    assert (loaded.settings.http_port, loaded.settings.dicom_port, loaded.settings.mllp_port) == (10, 21, 3)
    assert loaded.settings.ae_title == "PASSERELLE"
    assert loaded.origin["http_port"] == "flag"
    assert loaded.origin["dicom_port"] == "PASSERELLE_DICOM_PORT"
    assert loaded.origin["mllp_port"] == str(file)
    assert loaded.origin["ae_title"] == "default"


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"PASSERELLE_HTP_PORT": "1"}, "did you mean `http_port`"),
        ({"PASSERELLE_HTTP_PORT": "many"}, "http_port"),
        ({"PASSERELLE_HTTP_PORT": "70000"}, "TCP port"),
        ({"PASSERELLE_AUTH": "maybe"}, "one of smart, none"),
        ({"PASSERELLE_SITES": "x"}, "[[sites]]"),
        ({"PASSERELLE_CONFIG": "/nowhere/x.toml"}, "config init"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(environ: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError, match=word.replace("[", r"\[").replace("]", r"\]")):
        load({}, environ)


def test_broken_toml_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 1"):
        load({}, {}, write(tmp_path, "http_port = = 1"))


def test_without_authentication_nothing_leaves_loopback() -> None:
    with pytest.raises(ConfigError, match="loopback"):
        load({"auth": "none", "bind": "0.0.0.0"}, {})
    assert load({"auth": "none", "bind": "127.0.0.5"}, {}).settings.bind == "127.0.0.5"


@pytest.mark.parametrize("host", ["127.evil.com", "127.0.0.1.example", "10.0.0.1", "", "0.0.0.0"])
def test_only_real_loopback_addresses_count(host: str) -> None:
    assert not is_loopback(host)
    assert is_loopback("127.0.0.5")
    assert is_loopback("::1")
    assert is_loopback("localhost")


def test_mail_without_encryption_is_for_loopback_only() -> None:
    with pytest.raises(ConfigError, match="smtp_security"):
        load({"smtp": "mail.example:25", "smtp_security": "none"}, {})


def test_show_masks_secrets_and_passwords_in_addresses() -> None:
    loaded = load({"mail_password": "hush", "database_url": "postgresql://me:hush@host/db"}, {})
    shown = {name: value for name, value, _, _ in loaded.rows()}
    assert "hush" not in str(shown)
    assert shown["database_url"] == "postgresql://me:********@host/db"
    other = load({"database_url": "postgresql://host/db?user=me&password=hush&x=1"}, {})
    assert {row[0]: row[1] for row in other.rows()}["database_url"].endswith("password=********&x=1")
    assert all(meaning for _, _, _, meaning in loaded.rows())


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"roles": "api,wrokers"}, "wrokers"),
        ({"roles": ","}, "roles is empty"),
        ({"mllp_networks": "10.0.0.0/8,partner"}, "mllp_networks"),
        ({"public_url": "fhir.example.org"}, "public_url"),
        ({"smtp": "mail.example"}, "host:port"),
        ({"smtp_user": "me"}, "smtp is not"),
        ({"smtp": "mail.example:465", "smtp_password": "hush"}, "smtp_user"),
        ({"mail_mechanism": "external"}, "client_certificate"),
        ({"client_key": "k.pem"}, "client_certificate"),
        ({"retry_first_seconds": 1000}, "retry_cap_seconds"),
        ({"lease_seconds": 0.5}, "lease_seconds"),
        ({"send_timeout_seconds": 5000}, "send_limit_seconds"),
        ({"send_timeout_seconds": float("nan")}, "send_timeout_seconds"),
        ({"senders": 0}, "senders"),
        ({"keep_days": -1}, "keep_days"),
        ({"health_port": -2}, "health_port"),
    ],
)
def test_values_that_make_no_sense_together_are_refused(flags: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load(flags, {})


SMART: dict[str, Any] = {"auth_issuer": "https://a.example", "auth_audience": "x", "auth_jwks": "keys.json"}
OUT: dict[str, Any] = SMART | {"bind": "0.0.0.0", "public_url": "https://fhir.example.org/fhir"}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "auth_issuer, auth_audience, auth_jwks"),
        (SMART | {"roles": "api"}, "on SQLite one process"),
        (OUT | {"public_url": ""}, "in clear"),
        (OUT, "MLLP port would take messages from any machine"),
        (OUT | {"mllp_networks": "10.0.0.0/8"}, "DICOM port"),
        (OUT | {"mllp_networks": "10.0.0.0/8", "dicom_unknown_callers": True}, "DICOM port would take"),
        (OUT | {"mllp_security": "mutual", "dicom_networks": "10.0.0.0/8"}, "server_certificate"),
        (SMART | {"mllp_security": "mutual", "server_certificate": "/nowhere.pem"}, "server_authorities"),
        (SMART | {"mllp_security": "tls", "server_certificate": "/nowhere.pem"}, "does not exist"),
    ],
)
def test_a_server_does_not_start_unsafe_or_incomplete(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        startable(Settings(**values))
    startable(Settings(**(OUT | {"mllp_networks": "10.0.0.0/8", "dicom_networks": "10.0.0.0/8"})))


def test_a_secret_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    loaded = load({}, {"PASSERELLE_MAIL_PASSWORD_FILE": str(tmp_path / "secret")})
    assert loaded.settings.mail_password == "hush"
    row = next(row for row in loaded.rows() if row[0] == "mail_password")
    assert row[1] == "********" and str(tmp_path / "secret") in row[2]
    with pytest.raises(ConfigError, match="keep one"):
        load({}, {"PASSERELLE_MAIL_PASSWORD_FILE": "x", "PASSERELLE_MAIL_PASSWORD": "y"})
    with pytest.raises(ConfigError, match="cannot be read"):
        load({"client_key_password_file": str(tmp_path / "nothing")}, {})
    with pytest.raises(ConfigError, match="unknown setting `smtp_file`"):
        load({"smtp_file": "x"}, {})


def test_every_setting_is_in_the_operators_table() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "operating.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_0-9]+)` \| (.*?) \|", manual, re.MULTILINE))
    for spec in fields(Settings):
        assert spec.name in rows, f"docs/operating.md does not explain {spec.name}"
        default = spec.default if isinstance(spec.default, str | int | float | bool) else ""
        assert rows[spec.name].strip("` ") == (str(default) or "-"), spec.name
    assert set(rows) == {spec.name for spec in fields(Settings)}
