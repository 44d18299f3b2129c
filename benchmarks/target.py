"""What is measured over HTTP: an address to send to, and the outcome of sending.

`Target` is what a topic drives: a FHIR server, or the limit (the same rows through the same driver, no FHIR around).
"""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

_HEAD = (
    b"%s %s HTTP/1.1\r\nhost: %s\r\naccept: application/fhir+json\r\n"
    b"content-type: application/fhir+json\r\ncontent-length: %d\r\n\r\n"
)
_BARE = b"%s %s HTTP/1.1\r\nhost: %s\r\naccept: application/fhir+json\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Address:
    """A FHIR base URL, taken apart. `path` has no slash at its end."""

    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> Address:
        """Raises ValueError for what is no http URL on this machine: a load test stays on loopback."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ValueError(f"{url}: a peer is an http URL on loopback, such as http://127.0.0.1:8080/fhir")
        return cls(
            "127.0.0.1" if parts.hostname == "localhost" else parts.hostname, parts.port or 80, parts.path.rstrip("/")
        )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}{self.path}"

    def request(self, method: bytes, path: bytes, body: bytes | None = None) -> bytes:
        """The bytes of a request; `path` follows the base (`/Patient/1`), a query too."""
        host = b"%s:%d" % (self.host.encode(), self.port)
        whole = self.path.encode() + path
        if body is None:
            return _BARE % (method, whole, host)
        return _HEAD % (method, whole, host, len(body)) + body

    def relative(self, location: bytes) -> bytes:
        """`/Patient/1` of a Location header, absolute or not, with or without a version."""
        path = urlsplit(location.decode("latin-1")).path
        parts = path.split("/_history/")[0].rstrip("/").split("/")
        return ("/" + "/".join(parts[-2:])).encode()


@dataclass(slots=True)
class Outcome:
    """What came back, in seconds: `times`, one an answer; `wall`; processor time of the generator (`cpu`) and of the
    server's own processes (`served`, 0 when they cannot be seen). `weight` counts successes, by what each was worth."""

    times: array[float] = field(default_factory=lambda: array("d"))
    wall: float = 0.0
    cpu: float = 0.0
    served: float = 0.0
    weight: int = 0
    failures: int = 0
    first_failure: str = ""
    locations: list[str] = field(default_factory=list)

    def fail(self, answer: bytes) -> None:
        """Count an answer that was no success; the first one's text is kept."""
        self.failures += 1
        if not self.first_failure:
            status, _, rest = answer.partition(b"\r\n")
            body = rest.partition(b"\r\n\r\n")[2] or rest
            self.first_failure = f"{status.decode('latin-1')} {body[:400].decode('utf-8', 'replace')}".strip()

    @property
    def rate(self) -> float:
        """Successes a second."""
        return self.weight / self.wall if self.wall else 0.0


@dataclass(slots=True)
class Series:
    """The outcomes of the rounds of one target under one number of clients."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The median of the rounds."""
        return statistics.median(outcome.rate for outcome in self.outcomes) if self.outcomes else 0.0

    @property
    def low(self) -> float:
        return min(outcome.rate for outcome in self.outcomes)

    @property
    def high(self) -> float:
        return max(outcome.rate for outcome in self.outcomes)

    @property
    def failures(self) -> int:
        return sum(outcome.failures for outcome in self.outcomes)

    @property
    def answers(self) -> int:
        return sum(len(outcome.times) for outcome in self.outcomes)

    @property
    def first_failure(self) -> str:
        return next((outcome.first_failure for outcome in self.outcomes if outcome.first_failure), "")

    @property
    def cpu_share(self) -> float:
        """The part of one core that the generator used, over all rounds."""
        wall = sum(outcome.wall for outcome in self.outcomes)
        return sum(outcome.cpu for outcome in self.outcomes) / wall if wall else 0.0

    @property
    def served(self) -> float:
        """Processor seconds of the server for one success (or one stored resource), its database not counted."""
        weight = sum(outcome.weight for outcome in self.outcomes)
        return sum(outcome.served for outcome in self.outcomes) / weight if weight else 0.0

    def percentiles(self, *wanted: int) -> list[float]:
        """Over the answers of all rounds together, in seconds."""
        times = sorted(time for outcome in self.outcomes for time in outcome.times)
        if not times:
            return [0.0 for _ in wanted]
        return [times[min(len(times) - 1, int(len(times) * percent / 100))] for percent in wanted]


class Target(Protocol):
    """Something a topic can drive."""

    @property
    def name(self) -> str: ...

    def run(self, work: str, clients: int, seconds: float) -> Outcome:
        """Do a kind of work (`read`, `create`...) with so many clients for so long."""
        ...

    def load(self, bundles: Sequence[bytes], clients: int) -> Outcome:
        """Store transaction Bundles once each; the outcome's weight is how many resources were stored."""
        ...
