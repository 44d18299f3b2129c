"""What a measurement was made on: cores, memory, versions, commit, date. No name and no path of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Machine:
    """One sentence for the end of every table."""

    sentence: str


def machine(database: str = "", rounds: int = 5) -> Machine:
    """This machine now; `database` describes the database used, '' when none was."""
    parts = [
        f"{os.cpu_count()} cores ({_processor()})",
        f"{_memory()} GiB of memory",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
    ]
    if database:
        parts.append(database)
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    how = f"median of {rounds} interleaved rounds; load average {os.getloadavg()[0]:.1f}"
    return Machine(f"{', '.join(parts)}; commit {commit()}; {when}; {how}.")


def commit() -> str:
    """The short hash, with `+` when tracked files differ from it; `unknown` outside a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
