"""Settings: precedence, origin, unknown keys, secrets, and the rule that no listener leaves loopback unprotected."""

from __future__ import annotations

from pathlib import Path

import pytest

from fhir_server.config import ConfigError, is_loopback, load


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
