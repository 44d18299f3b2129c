"""A folder of right French messages, or of messages wrong in one named way: a replacement in the text of one of them.

All of it fictitious. IHE PAM National Extension France 2.11; CI-SIS "Transmission d'un document CDA-R2 en HL7 v2" 2.1
"""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path

from conformance.peers.fault import Fault, chosen

_ID = "P1^^^CH-EXEMPLE&990001234&M^PI~279035121518989^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS"
_PID = f"PID|1||{_ID}||ESSAI^LÉA^LÉA^^^^L||19790328|F|||^^^^^^BDL^^63220|||||||||||||||||||||VALI"
_HEADER = "MSH|^~\\&|GAM|CH-EXEMPLE|DPI|CH-EXEMPLE|20260302083011+0100||{}|{}|D|{}|||||FRA|{}|FR||{}"
_UNIT = "Maternité^^^^^CH-EXEMPLE&990001234&M^UF^^^4102"
_FLAG = "OBX|{}|CWE|{}^Indicateur^MetaDMPMSS||{}^^expandedYes-NoIndicator||||||F"
MESSAGES: Mapping[str, tuple[str, list[str]]] = {
    "a01.hl7": ("utf-8", [
        _HEADER.format("ADT^A01^ADT_A01", "F1", "2.5^FRA^2.11", "UNICODE UTF-8", "2.11^IHE_FRANCE-2.11-PAM"),
        "EVN||20260302083011||||20260302081500", _PID, "PV1|1|I|||||||||||||||||V1^^^CH-EXEMPLE&990001234&M^VN",
        f"ZBE|M1^CH-EXEMPLE^990001234|20260302081500||INSERT|N||{_UNIT}|{_UNIT}|HMS"]),
    "a11.hl7": ("iso8859-15", [
        _HEADER.format("ADT^A11^ADT_A09", "F2", "2.5^FRA^2.11", "8859/15", "2.11^IHE_FRANCE-2.11-PAM"),
        "EVN||20260302083011||||20260302081500", _PID, "PV1|1|I|||||||||||||||||V1^^^CH-EXEMPLE&990001234&M^VN",
        f"ZBE|M1^CH-EXEMPLE^990001234|20260302081500||CANCEL|N|A01|{_UNIT}|{_UNIT}|HMS"]),
    "a40.hl7": ("utf-8", [
        _HEADER.format("ADT^A40^ADT_A39", "F3", "2.5^FRA^2.11", "UNICODE UTF-8", "2.11^IHE_FRANCE-2.11-PAM"),
        "EVN||20260302083011", _PID, "MRG|P2^^^CH-EXEMPLE&990001234&M^PI"]),
    "t02.hl7": ("utf-8", [
        _HEADER.format("MDM^T02^MDM_T02", "F4", "2.6", "UNICODE UTF-8", "2.1^CISIS_CDA_HL7_V2"),
        "EVN||20260302083011+0100", _PID, "PV1|1|N", "ORC|NW", "OBR|1|||85208-7^CR de télémédecine^LN",
        "TXA|1|85208-7|TEXT|20260302083011+0100||||||||2.25.1|||||AU",
        "OBX|1|ED|85208-7^CR de télémédecine^LN||^text^XML^Base64^PGE+PC9hPg==||||||F",
        _FLAG.format(2, "MASQUE_PS", "N"), _FLAG.format(3, "INVISIBLE_PATIENT", "Y"),
        _FLAG.format(4, "DESTMSSANTEPS", "Y"), _FLAG.format(5, "DESTMSSANTEPAT", "N"),
        "NTE|1||50\\E\\50 \\T\\ suite \\XC3A9\\"]),
}  # fmt: skip

# Fault -> the message it damages, what is replaced in it, and by what.
_DAMAGE: Mapping[str, tuple[str, str, str]] = {
    "line-feeds": ("a01.hl7", "\r", "\n"),
    "no-last-cr": ("a40.hl7", "^PI\r", "^PI"),
    "structure-of-another-event": ("a11.hl7", "ADT_A09", "ADT_A01"),
    "no-structure": ("a40.hl7", "^ADT_A39", ""),
    "without-evn": ("a40.hl7", "EVN||20260302083011\r", ""),
    "without-txa": ("t02.hl7", "TXA|1|85208-7|TEXT|20260302083011+0100||||||||2.25.1|||||AU\r", ""),
    "date-only": ("a01.hl7", "|20260302083011+0100|", "|20260302|"),
    "plain-version": ("a01.hl7", "2.5^FRA^2.11", "2.5"),
    "no-country": ("t02.hl7", "|FRA|", "||"),
    "charset-unknown": ("a40.hl7", "UNICODE UTF-8", "UTF8"),
    "charset-of-others": ("a01.hl7", "UNICODE UTF-8", "8859/15"),
    "no-profile": ("t02.hl7", "2.1^CISIS_CDA_HL7_V2", ""),
    "bare-backslash": ("t02.hl7", "50\\E\\50", "50\\50"),
    "id-without-authority": ("a40.hl7", "P1^^^CH-EXEMPLE&990001234&M^PI", "P1^^^^PI"),
    "ins-not-qualified": ("a01.hl7", "|VALI", "|PROV"),
    "ins-key": ("a01.hl7", "279035121518989", "279035121518990"),
    "ins-authority": ("t02.hl7", "1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.99"),
    "used-name-alone": ("a11.hl7", "^^^^L", "^^^^D"),
    "sex-in-french": ("t02.hl7", "|F|||^^^^^^BDL", "|Féminin|||^^^^^^BDL"),
    "movement-without-action": ("a01.hl7", "|INSERT|", "||"),
    "cancel-of-nothing": ("a11.hl7", "|CANCEL|N|A01|", "|CANCEL|N||"),
    "movement-nature": ("a01.hl7", "|HMS", "|X"),
    "code-without-system": ("t02.hl7", "OBR|1|||85208-7^CR de télémédecine^LN", "OBR|1|||85208-7^CR de télémédecine"),
    "replaces-what-it-creates": ("t02.hl7", "ORC|NW", "ORC|RO"),
    "document-cut": ("t02.hl7", "PGE+PC9hPg==", "PGE+PC9hP"),
    "mailed-though-invisible": ("t02.hl7", "PAT^Indicateur^MetaDMPMSS||N", "PAT^Indicateur^MetaDMPMSS||Y"),
    "hidden-from-addressees": ("t02.hl7", "_PS^Indicateur^MetaDMPMSS||N", "_PS^Indicateur^MetaDMPMSS||Y"),
    "control-id-twice": ("a40.hl7", "|F3|", "|F1|"),
    "long-control-id": ("a40.hl7", "|F3|", "|F30123456789012345678901|"),
}  # fmt: skip
_CAUGHT = {
    "hl7v2-files.segments": ("line-feeds", "no-last-cr"),
    "hl7v2-files.message-type": ("structure-of-another-event", "no-structure"),
    "hl7v2-files.required-segments": ("without-evn", "without-txa"),
    "hl7v2-files.message-time": ("date-only",),
    "hl7v2-files.version": ("plain-version",),
    "hl7v2-files.country": ("no-country",),
    "hl7v2-files.charset": ("charset-unknown", "charset-of-others"),
    "hl7v2-files.profile": ("no-profile",),
    "hl7v2-files.escapes": ("bare-backslash",),
    "hl7v2-files.patient-ids": ("id-without-authority",),
    "hl7v2-files.ins-status": ("ins-not-qualified",),
    "hl7v2-files.ins-form": ("ins-key", "ins-authority"),
    "hl7v2-files.strict-traits": ("used-name-alone", "sex-in-french"),
    "hl7v2-files.movement": ("movement-without-action", "cancel-of-nothing", "movement-nature"),
    "hl7v2-files.coded": ("code-without-system",),
    "hl7v2-files.document-action": ("replaces-what-it-creates",),
    "hl7v2-files.document-data": ("document-cut",),
    "hl7v2-files.routing": ("mailed-though-invisible", "hidden-from-addressees"),
    "hl7v2-files.control-ids": ("control-id-twice", "long-control-id"),
}
FAULTS: Mapping[str, Fault] = {
    name: Fault(f"{name.replace('-', ' ')} in {_DAMAGE[name][0]}", (check,))
    for check, names in _CAUGHT.items()
    for name in names
}


class BrokenFiles:
    """The folder; a context manager. `target` is what `--target` takes."""

    def __init__(self, *faults: str, tls: ssl.SSLContext | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        wanted = [_DAMAGE[name] for name in chosen(faults, FAULTS)]
        for name, (codec, segments) in MESSAGES.items():
            text = "".join(f"{segment}\r" for segment in segments)
            for file, old, new in wanted:
                text = text.replace(old, new) if file == name else text
            (Path(self._folder.name) / name).write_bytes(text.encode(codec))

    @property
    def target(self) -> str:
        return f"hl7v2-files={self._folder.name}"

    def close(self) -> None:
        """Delete the folder."""
        self._folder.cleanup()

    def __enter__(self) -> BrokenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
