"""Where content lies and with which keys: what is refused, and what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from fhir_server import errors
from fhir_server.config import ConfigError, load
from fhir_server.store.blob_folder import Folder
from fhir_server.store.blobs import blobs_of

KEY = "k1 MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///srv/blobs", "is no s3://BUCKET"),
        ("s3://", "is no s3://BUCKET"),
        ("s3://UPPER/x", "is no s3://BUCKET"),
        ("s3://content/x?endpoint=http://store.example", "for loopback only"),
        ("s3://content/x?endpoint=ftp://store.example", "is no https://HOST"),
        ("s3://content/x?endpoint=https://", "is no https://HOST"),
        ("s3://content/x?secret=1", "takes `endpoint` and `region`, and no secret"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load({"blob_url": url}, {})


@pytest.mark.parametrize("url", ["", "s3://content", "s3://my.content/a/b?region=fr&endpoint=https://s3.example:9000"])
def test_a_good_address_is_taken(url: str) -> None:
    assert load({"blob_url": url}, {}).settings.blob_url == url


def test_keys_come_from_a_file_and_are_never_shown(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY + "\n", encoding="ascii")
    environ = {"PASSERELLE_BLOB_KEYS_FILE": str(tmp_path / "keys"), "PASSERELLE_BLOB_SECRET_KEY": "hidden"}
    loaded = load({}, environ)
    shown = {row[0]: row[1] for row in loaded.rows()}
    assert shown["blob_keys"] == shown["blob_secret_key"] == "********"
    blobs = blobs_of(loaded.settings, tmp_path)
    assert blobs.keys.newest == "k1" and blobs.form.name == "gcm-chunks-1" and isinstance(blobs.at, Folder)
    assert "1111" not in repr(blobs) and "MTEx" not in repr(blobs)


def test_keys_that_are_none_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(errors.Invalid, match="blob_keys, line 1"):
        blobs_of(load({"blob_keys": "k1 short"}, {}).settings, tmp_path)
