"""What a user installs: the wheel alone, outside the checkout, plays the whole story."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.timeout(300)
def test_the_wheel_alone_plays_the_story(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    source = tmp_path / "source"
    archive = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, timeout=60
    ).stdout
    for name in archive.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(build, cwd=source, check=True, timeout=120)
    wheel = next(tmp_path.glob("passerelle-*.whl"))
    home = tmp_path / "env"
    venv.create(home)
    install = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True, timeout=120, cwd=home)
    # The dependencies come from this environment's folder; its editable install does not, for .pth files there are
    # not read.
    dependencies = str(Path(pytest.__file__).resolve().parent.parent)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PASSERELLE_", "COVERAGE_"))}
    done = subprocess.run(
        [home / "bin" / "passerelle", "demo", "--play"],
        cwd=home,
        env=clean | {"PYTHONPATH": dependencies},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every step held" in done.stdout
