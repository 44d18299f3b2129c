"""DICOM objects coming in: file and row are committed before 0x0000; the ImagingStudy follows when it is quiet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dicom_node import archive, content
from dicom_node.elements import Unreadable
from dicom_node.header import as_dict
from dicom_node.scp import Policy, StoreRequest
from fhir_server.changes import Applied, Change, Hub, apply, view_of
from fhir_server.config import Settings
from fhir_server.context import SYSTEM, Caller
from fhir_server.errors import Conflict, NotFound, PasserelleError, Unavailable
from fhir_server.imaging import studies
from fhir_server.security.identity import wire_caller
from fhir_server.store.audit import AuditRow
from fhir_server.store.blob_seal import Damaged
from fhir_server.store.instances import NewInstance, Study
from fhir_server.store.session import Tx
from fhir_server.store.view import printable
from mappers.dicom_to_fhir import accession

log = logging.getLogger("passerelle.dicom")
SUCCESS = 0x0000
LEASE_SECONDS = 60.0


def policy(settings: Settings, data: Path) -> Policy:
    """What our node accepts; with auth=none unknown callers are accepted and reported as not known."""
    spool = data / "spool"
    spool.mkdir(parents=True, exist_ok=True)
    return Policy(
        spool=spool,
        ae_title=settings.ae_title,
        private_classes=settings.dicom_private_classes,
        max_object_bytes=settings.max_object_mib << 20,
    )


def receiver(hub: Hub) -> Callable[[StoreRequest], int]:
    """The callback of the node for one hub."""
    return lambda request: receive(hub, request)


def receive(hub: Hub, request: StoreRequest) -> int:
    """Keep one object for good, then answer 0x0000. Other content under a known UID is kept as a recorded conflict;
    the same content in other bytes is the same object."""
    header, number = request.header, accession(request.header)
    frames = _frames(request.path)
    size = request.path.stat().st_size
    digest = hub.store.blobs.adopt(request.path)
    instance = NewInstance(
        sop_uid=request.sop_instance_uid,
        study_uid=header.study_instance_uid,
        series_uid=header.series_instance_uid,
        sop_class=request.sop_class_uid,
        transfer_syntax=request.transfer_syntax_uid,
        blob=digest,
        size=size,
        data_sha256=request.sha256,
        header=json.dumps(as_dict(header)),
        frames=frames,
        patient_id=printable(header.patient_id.value, 200),
        issuer=printable(header.patient_id.universal_id or header.patient_id.issuer, 200),
        accession=printable(number.value, 200),
        calling_ae=request.calling,
        peer=request.peer,
        other_ids=tuple(printable(other.value, 200) for other in header.other_patient_ids if other.value.strip()),
    )
    caller = wire_caller("dicom", f"DICOM {request.calling}", request.peer)
    try:
        _keep(hub, caller, instance, judged=False)
    except _OtherBytes:
        _keep(hub, caller, _as_known(hub, instance), judged=True)
    return SUCCESS


class _OtherBytes(Exception):
    """An object of this UID is known with other bytes, which may say the same."""


def _keep(hub: Hub, caller: Caller, instance: NewInstance, *, judged: bool) -> None:
    """Store the row; raises _OtherBytes, with nothing stored, for a conflict that nobody `judged`."""

    def work(tx: Tx) -> str:
        outcome = tx.add_instance(instance)
        if outcome == "conflict" and not judged:
            raise _OtherBytes
        if outcome != "same":
            text = f"C-STORE {outcome} of {instance.sop_uid} in study {instance.study_uid}"
            tx.audit(AuditRow("C", entity_type="ImagingStudy", entity_id=_logical_id(instance.study_uid), text=text))
        return outcome

    if hub.store.write(caller, work) == "conflict":
        log.warning("SOP instance %s came again with other data; kept beside the first", instance.sop_uid)


def _as_known(hub: Hub, instance: NewInstance) -> NewInstance:
    """The same row, under the hash of the stored object when both say the same."""
    with hub.store.read(SYSTEM) as snapshot:
        known = snapshot.instance(instance.sop_uid)
    if known is None:
        return instance
    blobs = hub.store.blobs
    try:
        with blobs.file(known.blob) as first, blobs.file(instance.blob) as second:
            same = content.digest(first) == content.digest(second)
    except (Unreadable, NotFound, Damaged):  # nobody can say that they say the same
        return instance
    return replace(instance, data_sha256=known.data_sha256) if same else instance


def project_one(hub: Hub) -> bool:
    """Sum one quiet study up as ImagingStudy and match it; False when none waits."""
    study = hub.store.claim_dirty(quiet_seconds=hub.settings.study_quiet_seconds, lease_seconds=LEASE_SECONDS)
    if study is None:
        return False
    try:
        _project(hub, study)
    except Unavailable:
        raise
    except Conflict:
        log.info("study %s changed while it was summed up; it comes again", study.study_uid)
        hub.store.write(SYSTEM, lambda tx: _give_back(tx, study))
    except Exception as fault:
        # Told in the list and looked at again when something arrives, instead of failing for ever.
        log.exception("study %s cannot be summed up", study.study_uid)
        told = fault.diagnostics if isinstance(fault, PasserelleError) else type(fault).__name__
        note = f"cannot be shown as ImagingStudy: {told}"
        hub.store.write(SYSTEM, lambda tx: tx.settle_study(study, match_state="unmatched", note=note))
    return True


def _give_back(tx: Tx, study: Study) -> None:
    tx.settle_study(study)
    tx.mark_dirty(study_uid=study.study_uid)


def _project(hub: Hub, study: Study) -> None:
    caller = wire_caller("dicom", f"DICOM {study.calling_ae}", "")
    with hub.store.read(caller) as snapshot:
        view = view_of(snapshot)
        instances = snapshot.instances(study.study_uid)
        found = studies.match_all(study, [studies.header_of(one) for one in instances], view, hub.sites)
        resource = studies.resource(study, instances, found, hub.sites)
        stored = snapshot.get("ImagingStudy", resource["id"])
    version = stored.version if stored is not None and not stored.deleted else None

    def also(tx: Tx, _: list[Applied]) -> None:
        tx.lock(studies.lock_of(study.study_uid))
        current = tx.study(study.study_uid)
        if current is None or current.dirty_at != study.dirty_at:
            # Images or a person's decision came meanwhile: they count, and the study comes again.
            tx.settle_study(study)
            return
        tx.settle_study(
            study,
            match_state=found.state,
            subject=found.subject,
            request=found.request,
            imaging_study=f"ImagingStudy/{resource['id']}",
            note=found.note,
        )

    change = Change("update", "ImagingStudy", resource["id"], resource, if_match=version)
    apply(hub, caller, [change], also=also, upon=view)


def _frames(path: Path) -> str:
    """The frame table as JSON, so that a frame is served by its place in the file; '' when there are no frames."""
    try:
        table = archive.frame_table(path)
    except (archive.NoFrames, Unreadable):
        return ""
    return json.dumps([list(map(list, pieces)) for pieces in table.frames], separators=(",", ":"))


def _logical_id(study_uid: str) -> str:
    return studies.reference_of(study_uid).partition("/")[2]
