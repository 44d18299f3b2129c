"""One association: negotiation, C-ECHO, C-STORE straight to disk, release or abort.

Hides the state machine and the order of things: an object is complete on disk and its owner's callback has returned
before the peer hears of success.

Sources: PS3.8 section 9.2 (states), PS3.7 sections 9.1.1 and 9.3.1, PS3.4 annex B.2.3 (statuses).
https://dicom.nema.org/medical/dicom/current/output/chtml/part08/sect_9.2.html
https://dicom.nema.org/medical/dicom/current/output/chtml/part04/sect_B.2.3.html
"""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any, Protocol

from dicom_node import dimse, spool
from dicom_node import upper_layer as ul
from dicom_node.contexts import ACCEPTED, APPLICATION_CONTEXT, Answered, negotiate, valid_uid
from dicom_node.elements import Unreadable
from dicom_node.header import Header
from dicom_node.policy import AssociationInfo, OnAssociation, OnRelease, OnStore, Policy, StoreRequest

log = logging.getLogger("passerelle.dicom")

_MAX_COMMAND = 65536
_PDU_SLACK = 64  # some peers count the PDV header out of the maximum length we gave them
_BUFFER = 1 << 18
_LINGER_SECONDS = 5.0
_INVALID_SOP_INSTANCE = 0x0117
_GONE = (OSError, ul.PeerGone, ul.PeerLate)


class Owner(Protocol):
    """What an association needs of its node."""

    policy: Policy
    on_store: OnStore
    on_echo: OnAssociation | None
    on_association: OnAssociation | None
    on_release: OnRelease | None

    @property
    def is_closing(self) -> bool: ...
    def admit(self, association: Association) -> bool: ...
    def leave(self, association: Association) -> None: ...
    def forget(self, association: Association) -> None: ...


@dataclass(eq=False, repr=False, slots=True)
class Association:
    """One connection, from accept to close. Only `wake` and `cut` are called from another thread."""

    node: Owner
    sock: socket.socket
    peer: str
    peer_port: int
    busy: bool = False
    linger: bool = False
    left: int = 0
    info: AssociationInfo | None = None
    contexts: dict[int, Answered] = field(default_factory=dict)
    studies: dict[str, None] = field(default_factory=dict)
    wire: ul.Connection = field(init=False)

    def wake(self) -> None:
        """End the wait for the next message, if it is waiting."""
        if not self.busy:
            with suppress(*_GONE):
                # The plain socket's method: the TLS one would drop its state under the reading thread.
                socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def cut(self) -> None:
        with suppress(*_GONE):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def run(self) -> None:
        ended, reason = "aborted", ""
        try:
            self._open()
            if self._negotiate():
                ended, reason = self._messages()
        except ul.PeerFault as fault:
            reason = str(fault)
            self._abort(fault.reason)
        except ul.PeerLate as fault:
            reason = str(fault)
            self._abort(ul.UNSPECIFIED)
            self.linger = False
        except (ul.PeerGone, OSError) as fault:
            reason = str(fault)
            if self.node.is_closing:
                reason = "this node is closing"
                self._abort(ul.UNSPECIFIED)
        except Exception:
            reason = "a defect of this node"
            log.exception("association with %s", self.peer)
            self._abort(ul.UNSPECIFIED)
        finally:
            self._end(ended, reason)

    def _abort(self, reason: int) -> None:
        if not self.linger:  # the TLS handshake failed: there is nobody to tell
            return
        with suppress(*_GONE):
            self.wire.send(ul.abort_pdu(reason))

    def _open(self) -> None:
        policy = self.node.policy
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if policy.tls is not None:
            self.sock.settimeout(policy.artim_seconds)
            self.sock = policy.tls.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False)
            self.sock.do_handshake()
        self.wire = ul.Connection(self.sock, size=_BUFFER, idle=policy.artim_seconds, min_rate=policy.min_rate)
        self.linger = True

    def _negotiate(self) -> bool:
        """PS3.8 section 9.2.1, states 2 to 6. False when the association was rejected."""
        kind, length = self.wire.pdu()
        self.busy = True
        if kind != ul.ASSOCIATE_RQ:
            raise ul.PeerFault("the first PDU is no A-ASSOCIATE-RQ", _stray(kind))
        if length > ul.MAX_ASSOCIATE:
            raise ul.PeerFault(f"an A-ASSOCIATE-RQ of {length} bytes is more than we read")
        body = self.wire.take(length)
        request = ul.parse_request(body)
        rejection, known = self._judge(request)
        answers = negotiate(request.contexts, private=self.node.policy.private_classes)
        self.contexts = {answer.id: answer for answer in answers if answer.result == ACCEPTED}
        info = AssociationInfo(
            request.calling,
            request.called,
            self.peer,
            self.peer_port,
            known,
            implementation=f"{request.implementation_uid} {request.implementation_version}".strip(),
            certificate=self._certificate(),
            contexts=answers,
        )
        if rejection:
            result, source, reason, text = rejection
            self._report(replace(info, ended="rejected", reason=text))
            self.wire.send(ul.reject_pdu(result, source, reason))
            return False
        self.info = info
        self._report(info)
        policy = self.node.policy
        self.wire.send(ul.accept_pdu(request, body[4:36], answers, policy.max_pdu, policy.max_operations))
        self.wire.restart(policy.idle_seconds)
        return True

    def _judge(self, request: ul.AssociateRequest) -> tuple[tuple[int, int, int, str] | None, bool]:
        """((result, source, reason, text) of PS3.8 table 9-21 or None, whether the caller is known)."""
        policy = self.node.policy
        networks = None if policy.callers is None else policy.callers.get(request.calling)
        address = ip_address(self.peer.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address

        def within(listed: tuple[str, ...]) -> bool:
            return not listed or any(address in ip_network(one, strict=False) for one in listed)

        known = networks is not None and within(networks)
        if not request.version & 1:
            return (1, 2, 2, "the protocol version is not 1"), known
        if request.application_context != APPLICATION_CONTEXT:
            return (1, 1, 2, "the application context is not DICOM's"), known
        if policy.called is not None and request.called not in {policy.ae_title, *policy.called}:
            return (1, 1, 7, f"called AE title {request.called!r} is not ours"), known
        if policy.callers is not None and not known:
            return (1, 1, 3, f"calling AE title {request.calling!r} at {self.peer} is not in the table"), known
        if policy.callers is None and not within(policy.networks):
            return (
                1,
                1,
                3,
                f"calling AE title {request.calling!r} at {self.peer} comes from no admitted network",
            ), known
        if self.node.is_closing or not self.node.admit(self):
            return (2, 3, 2, "too many associations are open"), known
        return None, known

    def _certificate(self) -> str:
        if not isinstance(self.sock, ssl.SSLSocket):
            return ""
        certificate: dict[str, Any] = self.sock.getpeercert() or {}
        names = (pair for part in certificate.get("subject", ()) for pair in part)
        return next((str(value) for key, value in names if key == "commonName"), "")

    def _messages(self) -> tuple[str, str]:
        """State 6, until the peer releases. (how it ended, why)."""
        while True:
            self.busy = False
            if self.node.is_closing:
                self._abort(ul.UNSPECIFIED)
                return "aborted", "this node is closing"
            if self.left == 0:
                self.wire.restart()
                kind, length = self.wire.pdu()
                self.busy = True
                if kind == ul.RELEASE_RQ:
                    self.wire.send(ul.RELEASE_RP_PDU)
                    return "released", ""
                self._data_pdu(kind, length)
            self.wire.restart()
            self._message()

    def _data_pdu(self, kind: int, length: int) -> None:
        if kind == ul.ABORT:
            raise ul.PeerGone("the peer aborted")
        if kind != ul.P_DATA:
            raise ul.PeerFault(f"PDU type {kind} came where data was expected", _stray(kind))
        if not 6 <= length <= self.node.policy.max_pdu + _PDU_SLACK:
            raise ul.PeerFault(f"a P-DATA-TF of {length} bytes; the maximum is {self.node.policy.max_pdu}")
        self.left = length

    def _fragment(self) -> tuple[int, int, int]:
        """(context id, control, byte count) of the next PDV, of whichever PDU holds it."""
        if self.left == 0:
            self._data_pdu(*self.wire.pdu())
        if self.left < 6:
            raise ul.PeerFault("a presentation data value is cut short")
        count, context, control = self.wire.fragment()
        if count < 0 or count + 6 > self.left:
            raise ul.PeerFault("a presentation data value is longer than its PDU")
        self.left -= count + 6
        return context, control, count

    def _message(self) -> None:
        """One DIMSE request and its response."""
        content, last, context_id = b"", False, -1
        while not last:
            context, control, count = self._fragment()
            if not control & 1 or context_id not in (-1, context):
                raise ul.PeerFault("a data fragment came where a command was expected", ul.UNEXPECTED_PARAMETER)
            if context not in self.contexts:
                raise ul.PeerFault(f"presentation context {context} was not accepted")
            if len(content) + count > _MAX_COMMAND:
                raise ul.PeerFault("the command set is too long")
            content += self.wire.take(count)
            context_id, last = context, bool(control & 2)
        try:
            command = dimse.parse(content)
        except dimse.CommandFault as fault:
            raise ul.PeerFault(str(fault)) from fault
        self._answer(self.contexts[context_id], command)

    def _answer(self, context: Answered, command: dimse.Command) -> None:
        if command.field == dimse.C_STORE_RQ and command.has_data_set:
            status, comment = self._store(context, command)
        else:
            if command.has_data_set:
                self._receive(context, None)
            if command.field & dimse.RESPONSE:
                raise ul.PeerFault("a response came although nothing was asked", ul.UNEXPECTED_PARAMETER)
            if command.field == dimse.C_CANCEL_RQ:
                return
            status, comment = self._other(command)
        self.wire.send(ul.data_pdu(context.id, 3, dimse.response(command, status, comment)))

    def _other(self, command: dimse.Command) -> tuple[int, str]:
        if command.field == dimse.C_ECHO_RQ:
            if self.node.on_echo and self.info:
                self.node.on_echo(self.info)
            return dimse.SUCCESS, ""
        if command.field == dimse.C_STORE_RQ:
            return dimse.CANNOT_UNDERSTAND, "the request has no data set"
        return dimse.UNRECOGNIZED_OPERATION, "only C-STORE and C-ECHO are offered here"

    def _receive(self, context: Answered, sink: spool.Spool | None) -> None:
        """Take one data set off the wire, into `sink` or nowhere."""
        allowed = 2 * self.node.policy.max_object_bytes
        last = False
        while not last:
            context_id, control, count = self._fragment()
            if control & 1 or context_id != context.id:
                raise ul.PeerFault("a data set was interrupted by something else", ul.UNEXPECTED_PARAMETER)
            allowed -= count
            if allowed < 0:
                raise ul.PeerFault("an object is far larger than this node accepts")
            while count:
                view = self.wire.some(count)
                count -= len(view)
                if sink is not None:
                    sink.write(view)
            last = bool(control & 2)

    def _store(self, context: Answered, command: dimse.Command) -> tuple[int, str]:
        assert self.info is not None
        refusal: tuple[int, str] | None = None
        if command.sop_class != context.abstract_syntax:
            refusal = dimse.SOP_CLASS_NOT_SUPPORTED, "SOP class is not that of the presentation context"
        elif not valid_uid(command.sop_instance):
            refusal = _INVALID_SOP_INSTANCE, "SOP Instance UID is not a UID"
        sink = None
        if refusal is None:
            meta = spool.file_meta(
                command.sop_class, command.sop_instance, context.transfer_syntax, self.info.calling, self.info.called
            )
            try:
                sink = spool.Spool(self.node.policy.spool, meta, self.node.policy.max_object_bytes)
            except OSError as fault:
                log.error("the spool cannot be written: %s", fault)
                refusal = dimse.OUT_OF_RESOURCES, "the spool cannot be written"
        if sink is None:
            self._receive(context, None)
            assert refusal is not None
            return refusal
        try:
            self._receive(context, sink)
            return self._hand_over(sink, context, command)
        finally:
            sink.close()

    def _hand_over(self, sink: spool.Spool, context: Answered, command: dimse.Command) -> tuple[int, str]:
        assert self.info is not None
        sink.finish(sync=self.node.policy.fsync)
        if sink.problem:
            log.error("object %s from %s: %s", command.sop_instance, self.info.calling, sink.problem)
            return dimse.OUT_OF_RESOURCES, sink.problem
        try:
            header = sink.header(context.transfer_syntax)
        except Unreadable as fault:
            return dimse.CANNOT_UNDERSTAND, str(fault)
        mismatch = _mismatch(header, command)
        if mismatch:
            return dimse.DATA_SET_DOES_NOT_MATCH, mismatch
        request = StoreRequest(
            sink.path,
            command.sop_class,
            command.sop_instance,
            context.transfer_syntax,
            self.info.calling,
            self.info.called,
            self.peer,
            sink.sha256,
            sink.size,
            sink.offset,
            header,
        )
        try:
            status = self.node.on_store(request)
        except Exception as fault:
            log.exception("object %s from %s was not kept", command.sop_instance, self.info.calling)
            return int(getattr(fault, "cstore", dimse.OUT_OF_RESOURCES)), "the object was not kept"
        if status == dimse.SUCCESS or status >> 12 == 0xB:
            self.studies[header.study_instance_uid] = None
        return status, ""

    def _report(self, info: AssociationInfo) -> None:
        log.info("association %s -> %s from %s: %s", info.calling, info.called, info.peer, info.reason or "accepted")
        if self.node.on_association:
            try:
                self.node.on_association(info)
            except Exception:
                log.exception("on_association failed")

    def _end(self, ended: str, reason: str) -> None:
        if reason:
            log.warning("association with %s ended: %s", self.peer, reason)
        try:
            if self.info and self.node.on_release:
                self.node.on_release(replace(self.info, ended=ended, reason=reason), tuple(self.studies))
        except Exception:
            log.exception("on_release failed")
        finally:
            self.node.leave(self)
            self.busy = False
            if self.linger and not self.node.is_closing:
                # Closing over unread bytes would reset the connection and lose our last answer.
                self.wire.drain(min(self.node.policy.artim_seconds, _LINGER_SECONDS))
            with suppress(*_GONE):
                self.sock.close()
            self.node.forget(self)


def _stray(kind: int) -> int:
    return ul.UNEXPECTED_PDU if ul.ASSOCIATE_RQ <= kind <= ul.ABORT else ul.UNRECOGNIZED_PDU


def _mismatch(header: Header, command: dimse.Command) -> str:
    """Why the data set is not what the command announced; '' when it is."""
    if header.sop_instance_uid != command.sop_instance:
        return "SOP Instance UID differs between command and data set"
    if header.sop_class_uid != command.sop_class:
        return "SOP Class UID differs between command and data set"
    if not valid_uid(header.study_instance_uid):
        return "Study Instance UID (0020,000D) is missing or no UID"
    if not valid_uid(header.series_instance_uid):
        return "Series Instance UID (0020,000E) is missing or no UID"
    return ""
