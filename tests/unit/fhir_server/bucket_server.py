"""An S3-compatible server for tests: S3Proxy (Apache 2.0) over a folder, on a free loopback port; how to spoil it."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import maven
import pytest

from fhir_server.config import Settings

SHA256 = "f3ff95bd78a7afbbcd5da56f8f6180ef71ad00601392f7e2f5a220c97ad69eef"
JAR = ("org.gaul", "s3proxy", "2.7.0", SHA256, "jar-with-dependencies")
BUCKET, WHO, SECRET = "content", "local", "secret-of-tests"


@dataclass(frozen=True)
class BucketServer:
    """A running server; `objects` is the folder that holds the bucket's objects as files."""

    port: int
    objects: Path
    process: subprocess.Popen[bytes]

    def settings(self, prefix: str = "", **more: Any) -> Settings:
        """The settings of a store whose content lies here."""
        url = f"s3://{BUCKET}/{prefix}?endpoint=http://127.0.0.1:{self.port}"
        made = Settings(blob_url=url, blob_access_key=WHO, blob_secret_key=SECRET, blob_timeout_seconds=5.0)
        return replace(made, **more)

    def files(self, prefix: str = "") -> list[Path]:
        return sorted(path for path in (self.objects / prefix).rglob("*") if path.is_file())


def start(folder: Path) -> BucketServer:
    """A server on an empty bucket; stop it with `server.process.kill()`."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "conf").write_text(
        f"s3proxy.endpoint=http://127.0.0.1:{port}\ns3proxy.authorization=aws-v2-or-v4\ns3proxy.identity={WHO}\n"
        f"s3proxy.credential={SECRET}\njclouds.provider=filesystem-nio2\njclouds.identity=x\njclouds.credential=x\n"
        f"jclouds.filesystem.basedir={folder / 'data'}\n"
    )
    command = ["java", "-Xmx192m", "-XX:TieredStopAtLevel=1", "-jar", str(maven.jar(*JAR))]
    command += ["--properties", str(folder / "conf")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail("S3Proxy does not start: " + (folder / "log").read_text()[-800:])
        time.sleep(0.1)
    return BucketServer(port, folder / "data" / BUCKET, process)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
    except urllib.error.HTTPError as refusal:
        refusal.close()
        return True
    except OSError:
        return False
    return True
