"""What tells one installation from another, in the documents that leave."""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import Callable
from email import message_from_bytes, policy
from pathlib import Path

from hubs import EXPERT, asked, directory, hub_on, opinion, put

from fhir_server.app import open_hub
from fhir_server.config import Settings, version
from fhir_server.context import SYSTEM
from fhir_server.demo.run import SITES
from fhir_server.patients.sites import load_sites
from fhir_server.store.engine import Store
from fhir_server.teleexpertise.documents import set_id


def test_the_same_request_id_elsewhere_is_another_document() -> None:
    here = set_id("0123456789abcdef", "r")
    assert uuid.UUID(here) and here == set_id("0123456789abcdef", "r")
    assert len({here, set_id("0123456789abcdee", "r"), set_id("0123456789abcdef", "s")}) == 3


def test_a_hub_knows_its_installation_and_a_setting_overrides_it(tmp_path: Path) -> None:
    told = []
    for folder, chosen in (("a", ""), ("a", ""), ("b", ""), ("b", "copy-of-a")):
        settings = Settings(data_dir=str(tmp_path / folder), auth="none", sites=SITES, installation=chosen)
        hub = open_hub(settings, load_sites(SITES), migrate=True)
        told.append(hub.settings.installation)
        hub.store.close()
    assert told[0] == told[1] != told[2] and told[3] == "copy-of-a"


def test_a_mailed_archive_names_the_software_its_version_and_its_publisher(
    open_url: Callable[..., Store], sqlite_url: str
) -> None:
    hub = directory(hub_on(open_url(sqlite_url), installation="0123456789abcdef"))
    asked(hub, state="in_progress")
    put(hub, EXPERT, opinion(hub))
    with hub.store.read(SYSTEM) as snapshot:
        mail = next(one for one in snapshot.deliveries() if one.protocol == "mail")
        letter = message_from_bytes(snapshot.payload(mail.id), policy=policy.default)
    packed = next(
        bytes(part.get_payload(decode=True)) for part in letter.walk() if part.get_filename() == "IHE_XDM.ZIP"
    )
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith((".TXT", ".XML"))}
    text = next(content for name, content in files.items() if name.endswith("README.TXT"))
    assert f"Version : {version()}" in text and f"Éditeur : {Settings().product_vendor}" in text
    clinical = next(content for name, content in files.items() if name.endswith("DOC0001.XML"))
    assert f'<setId root="2.25.{uuid.UUID(set_id("0123456789abcdef", "r")).int}"' in clinical
