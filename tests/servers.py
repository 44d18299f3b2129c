"""Settings of a server that a test starts beside others: the demo's, on free ports and without mail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fhir_server.config import Settings
from fhir_server.demo.run import DEFAULTS


def quiet(data: Path | str, **more: Any) -> Settings:
    """The demo's settings over its own folder `data`; every port is free to be any, and nobody polls a mailbox."""
    chosen: dict[str, Any] = {"http_port": 0, "mllp_port": 0, "dicom_port": 0, "smtp": "", "imap": ""}
    return replace(Settings(**DEFAULTS), data_dir=str(data), **(chosen | more))
