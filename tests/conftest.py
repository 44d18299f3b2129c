"""What every test may ask for: installed components, the shared national data, free ports.

`@pytest.mark.needs("dcmtk")` skips when the component is absent, and fails instead under REQUIRE_ALL=1.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["databases", "pytester", "slices"]
# Where the surroundings forbid bytecode files, each of the many servers that are started would compile the program.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A busy machine is no fault of what is tested: nothing made up is judged by how long it took.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
POSTGRES_BIN = Path("/usr/lib/postgresql")
IN_MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30


def _program(*names: str) -> Callable[[], bool]:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return lambda: all(shutil.which(name, path=path) for name in names)


COMPONENTS: dict[str, tuple[Callable[[], bool], str]] = {
    "shared": (SHARED.is_dir, "the shared test data are not beside this checkout (../shared/data)"),
    "dcmtk": (_program("storescu", "echoscu", "findscu"), "install the Debian package dcmtk"),
    "postgresql": (lambda: bool(sorted(POSTGRES_BIN.glob("*/bin/initdb"))), "install the Debian package postgresql"),
    "poppler": (_program("pdftotext", "pdftoppm"), "install the Debian package poppler-utils"),
    "postfix": (_program("postfix"), "install the Debian package postfix"),
    "dovecot": (_program("dovecot"), "install the Debian package dovecot-imapd"),
    "java": (_program("java", "mvn"), "install the Debian packages default-jdk-headless and maven"),
    "npm": (_program("node", "npm"), "install the Debian packages nodejs (20 or later) and npm"),
}


def pytest_configure(config: pytest.Config) -> None:
    """The short run keeps its files in memory where there is room: on a disk every commit of its thousands of small
    databases waits for the disk. What survives the end of a process is the same there; the long run is on the disk."""
    if config.getoption("markexpr") == "not long" and _roomy(IN_MEMORY):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))


def _roomy(folder: Path) -> bool:
    """Whether a folder has room, and programs in it may be run."""
    if not os.access(folder, os.W_OK):
        return False
    there = os.statvfs(folder)
    return there.f_bavail * there.f_frsize >= ROOM and not there.f_flag & os.ST_NOEXEC


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the groups, each of which keeps one process busy: at the end the others would wait for it. Skip what
    needs an absent component; under REQUIRE_ALL=1 leave it in so that it fails in setup."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    if os.environ.get("REQUIRE_ALL") == "1":
        return
    for item in items:
        for mark in item.iter_markers("needs"):
            for name in mark.args:
                there, remedy = COMPONENTS[name]
                if not there():
                    item.add_marker(pytest.mark.skip(reason=f"needs {name}: {remedy}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.environ.get("REQUIRE_ALL") != "1":
        return
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            there, remedy = COMPONENTS[name]
            if not there():
                pytest.fail(f"REQUIRE_ALL=1 and {name} is absent: {remedy}", pytrace=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of national test data; ask for it together with `@pytest.mark.needs("shared")`."""
    return SHARED


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A loopback TCP port nobody listens on at this moment."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
