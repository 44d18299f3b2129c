"""DICOMweb: WADO-RS of instances, frames and metadata, from the stored bytes without re-encoding.

Source: DICOM PS3.18 section 10.4 (Retrieve transaction).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from dicom_node import archive, web
from dicom_node.elements import Unreadable
from fhir_server.changes import Hub
from fhir_server.errors import Fault, Malformed, NotFound, PasserelleError, Unsupported
from fhir_server.rest.http import Request, Response, error_response
from fhir_server.store.blobs import Blobs
from fhir_server.store.instances import Instance

log = logging.getLogger("passerelle.dicomweb")
UID = r"[0-9.]{1,64}"
_STUDY = rf"/studies/(?P<study>{UID})"
_SERIES = _STUDY + rf"/series/(?P<series>{UID})"
_INSTANCE = _SERIES + rf"/instances/(?P<instance>{UID})"


def answer(hub: Hub, request: Request) -> Response:
    """Answer one DICOMweb request; errors are OperationOutcomes."""
    try:
        for pattern, handler in _ROUTES:
            found = pattern.match(request.path)
            if found:
                if request.method not in ("GET", "HEAD"):
                    raise Unsupported(f"{request.method} is not offered here; GET retrieves", http=405)
                return handler(hub, replace(request, path_args=found.groupdict()))
        raise NotFound("nothing is served there; WADO-RS: /studies/{uid}[/series/{uid}[/instances/{uid}[/frames/{n}]]]")
    except PasserelleError as error:
        return error_response(request, error)
    except Exception:
        log.exception("request %s failed", request.caller.request_id)
        return error_response(request, Fault())


def _instances(hub: Hub, request: Request) -> list[Instance]:
    wanted = request.path_args.get("instance")
    with hub.store.read(request.caller) as snapshot:
        rows = snapshot.instances(request.path_args["study"], request.path_args.get("series", ""))
    rows = [row for row in rows if wanted in (None, row.sop_uid)]
    if not rows:
        raise NotFound("no such study, series or instance is stored here; /fhir/ImagingStudy lists the studies")
    return rows


def _there(hub: Hub, request: Request) -> list[Instance]:
    """What is asked for. Raises Fault for content that is gone, Unavailable for some whose key is: before anything is
    sent, and without reading any."""
    rows = _instances(hub, request)
    for row in rows:
        try:
            hub.store.blobs.size(row.blob)
        except NotFound:
            log.error("blob %s is missing", row.blob)
            raise Fault("the file of a stored image is missing; the log names it, restore it from a backup") from None
    return rows


def _retrieve(hub: Hub, request: Request) -> Response:
    """Objects leave as they are read, from wherever they lie."""
    rows = _there(hub, request)
    objects = [web.Whole(row.transfer_syntax, partial(hub.store.blobs.chunks, row.blob)) for row in rows]
    return _answered(lambda: web.instances(objects, request.headers.get("accept", "")))


def _metadata(hub: Hub, request: Request) -> Response:
    """One object at a time is made a file, when its turn comes."""
    models = (_model(hub.store.blobs, row.blob) for row in _there(hub, request))
    return _answered(lambda: web.metadata(models, request.headers.get("accept", "")))


def _model(blobs: Blobs, name: str) -> dict[str, Any]:
    with blobs.file(name) as path:
        return archive.metadata_json(path)


def _frames(hub: Hub, request: Request) -> Response:
    """Of one object, whose frames must be known before the answer begins."""
    row = _there(hub, request)[0]
    numbers = [int(text) for text in request.path_args["frames"].split(",")]
    with ExitStack() as stack:
        path = stack.enter_context(hub.store.blobs.file(row.blob))
        found = _answered(
            lambda: web.frames(path, archive.frame_table(path), numbers, request.headers.get("accept", ""))
        )
        if request.method == "HEAD":
            return replace(found, stream=iter(()))
        return replace(found, stream=_until_sent(found.stream or (), stack.pop_all()))


def _answered(make: Callable[[], web.Answer]) -> Response:
    try:
        kind, stream = make()
    except web.NotAcceptable as refusal:
        raise Unsupported(str(refusal), http=406) from refusal
    except (IndexError, archive.NoFrames) as absent:
        raise NotFound(str(absent)) from absent
    except Unreadable as damaged:
        raise Malformed(f"the stored object cannot be read: {damaged}", http=500) from damaged
    return Response(200, (("content-type", kind),), stream=stream)


def _until_sent(stream: Iterable[bytes], held: ExitStack) -> Iterator[bytes]:
    with held:
        yield from stream


_ROUTES: tuple[tuple[re.Pattern[str], Callable[[Hub, Request], Response]], ...] = (
    (re.compile(_INSTANCE + r"/frames/(?P<frames>[0-9]{1,9}(,[0-9]{1,9}){0,999})/?\Z"), _frames),
    (re.compile(_INSTANCE + r"/metadata/?\Z"), _metadata),
    (re.compile(_SERIES + r"/metadata/?\Z"), _metadata),
    (re.compile(_STUDY + r"/metadata/?\Z"), _metadata),
    (re.compile(_INSTANCE + r"/?\Z"), _retrieve),
    (re.compile(_SERIES + r"/?\Z"), _retrieve),
    (re.compile(_STUDY + r"/?\Z"), _retrieve),
)
