"""auth=smart: what a token must be, whose caller it makes, what its scopes let it do. Keys are made on the spot."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hubs import directory, hub_on

from fhir_server.app import Server
from fhir_server.changes import Hub
from fhir_server.commands import desk
from fhir_server.config import ConfigError, Settings
from fhir_server.context import Caller
from fhir_server.demo.run import SITES
from fhir_server.errors import Forbidden, PasserelleError, Unauthenticated
from fhir_server.rest import admin, routes
from fhir_server.rest.http import Request
from fhir_server.security import scopes, tokens
from fhir_server.security.identity import Gate, at_hand, http_caller
from fhir_server.security.tokens import Verifier, keys_of
from fhir_server.store.engine import Store

ISSUER, AUDIENCE = "https://auth.example.org/realms/ch", "https://fhir.example.org/fhir"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks(folder: Path, **keys: Any) -> str:
    """A JWK set of public keys by their names, as a file."""
    listed = []
    for kid, key in keys.items():
        algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        listed.append(json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"})
    path = folder / "jwks.json"
    path.write_text(json.dumps({"keys": listed}))
    return str(path)


def token(key: Any = RSA, algorithm: str = "RS256", kid: str = "one", **claims: Any) -> str:
    told = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "sub": "dpi", "scope": "system/*.cruds"} | claims
    kept = {name: value for name, value in told.items() if value is not None}
    return jwt.encode(kept, key, algorithm, headers={"kid": kid} if kid else {})


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    return directory(hub_on(open_url(sqlite_url)))


@pytest.fixture
def gate(tmp_path: Path, hub: Hub) -> Gate:
    settings = dataclasses.replace(hub.settings, auth="smart", auth_issuer=ISSUER, auth_audience=AUDIENCE)
    return Gate(settings, Verifier(ISSUER, AUDIENCE, jwks(tmp_path, one=RSA, two=EC)), "local")


def called(hub: Hub, gate: Gate, text: str, **headers: str) -> Caller:
    return http_caller(hub.store, gate, {"authorization": f"Bearer {text}"} | headers, "192.0.2.9")


def test_a_software_with_a_signed_token_is_let_in_with_the_rights_of_its_scopes(hub: Hub, gate: Gate) -> None:
    caller = called(hub, gate, token(scope="system/Patient.rs openid", client_id="dpi-chu"))
    assert (caller.display, caller.roles, caller.channel, caller.peer) == ("dpi-chu", {"partner"}, "http", "192.0.2.9")
    assert caller.rights == {("Patient", "r"), ("Patient", "s")}
    assert caller.client == "dpi-chu" and called(hub, gate, token(azp="dpi-nord")).client == "dpi-nord"
    assert called(hub, gate, token()).client == "", "`sub` may be a person's"
    assert called(hub, gate, token(EC, "ES256", "two")).rights == {("*", letter) for letter in "cruds"}


def test_a_person_is_the_practitioner_role_the_token_names(hub: Hub, gate: Gate) -> None:
    told = token(fhirUser="https://fhir.example.org/fhir/PractitionerRole/garnier", scope="user/*.rs")
    caller = called(hub, gate, told)
    assert (caller.who, caller.roles) == ("PractitionerRole/garnier", {"requester", "expert"})
    assert caller.groups == {"HealthcareService/avis-echo"}
    with pytest.raises(Unauthenticated, match="no active"):
        called(hub, gate, token(fhirUser="PractitionerRole/nobody"))


def test_roles_come_from_a_claim_and_only_known_ones_count(hub: Hub, gate: Gate) -> None:
    assert called(hub, gate, token(roles=["admin", "god", 3])).roles == {"admin"}
    keycloak = dataclasses.replace(
        gate, settings=dataclasses.replace(gate.settings, auth_roles_claim="realm_access.roles")
    )
    assert called(hub, keycloak, token(realm_access={"roles": ["admin"]})).roles == {"admin"}
    for strange in ("admin", {"roles": {"x": 1}}, {"roles": "expert administrator"}, 7):
        assert "admin" not in called(hub, keycloak, token(realm_access=strange)).roles


def unsigned() -> str:
    return jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300}, None, "none")


def confused() -> str:
    """HS256 with the public key as its secret: accepted by verifiers that take the algorithm from the token."""
    public = RSA.public_key().public_numbers()
    secret = str(public.n).encode()

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    told = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part({'iss': ISSUER, 'aud': AUDIENCE, 'exp': 9999999999})}"
    signed = base64.urlsafe_b64encode(hmac.new(secret, told.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    return f"{told}.{signed}"


@pytest.mark.parametrize(
    "made",
    [
        lambda: token(exp=time.time() - 120),
        lambda: token(exp=None),
        lambda: token(nbf=time.time() + 600),
        lambda: token(iss="https://evil.example"),
        lambda: token(iss=None),
        lambda: token(aud="https://another.example"),
        lambda: token(aud=None),
        lambda: token(STRANGER),
        lambda: token(EC, "ES256", "one"),
        lambda: token(kid="unknown"),
        lambda: token(kid=""),
        lambda: token()[:-4] + "AAAA",
        unsigned,
        confused,
        lambda: "not.a.token",
        lambda: "",
        lambda: "x" * 20_000,
        lambda: "demo:garnier",
    ],
)
def test_any_other_token_is_refused(hub: Hub, gate: Gate, made: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated) as refused:
        called(hub, gate, made())
    assert refused.value.status == 401
    with pytest.raises(Unauthenticated):
        http_caller(hub.store, gate, {}, "127.0.0.1")


def test_a_new_key_of_the_issuer_is_found_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(ISSUER, AUDIENCE, jwks(tmp_path, one=RSA))
    jwks(tmp_path, three=STRANGER)
    with pytest.raises(Unauthenticated, match="does not publish"):
        verifier.claims(token(STRANGER, kid="three"))
    verifier._read_at -= 61  # a minute later
    assert verifier.claims(token(STRANGER, kid="three"))["sub"] == "dpi"
    with pytest.raises(Unauthenticated):
        verifier.claims(token(RSA, kid="one"))


def test_a_token_checked_lately_is_known_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(ISSUER, AUDIENCE, jwks(tmp_path, one=RSA))
    short, now = token(exp=time.time() + 60), time.time()
    assert verifier.lately(short) is None
    claims = verifier.claims(short)
    assert verifier.lately(short) == claims == verifier.claims(short)
    assert verifier.lately(short[:-1]) is None and verifier.lately(short[:-4] + "AAAA") is None
    monkeypatch.setattr(time, "time", lambda: now + 60 + tokens.LEEWAY_SECONDS + 2)
    assert verifier.lately(short) is None


def test_no_token_is_known_for_longer_than_some_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = Verifier(ISSUER, AUDIENCE, jwks(tmp_path, one=RSA))
    long, now = token(exp=time.time() + 86_400), time.time()
    verifier.claims(long)
    monkeypatch.setattr(time, "time", lambda: now + tokens.LATELY_SECONDS + 2)
    assert verifier.lately(long) is None and verifier.claims(long)["sub"] == "dpi"


def test_a_key_the_issuer_withdrew_is_not_known_any_more(tmp_path: Path) -> None:
    verifier = Verifier(ISSUER, AUDIENCE, jwks(tmp_path, one=RSA))
    old = token(RSA, kid="one")
    assert verifier.claims(old) and verifier.lately(old)
    jwks(tmp_path, three=STRANGER)
    verifier._read_at -= 61
    assert verifier.claims(token(STRANGER, kid="three"))
    assert verifier.lately(old) is None
    with pytest.raises(Unauthenticated):
        verifier.claims(old)


def test_only_so_many_tokens_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LATELY", 4)
    verifier = Verifier(ISSUER, AUDIENCE, jwks(tmp_path, one=RSA))
    made = [token(jti=str(number)) for number in range(20)]
    for one in made:
        verifier.claims(one)
        assert verifier.lately(one) is not None and len(verifier._lately) <= 4


def test_only_software_is_known_without_a_look_up(hub: Hub, gate: Gate) -> None:
    software, person = token(), token(fhirUser="PractitionerRole/garnier")
    for one in (software, person):
        assert not at_hand(gate, {"authorization": f"Bearer {one}"})
        called(hub, gate, one)
    assert at_hand(gate, {"authorization": f"Bearer {software}"}) and at_hand(gate, {})
    assert not at_hand(gate, {"authorization": f"Bearer {person}"})
    assert not at_hand(gate, {"authorization": "Bearer nonsense"}) and not at_hand(gate, {"authorization": "Basic x"})


def test_keys_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    symmetric = tmp_path / "oct.json"
    symmetric.write_text(json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "x"}]}))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for source, word in (
        (str(tmp_path / "nowhere.json"), "no JWK set"),
        (str(broken), "no JWK set"),
        (str(symmetric), "no public signing key"),
        ("http://auth.example.org/jwks", "loopback"),
        ("http://127.0.0.1:9/jwks", "no JWK set"),
    ):
        with pytest.raises(ConfigError, match=word):
            keys_of(source)


def test_a_server_starts_with_smart_only_when_it_knows_the_issuer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="auth_issuer, auth_audience, auth_jwks"):
        Server(Settings(data_dir=str(tmp_path), sites=SITES))
    known = Settings(
        data_dir=str(tmp_path),
        sites=SITES,
        auth_issuer=ISSUER,
        auth_audience=AUDIENCE,
        auth_jwks=jwks(tmp_path, one=RSA),
    )
    assert Server(known).gate.verifier is not None


# --- rights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        ("system/Patient.rs", "Patient:rs"),
        ("user/*.cruds", "*:cdrsu"),
        ("user/Observation.read", "Observation:rs"),
        ("system/Task.write", "Task:cdu"),
        ("system/Task.*", "Task:cdrsu"),
        ("patient/Patient.rs", ""),
        ("user/Observation.rs?category=laboratory", ""),
        ("system/Patient.sr", ""),
        ("system/Patient.", ""),
        ("system/patient.r", ""),
        ("openid fhirUser launch", ""),
    ],
)
def test_a_scope_grants_what_it_says_and_no_more(scope: str, granted: str) -> None:
    found = scopes.rights(scope.split())
    by_type = {kind: "".join(sorted(letter for one, letter in found if one == kind)) for kind, _ in found}
    assert ",".join(f"{kind}:{letters}" for kind, letters in by_type.items()) == granted


def ask(
    hub: Hub, rights: str, method: str, path: str, body: Any = None, query: tuple[tuple[str, str], ...] = ()
) -> int:
    caller = Caller("", "x", frozenset({"partner"}), channel="http", rights=scopes.rights(rights.split()))
    headers = {"content-type": "application/fhir+json"}
    data = json.dumps(body).encode() if body is not None else b""
    return routes.answer(hub, Request(method, path, query, headers, data, caller, "http://x/fhir", {})).status


PATIENT = {"resourceType": "Patient", "id": "patient-01", "active": True}


@pytest.mark.parametrize(
    ("rights", "method", "path", "status"),
    [
        ("user/Patient.r", "GET", "/Patient/patient-01", 200),
        ("user/Patient.s", "GET", "/Patient/patient-01", 403),
        ("user/Patient.r", "GET", "/Patient", 403),
        ("user/Patient.s", "GET", "/Patient", 200),
        ("user/Patient.s", "POST", "/Patient/_search", 415),
        ("user/Task.rs", "GET", "/Patient/patient-01/_history", 403),
        ("user/Patient.r", "GET", "/Patient/patient-01/_history/1", 200),
        ("user/Patient.rs", "GET", "/_history", 403),
        ("user/*.s", "GET", "/_history", 200),
        ("user/Patient.rs", "GET", "/AuditEvent", 403),
        ("user/Patient.rs", "DELETE", "/Patient/patient-01", 403),
        ("user/Patient.rs", "POST", "/Patient", 403),
        ("user/Patient.cr", "PUT", "/Patient/patient-01", 403),
        ("user/Basic.u", "PUT", "/Basic/b", 201),
        ("", "GET", "/metadata", 200),
    ],
)
def test_rights_hold_for_each_interaction(hub: Hub, rights: str, method: str, path: str, status: int) -> None:
    basic = {"resourceType": "Basic", "id": "b", "code": {"text": "x"}}
    body = None if method not in ("POST", "PUT") else basic if "Basic" in path else PATIENT
    assert ask(hub, rights, method, path, body) == status


@pytest.mark.parametrize(
    "query",
    [
        ("_include", "Patient:organization"),
        ("_has:Task:patient:status", "ready"),
        ("organization.name", "x"),
        ("_filter", "organization.name eq x"),
        ("_filter", "not (organization[name eq x].address eq y)"),
        ("_list", "x"),
        ("_sort", "organization.name"),
        ("_contained", "true"),
    ],
)
def test_a_search_that_looks_at_other_types_needs_rights_on_all(hub: Hub, query: tuple[str, str]) -> None:
    assert ask(hub, "user/Patient.rs", "GET", "/Patient", None, (query,)) == 403
    assert ask(hub, "user/*.rs", "GET", "/Patient", None, (query,)) != 403


def conditional(hub: Hub, rights: str, form: str, condition: str, kind: str = "") -> int:
    """The status of one conditional interaction on Basic; in a Bundle of a kind, or by itself."""
    method, _, way = form.partition(" ")
    basic: dict[str, Any] = {"resourceType": "Basic", "code": {"text": "x"}}
    told: dict[str, Any] = {"method": method, "url": "Basic" if way == "none" else f"Basic?{condition}"}
    headers = {"content-type": "application/fhir+json"}
    if way == "none":
        told["ifNoneExist"] = headers["if-none-exist"] = condition
    elif way == "reference":
        told["url"] = "Basic"
        basic["subject"] = {"reference": f"Patient?{condition}"}
    caller = Caller("", "x", frozenset({"partner"}), channel="http", rights=scopes.rights(rights.split()))
    patch = [{"op": "replace", "path": "/code/text", "value": "y"}]
    if kind:
        content = basic
        if method == "PATCH":
            data = base64.b64encode(json.dumps(patch).encode()).decode()
            content = {"resourceType": "Binary", "contentType": "application/json-patch+json", "data": data}
        entry = {"request": told} | ({} if method == "DELETE" else {"resource": content})
        body = json.dumps({"resourceType": "Bundle", "type": kind, "entry": [entry]}).encode()
        answer = routes.answer(hub, Request("POST", "/", (), headers, body, caller, "http://x/fhir", {}))
        told_back = json.loads(answer.body)
        return int(told_back["entry"][0]["response"]["status"][:3]) if answer.status == 200 else answer.status
    if method == "PATCH":
        headers["content-type"] = "application/json-patch+json"
    query = () if way in ("none", "reference") else (tuple(condition.split("=")),)
    body = b"" if method == "DELETE" else json.dumps(patch if method == "PATCH" else basic).encode()
    request = Request(method, "/Basic", query, headers, body, caller, "http://x/fhir", {})  # type: ignore[arg-type]  # a pair as a plain tuple
    return routes.answer(hub, request).status


@pytest.mark.parametrize("kind", ["", "batch", "transaction"])
@pytest.mark.parametrize("form", ["POST none", "POST reference", "PUT", "PATCH", "DELETE"])
def test_a_condition_is_a_search_and_needs_the_right_to_search(hub: Hub, form: str, kind: str) -> None:
    letter = {"POST": "c", "PUT": "u", "PATCH": "u", "DELETE": "d"}[form.partition(" ")[0]]
    searched = "Patient" if form == "POST reference" else "Basic"
    for condition in ("_id=patient-01", "_id=nobody"):  # the answer must not tell which of them is there
        assert conditional(hub, f"user/Basic.{letter} user/Basic.r", form, condition, kind) == 403
    may = f"user/Basic.{letter} user/{searched}.s"
    assert conditional(hub, may, form, "_id=patient-01", kind) in (200, 201, 204, 404)
    chain = "organization.name=x" if searched == "Patient" else "author:Patient.name=x"
    assert conditional(hub, may, form, chain, kind) == 403
    everything = f"user/Basic.{letter} user/*.s"
    assert conditional(hub, everything, form, chain, kind) != 403


@pytest.mark.parametrize("kind", ["transaction", "batch"])
def test_a_bundle_is_no_way_around(hub: Hub, kind: str) -> None:
    def bundle(method: str, url: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"request": {"method": method, "url": url}}
        if method in ("PUT", "POST"):
            entry["resource"] = PATIENT
        return {"resourceType": "Bundle", "type": kind, "entry": [entry]}

    for method, url in (("PUT", "Patient/patient-01"), ("DELETE", "Patient/patient-01"), ("GET", "Patient/patient-01")):
        caller = Caller("", "x", frozenset({"partner"}), channel="http", rights=scopes.rights(["user/Task.cruds"]))
        data = json.dumps(bundle(method, url)).encode()
        headers = {"content-type": "application/fhir+json"}
        answer = routes.answer(hub, Request("POST", "/", (), headers, data, caller, "http://x/fhir", {}))
        told = json.loads(answer.body)
        inner = told.get("entry", [{}])[0].get("response", {}).get("status", "")
        assert answer.status == 403 or inner == "403", told
    assert ask(hub, "user/*.r", "GET", "/Patient/patient-01") == 200


# --- the operator ----------------------------------------------------------------------------------------------------


def test_the_operators_api_takes_the_role_admin(hub: Hub, gate: Gate) -> None:
    closed = dataclasses.replace(hub, settings=gate.settings)
    headers = {"content-type": "application/json"}
    for claims, status in (({"roles": ["admin"]}, 200), ({"roles": ["expert"]}, 403), ({}, 403)):
        caller = called(hub, gate, token(**claims))
        assert admin.answer(closed, Request("POST", "/inbox-list", (), headers, b"{}", caller, "", {})).status == status
        assert admin.metrics(closed, Request("GET", "/", (), {}, b"", caller, "", {})).status == status


def test_the_command_line_of_the_machine_is_known_by_the_locks_token(hub: Hub, gate: Gate) -> None:
    def local(text: str, peer: str = "127.0.0.1") -> Caller:
        return http_caller(hub.store, gate, {"authorization": f"passerelle-local {text}", "x-operator": "marie"}, peer)

    assert local("local").roles == {"admin"} and local("local", "::1").display == "marie (ligne de commande)"
    for wrong in (
        lambda: local("other"),
        lambda: local(""),
        lambda: local("local", "192.0.2.1"),
        lambda: local("local", ""),
    ):
        with pytest.raises(PasserelleError) as refused:
            wrong()
        assert isinstance(refused.value, Unauthenticated | Forbidden)
    with pytest.raises(Unauthenticated):
        http_caller(hub.store, Gate(gate.settings), {"authorization": "passerelle-local "}, "127.0.0.1")


# --- a server that listens -------------------------------------------------------------------------------------------


def test_a_server_with_smart_answers_who_shows_a_token_and_nobody_else(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=str(tmp_path / "data"),
        sites=SITES,
        auth_issuer=ISSUER,
        auth_audience=AUDIENCE,
        auth_jwks=jwks(tmp_path, one=RSA),
        http_port=0,
        mllp_port=0,
        dicom_port=0,
    )
    server = Server(settings)
    ports = server.start()

    def status(path: str, text: str = "", method: str = "GET") -> int:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {text}"} if text else {})
        message = urllib.request.Request(f"http://127.0.0.1:{ports.http}{path}", headers=headers, method=method)
        message.data = b"{}" if method == "POST" else None
        try:
            with urllib.request.urlopen(message, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code

    try:
        assert (status("/livez"), status("/fhir/metadata")) == (200, 200)
        for path in ("/fhir/Organization/ch-demo", "/fhir/Organization", "/dicomweb/studies", "/metrics"):
            assert status(path) == 401, path
        reader = token(scope="system/Organization.rs")
        assert status("/fhir/Organization/ch-demo", reader) == 200
        assert status("/fhir/Patient", reader) == 403
        assert status("/dicomweb/studies/1.2.3/metadata", reader) == 403
        assert status("/metrics", reader) == 403 and status("/metrics", token(roles=["admin"])) == 200
        assert status("/admin/inbox-list", reader, "POST") == 403
        assert status("/admin/inbox-list", token(roles=["admin"]), "POST") == 200
        assert status("/fhir/Organization/ch-demo", token(exp=1)) == 401
        assert (status("/pull"), status("/pull", token())) == (401, 403)
        assert status("/pull", token(client_id="CH-NORD")) == 404, "nothing was addressed to it yet"
        assert status("/pull", "pull:CH-NORD") == 401, "the demo's way in is the demo's"
        listed = desk.operate(settings, "inbox-list", {})
        assert listed == []
    finally:
        server.close()
