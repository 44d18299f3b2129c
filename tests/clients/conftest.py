"""One Passerelle process that all client libraries speak to, with the access tokens a deployment would ask for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from house import DOMAIN, House, Mail, demo_site
from told import Running

from fhir_server.demo.play import free_ports

HERE = Path(__file__).parent
ISSUER, AUDIENCE = "https://auth.hospital.example", "https://fhir.hospital.example"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all of them, so that one server is enough and npm installs once; told before xdist reads it."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.xdist_group("clients"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A `passerelle serve` process on free loopback ports, auth=smart, without mail."""
    folder, key = tmp_path_factory.mktemp("clients"), ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": "one", "use": "sig"}
    keys = folder / "jwks.json"
    keys.write_text(json.dumps({"keys": [public]}), encoding="utf-8")
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 3600, "sub": "dpi", "scope": "system/*.cruds"}
    smart = {"auth": "smart", "auth_issuer": ISSUER, "auth_audience": AUDIENCE, "auth_jwks": str(keys)}
    ports = dict(zip(("http", "mllp", "dicom"), free_ports(3), strict=True))
    mail = Mail(0, 0, DOMAIN, "", lambda: None)
    house = House(folder, "", mail, ports, demo_site(), smart | {"smtp": "", "imap": ""})
    try:
        house.start()
        token = jwt.encode(claims, key, "ES256", headers={"kid": "one"})
        yield Running(f"http://127.0.0.1:{ports['http']}/fhir", token)
    finally:
        house.close()
