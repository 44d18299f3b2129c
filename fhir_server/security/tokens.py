"""Access tokens of `auth=smart`: signed JWTs (RFC 9068 style) of one issuer, checked without asking it.

The issuer's public keys come from a file or an https:// address, read when the server starts, and again when a token
names a key nobody knows (at most once a minute), so that a key change needs no restart. Symmetric algorithms and
`none` are never accepted. Sources: RFC 7519, RFC 7517, RFC 9068, RFC 8725 (JWT best practice).
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from fhir_server.config import ConfigError, Settings, is_loopback
from fhir_server.errors import Unauthenticated, Unavailable

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY_SECONDS = 30
LONGEST_TOKEN = 16 * 1024
# Tokens whose signature was checked lately are not computed again: so many, for so long at most.
LATELY, LATELY_SECONDS = 2048, 300.0
_KEYS_BYTES, _KEYS_SECONDS, _AGAIN_SECONDS = 1 << 20, 10.0, 60.0


class Verifier:
    """Checks tokens of one issuer. Safe to use from any thread."""

    def __init__(self, issuer: str, audience: str, source: str) -> None:
        """Reads the keys. Raises ConfigError when they cannot be had."""
        self.issuer = issuer
        self.audience = audience
        self._source = source
        self._lock = threading.Lock()
        self._keys = keys_of(source)
        self._read_at = time.monotonic()
        self._lately: dict[bytes, tuple[float, dict[str, jwt.PyJWK], Mapping[str, Any]]] = {}

    def lately(self, token: str) -> Mapping[str, Any] | None:
        """The claims of a token that was checked a short time ago, with the keys of now, and has not expired since;
        None for any other, which may be good or not."""
        found = self._lately.get(_digest(token))
        if found is None:
            return None
        until, keys, claims = found
        return claims if time.time() < until and keys is self._keys else None

    def _remember(self, token: str, keys: dict[str, jwt.PyJWK], claims: Mapping[str, Any]) -> None:
        now = time.time()
        until = min(float(claims["exp"]) + LEEWAY_SECONDS, now + LATELY_SECONDS)
        with self._lock:
            if len(self._lately) >= LATELY:
                kept = [item for item in self._lately.items() if item[1][0] > now and item[1][1] is self._keys]
                self._lately = dict(kept[-LATELY // 2 :])
            self._lately[_digest(token)] = until, keys, claims

    def claims(self, token: str) -> Mapping[str, Any]:
        """The claims of a valid token. Raises Unauthenticated (401) with the reason."""
        if len(token) > LONGEST_TOKEN:
            raise Unauthenticated("the access token is too long")
        known = self.lately(token)
        if known is not None:
            return known
        keys = self._keys
        try:
            head = jwt.get_unverified_header(token)
            if head.get("alg") not in ALGORITHMS:
                raise Unauthenticated(f"access tokens are signed with one of {', '.join(ALGORITHMS)}")
            key = self._key(str(head.get("kid", "")))
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name or str(head["alg"])],
                issuer=self.issuer,
                audience=self.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
            if keys is self._keys:  # else its key was read this moment: the next time will tell
                self._remember(token, keys, claims)
            return claims
        except jwt.PyJWTError as fault:
            raise Unauthenticated(f"the access token is not accepted: {fault}") from fault

    def _key(self, kid: str) -> jwt.PyJWK:
        """The key a token names; one without a name is accepted when there is only one key."""
        key = self._named(kid)
        if key is None:
            self._read_again()
            key = self._named(kid)
        if key is None:
            raise Unauthenticated(f"the access token is signed with a key `{kid[:64]}` its issuer does not publish")
        return key

    def _named(self, kid: str) -> jwt.PyJWK | None:
        if not kid:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _read_again(self) -> None:
        with self._lock:
            if time.monotonic() - self._read_at < _AGAIN_SECONDS:
                return
            self._read_at = time.monotonic()
            try:
                self._keys = keys_of(self._source)
            except ConfigError as fault:
                raise Unavailable(f"the keys of the tokens' issuer cannot be read: {fault}") from fault


def _digest(token: str) -> bytes:
    """What a token is remembered by: no token lies in memory for longer than its request."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def verifier_of(settings: Settings) -> Verifier | None:
    """The verifier the settings name; None with auth=none. Raises ConfigError when its keys cannot be had."""
    if settings.auth != "smart":
        return None
    return Verifier(settings.auth_issuer, settings.auth_audience, settings.auth_jwks)


def keys_of(source: str) -> dict[str, jwt.PyJWK]:
    """The public signing keys of a JWK set by their `kid`. Raises ConfigError."""
    try:
        told = json.loads(_fetched(source))
        keys = [
            jwt.PyJWK.from_dict(one)
            for one in told["keys"]
            if one.get("use", "sig") == "sig" and one.get("kty") in ("RSA", "EC", "OKP")
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, jwt.PyJWTError) as fault:
        raise ConfigError(f"auth_jwks {source}: no JWK set can be read there ({fault})") from fault
    found = {key.key_id or f"#{number}": key for number, key in enumerate(keys)}
    if not found:
        raise ConfigError(f"auth_jwks {source}: the set has no public signing key (RSA, EC or OKP)")
    return found


def _fetched(source: str) -> bytes:
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https"):
        return Path(source.removeprefix("file://")).read_bytes()
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"auth_jwks {source}: keys are fetched over https; http is for loopback only")
    with urllib.request.urlopen(source, timeout=_KEYS_SECONDS) as answer:
        data: bytes = answer.read(_KEYS_BYTES + 1)
    if len(data) > _KEYS_BYTES:
        raise ValueError("it is too large")
    return data
