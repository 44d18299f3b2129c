"""Content in a bucket of an S3-compatible store.

Every put makes an object of its own, `ab/SHA256/NUMBER`, with a number drawn for it: an object is never replaced and
nothing is ever put under the name of one that a clean-up is removing, so the two need no lock, on however many hosts.
What was put some minutes ago is not put again; the clean-up spares what is younger than a day. An upload that a crash
cut off leaves no object; a lifecycle rule of the bucket may end its parts.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html, https://developmentseed.org/obstore
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import S3Store

from fhir_server import errors
from fhir_server.config import Settings
from fhir_server.store.blob_place import Copy, Sound, copy_of

FRESH_SECONDS = 600.0
GET = 8 << 20
_PART, _AT_ONCE = 8 << 20, 4
_REMEMBERED = 10_000
_OWNER = "installation"
_NO_BUCKET = "<Code>NoSuchBucket</Code>"
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]{0,40})")


def connect(settings: Settings) -> Bucket:
    """The bucket `blob_url` names; nothing is asked of it yet.

    Without keys the environment (AWS_*) or the machine's role says who we are. `blob_timeout_seconds` bounds how long
    the store may be silent, and how long what failed is tried again.
    """
    parts = urlsplit(settings.blob_url)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint, prefix = asked.get("endpoint", ""), unquote(parts.path).strip("/")
    pause = timedelta(seconds=settings.blob_timeout_seconds)
    options: dict[str, Any] = {
        "timeout": pause * 4,
        "read_timeout": pause,
        "connect_timeout": min(pause, timedelta(seconds=5)),
        "allow_http": endpoint.startswith("http://"),
    }
    if settings.client_authorities:
        options["root_certificate"] = Path(settings.client_authorities).read_bytes()
    config: dict[str, Any] = {
        "disable_bulk_delete": True,  # DELETE of one object is what every such store offers
        "endpoint": endpoint,
        "region": asked.get("region", "us-east-1"),
        "access_key_id": settings.blob_access_key,
        "secret_access_key": settings.blob_secret_key,
    }
    store = S3Store(
        parts.netloc,
        prefix=prefix or None,
        config={name: value for name, value in config.items() if value},  # type: ignore[arg-type]
        client_options=options,  # type: ignore[arg-type]
        retry_config={"max_retries": 3, "retry_timeout": pause},
    )
    return Bucket(store, f"s3://{parts.netloc}/{prefix}".rstrip("/"))


@dataclass(frozen=True, slots=True)
class Bucket:
    """An open bucket; `told` is its name in messages. `lately` remembers what this process put, by content and
    ending, and when (monotonic seconds)."""

    store: S3Store
    told: str
    lately: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)

    def claim(self, owner: str) -> str:
        """The object `installation` says whose the prefix is. Of two that begin at once one finds the other's at its
        next look."""
        with self._asking():
            try:
                return self._owner()
            except FileNotFoundError:
                self.store.put(_OWNER, owner.encode("ascii"))
                return self._owner()

    def _owner(self) -> str:
        return bytes(self.store.get(_OWNER).bytes()).decode("ascii", "replace").strip()

    def copies(self, sha256: str) -> list[Copy]:
        with self._asking():
            return [copy for page in self.store.list(f"{sha256[:2]}/{sha256}") for copy in _seen(page)]

    def walk(self) -> Iterator[list[Copy]]:
        """S3 lists in order of name, so the copies of one content stand together."""
        with self._asking():
            copies = (copy for page in self.store.list(chunk_size=1000) for copy in _seen(page))
            for _, group in groupby(copies, key=lambda copy: copy.sha256):
                yield list(group)

    def renew(self, sha256: str, ending: str, sound: Sound) -> bool:
        if time.monotonic() - self.lately.get((sha256, ending), -FRESH_SECONDS) < FRESH_SECONDS:
            return True
        oldest = time.time() - FRESH_SECONDS
        return any(copy.ending == ending and copy.put_at > oldest and sound(copy) for copy in self.copies(sha256))

    def write(self, sha256: str, ending: str, pieces: Iterable[bytes]) -> None:
        self._upload(sha256, ending, iter(pieces))

    def take(self, sha256: str, path: Path) -> None:
        self._upload(sha256, "", path)
        path.unlink()

    def _upload(self, sha256: str, ending: str, content: Iterator[bytes] | Path) -> None:
        name = f"{sha256[:2]}/{sha256}/{secrets.token_hex(8)}{ending}"
        began = time.monotonic()
        with self._asking():
            self.store.put(name, content, chunk_size=_PART, max_concurrency=_AT_ONCE)
        if len(self.lately) >= _REMEMBERED:
            self.lately.clear()
        self.lately[sha256, ending] = began

    def raw(self, copy: Copy, start: int, length: int) -> Iterator[bytes]:
        stop = min(start + length, copy.size)
        while start < stop:
            with self._asking(copy.sha256):
                piece = bytes(self.store.get_range(copy.place, start=start, length=min(GET, stop - start)))
            if not piece:
                return
            start += len(piece)
            yield piece

    def remove(self, copy: Copy, before: float) -> bool:
        """The object was put once and never again, so what is known of its age stays true."""
        if copy.put_at >= before:
            return False
        with self._asking():
            self.store.delete(copy.place)
        return True

    @contextmanager
    def _asking(self, sha256: str = "") -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as fault:
            said = str(fault)
            if sha256 and isinstance(fault, FileNotFoundError) and _NO_BUCKET not in said:
                raise errors.NotFound(f"The content {sha256} is not in {self.told}.") from fault
            raise errors.Unavailable(self._why(fault, said)) from fault

    def _why(self, fault: Exception, said: str) -> str:
        status, code = _STATUS.search(said), _CODE.search(said)
        first = (said.strip().splitlines() or [type(fault).__name__])[0]
        reason = ", ".join(one[1].strip() for one in (status, code) if one) or first.rpartition(" - ")[2][:300]
        if _NO_BUCKET in said:
            return f"There is no bucket of {self.told}: create it, or correct blob_url."
        if status and status[1].startswith(("401", "403")):
            rights = "see blob_access_key and blob_secret_key, and what they permit"
            return f"The store of content {self.told} refuses this server ({reason}): {rights}."
        if isinstance(fault, OSError) and not status:
            return f"What goes to {self.told} cannot be read on this machine ({reason})."
        return f"The store of content {self.told} cannot do this now ({reason})."


def _seen(page: Iterable[Any]) -> Iterator[Copy]:
    for meta in page:
        name = "/".join(meta["path"].rsplit("/", 2)[-2:])
        if copy := copy_of(name, meta["path"], meta["size"], meta["last_modified"].timestamp()):
            yield copy
