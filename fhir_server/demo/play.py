"""`passerelle demo --play`: a fresh demo on free ports and in a temporary folder; exit 0 only if every step holds."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

from fhir_server.app import Server
from fhir_server.config import Settings
from fhir_server.demo import story
from fhir_server.demo.run import DEFAULTS, peers_of
from fhir_server.demo.story import World


def play(*, debug: bool = False) -> int:
    """Tell the story, one line a step. What breaks it is one line too; `debug` adds where in the program."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="passerelle-play-") as name:
        folder = Path(name)
        smtp, imap, dpi, pfi, mllp = free_ports(5)
        settings = replace(
            Settings(**DEFAULTS),
            data_dir=str(folder / "data"),
            http_port=0,
            mllp_port=mllp,
            dicom_port=0,
            smtp=f"127.0.0.1:{smtp}",
            imap=f"127.0.0.1:{imap}",
            mail_poll_seconds=0.3,
            study_quiet_seconds=0.5,
        )
        server = Server(settings)
        peers = peers_of(settings, folder / "peers", mllp, dpi, pfi)
        try:
            peers.start()
            ports = server.start()
            story.tell(
                World(
                    web=f"http://127.0.0.1:{ports.http}",
                    mllp=("127.0.0.1", ports.mllp),
                    dicom=("127.0.0.1", ports.dicom),
                    ae_title=settings.ae_title,
                    folder=folder / "peers",
                    dpi=f"127.0.0.1:{dpi}",
                    pfi=f"127.0.0.1:{pfi}",
                    imap=("127.0.0.1", imap),
                )
            )
        except Exception as error:
            if debug:
                traceback.print_exception(error)
            print(f"the story broke: {story.told_of(error)}", file=sys.stderr)
            return 1
        finally:
            server.close()
            peers.close()
    print(f"every step held ({time.monotonic() - began:.1f} s)")
    return 0


def free_ports(count: int) -> list[int]:
    """Loopback ports nobody uses at this moment, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
