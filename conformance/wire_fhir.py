"""A small FHIR client over `http.client`: one request, one answer, numbers kept as they were written.

Hides HTTP connections, time limits, body limits and JSON number lexemes. Independent of the product's own code, so that
a mistake of the one is not repeated by the other.

https://hl7.org/fhir/R4/http.html, https://hl7.org/fhir/R4/json.html, RFC 9110
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import select
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from conformance.verdict import Deadline, Failed, NoAnswer, Skipped, Transcript, Unreachable, expect

MEDIA_TYPE = "application/fhir+json"
OUTCOME = "https://hl7.org/fhir/R4/operationoutcome.html"
SEVERITIES = {"fatal", "error", "warning", "information"}
BODY_LIMIT = 8 * 1024 * 1024
_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9.\-]{1,64})(?:/_history/([A-Za-z0-9.\-]{1,64}))?/?$")


@dataclass(frozen=True, slots=True)
class Lexeme:
    """A JSON number with a fraction or an exponent, spelled as on the wire: `72.50` is not `72.5`."""

    text: str

    def same_precision(self, other: object) -> bool:
        """True when value and precision agree, whatever the notation: 0.000000100 is 1.00E-7."""
        return isinstance(other, Lexeme) and Decimal(self.text).as_tuple() == Decimal(other.text).as_tuple()


@dataclass(frozen=True, slots=True)
class Address:
    """The service base URL, split."""

    host: str
    port: int
    path: str
    tls: bool

    def __str__(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; raises `Failed` when it is none."""
        try:
            value = from_json(self.body)
        except (ValueError, RecursionError) as error:
            raise Failed("a body in JSON", f"{error}: {self.body[:120]!r}") from None
        if not isinstance(value, dict):
            raise Failed("a JSON object", f"{self.body[:120]!r}")
        return value

    def expect(self, *statuses: int, why: str = "") -> Answer:
        """This answer, when its status is one of `statuses`; raises `Failed` otherwise."""
        wanted = " or ".join(str(one) for one in statuses)
        expect(self.status in statuses, f"status {wanted}{why and f' ({why})'}", f"{self.status} {self.body[:160]!r}")
        return self

    def resource(self, kind: str) -> dict[str, Any]:
        """The body as a resource of type `kind`; raises `Failed` when it is something else."""
        value = self.json()
        expect(value.get("resourceType") == kind, f"a {kind} in the body", value.get("resourceType", "no resourceType"))
        return value

    def outcome(self) -> dict[str, Any]:
        """The body as an OperationOutcome with at least one issue that says severity and code."""
        value = self.resource("OperationOutcome")
        issues = value.get("issue")
        expect(isinstance(issues, list) and issues, "an OperationOutcome with issues", issues, clause=OUTCOME)
        for one in issues if isinstance(issues, list) else []:
            known = isinstance(one, dict) and one.get("severity") in SEVERITIES and one.get("code")
            expect(known, "an issue with severity and code", one, clause=OUTCOME)
        return value

    @property
    def version(self) -> str:
        """The version of the ETag header, without `W/` and quotes; '' when there is none."""
        found = re.fullmatch(r'(?:W/)?"([^"]+)"', self.headers.get("etag", "").strip())
        return found.group(1) if found else ""

    def location(self) -> tuple[str, str, str]:
        """Type, id and version of the Location header; '' for what it lacks."""
        return split_location(self.headers.get("location", ""))


@dataclass(frozen=True, slots=True)
class Made:
    """A resource that a check put there to work on."""

    type: str
    id: str
    version: str

    @property
    def path(self) -> str:
        return f"{self.type}/{self.id}"


def from_json(data: bytes) -> Any:
    """JSON text, UTF-8, to Python values; numbers with a fraction or an exponent become `Lexeme`."""
    return json.loads(data.decode("utf-8"), parse_float=Lexeme, parse_constant=_no_constant)


def to_json(value: object) -> bytes:
    """Python values to JSON text, UTF-8; a `Lexeme` is written as it stands."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=lambda n: f"\ue000{n.text}\ue001")
    return re.sub('"\ue000([^"\ue001]*)\ue001"', r"\1", text).encode()


def split_location(url: str) -> tuple[str, str, str]:
    """Type, id and version named by a URL such as `http://x/fhir/Patient/1/_history/2`; '' for what it lacks."""
    found = _LOCATION.search(url)
    return (found.group(1), found.group(2), found.group(3) or "") if found else ("", "", "")


def differences(sent: object, got: object, path: str = "") -> Iterator[str]:
    """What `got` lost or changed of `sent`, one sentence each; what it added is no difference."""
    if isinstance(sent, dict):
        if not isinstance(got, dict):
            yield f"{path}: not an object but {got!r}"
            return
        for name, value in sent.items():
            here = f"{path}.{name}" if path else name
            if name not in got:
                yield f"{here} is gone"
            else:
                yield from differences(value, got[name], here)
    elif isinstance(sent, list):
        if not isinstance(got, list) or len(got) != len(sent):
            yield f"{path}: not a list of {len(sent)} but {got!r}"
            return
        for index, value in enumerate(sent):
            yield from differences(value, got[index], f"{path}[{index}]")
    elif isinstance(sent, Lexeme):
        if not sent.same_precision(got):
            yield f"{path}: {sent.text} came back as {got.text if isinstance(got, Lexeme) else repr(got)}"
    elif sent != got or type(sent) is not type(got):
        yield f"{path}: {sent!r} came back as {got!r}"


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


@dataclass(slots=True)
class Client:
    """Speaks to one service base URL over one connection at a time, opened again when the server closed it.

    `timeout` bounds one whole answer, in seconds, a trickled one too.
    """

    address: Address
    timeout: float
    deadline: Deadline
    transcript: Transcript
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    made: list[str] = field(default_factory=list)
    _open: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request; `path` is relative to the base, or a link the server gave.

        `body`: bytes go as they are, other values as JSON. Raises `Unreachable` when no connection can be made,
        `NoAnswer` when the server hangs up, stays silent or sends more than 8 MiB.
        """
        data = body if isinstance(body, bytes) or body is None else to_json(body)
        url = self._url(path)
        # The user's headers come last but one: a check may override anything but must not lose the login.
        all_headers = {"Accept": MEDIA_TYPE, **self.headers}
        if data is not None:
            all_headers["Content-Type"] = MEDIA_TYPE
        all_headers.update(headers or {})
        told = "".join(f"\n{name}: {value}" for name, value in (headers or {}).items())
        self.transcript.sent(f"{method} {url}{told}\n{(data or b'')[:8000].decode('utf-8', 'replace')}".rstrip())
        answer = self._exchange(method, url, data, all_headers)
        shown = "".join(f"\n{n}: {answer.headers[n]}" for n in _SHOWN if n in answer.headers)
        self.transcript.received(f"{answer.status}{shown}\n{answer.body[:8000].decode('utf-8', 'replace')}".rstrip())
        self._remember(answer)
        return answer

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET `path`."""
        return self.request("GET", path, None, headers)

    def prepare(self, resource: Mapping[str, Any]) -> Made:
        """Create a resource to work on, leniently: how well it is created is another check's business.

        Raises `Skipped` when it cannot be had.
        """
        kind = str(resource["resourceType"])
        answer = self.request("POST", kind, dict(resource))
        if not 200 <= answer.status < 300:
            raise Skipped(f"no {kind} to work on could be created: POST answered {answer.status}")
        _, rid, version = answer.location()
        if not rid or not version:
            with contextlib.suppress(Failed):
                stored = answer.json()
                rid = rid or str(stored.get("id", ""))
                version = version or str(stored.get("meta", {}).get("versionId", ""))
        if not rid:
            raise Skipped(f"the answer to the POST of a {kind} does not tell its id")
        return Made(kind, rid, version or answer.version)

    def clean_up(self, seconds: float = 5.0) -> None:
        """Delete what the checks created, as far as the server lets us; never raises."""
        deadline = Deadline.after(seconds)
        for path in reversed(self.made):
            try:
                self._exchange("DELETE", f"{self.address.path}/{path}", None, dict(self.headers), deadline)
            except Exception:
                break
        self.close()

    def another(self) -> Client:
        """A second client of the same server, with a connection of its own."""
        return Client(self.address, self.timeout, self.deadline, self.transcript, self.headers, self.tls)

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _url(self, path: str) -> str:
        if not re.match("https?://|/", path):
            return f"{self.address.path}/{path}" if path else self.address.path or "/"
        # A server behind a proxy may know itself by another host: keep path and query, stay on the host the user
        # named, so that a link can never carry the user's token elsewhere.
        link = urlsplit(path)
        if not link.path.startswith(self.address.path):
            raise Failed(f"a link below {self.address}", path)
        return link.path + (f"?{link.query}" if link.query else "")

    def _remember(self, answer: Answer) -> None:
        kind, rid, _ = answer.location()
        if answer.status == 201 and kind and rid:
            self.made.append(f"{kind}/{rid}")

    def _exchange(
        self, method: str, url: str, data: bytes | None, headers: Mapping[str, str], deadline: Deadline | None = None
    ) -> Answer:
        until = (deadline or self.deadline).within(self.timeout)
        if self._open is not None and select.select([self._open.sock], [], [], 0)[0]:
            self.close()  # readable while idle: the server has hung up, which says nothing about the next request
        return self._once(method, url, data, headers, until)

    def _once(self, method: str, url: str, data: bytes | None, headers: Mapping[str, str], until: Deadline) -> Answer:
        connection = self._open or self._connect(until)
        self._open = None
        sock = connection.sock
        expired = threading.Event()

        def cut() -> None:
            expired.set()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        # http.client limits each read, not the answer: a timer ends a trickled one.
        timer = threading.Timer(until.remaining(), cut)
        timer.daemon = True
        timer.start()
        try:
            connection.request(method, url, body=data, headers=dict(headers))
            response = connection.getresponse()
            body = response.read(BODY_LIMIT + 1)
            kept = not response.will_close and len(body) <= BODY_LIMIT
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            why = f"silence for {self.timeout:g} s" if expired.is_set() else f"{type(error).__name__}: {error}"
            self.transcript.received(why)
            raise NoAnswer("an HTTP answer", why, hint="Does the server log an exception for this request?") from None
        finally:
            timer.cancel()
        if kept:
            self._open = connection
        else:
            connection.close()
        if len(body) > BODY_LIMIT:
            raise NoAnswer(f"an answer of at most {BODY_LIMIT} bytes", "more")
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def _connect(self, until: Deadline) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        connection: http.client.HTTPConnection
        if self.address.tls:
            connection = http.client.HTTPSConnection(host, port, timeout=until.remaining(), context=self.tls)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=until.remaining())
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise Unreachable(f"no connection to {self.address}: {error}") from None
        connection.sock.settimeout(None)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


_SHOWN = ("content-type", "location", "etag", "last-modified")
