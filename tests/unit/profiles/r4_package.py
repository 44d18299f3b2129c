"""Where the long tests find HL7's npm package of definitions and examples: in the user's cache folder, else by npm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profiles import build


def located() -> Path:
    """The verified package file; skips the test when it cannot be had (fails under REQUIRE_ALL=1)."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(home) if home else Path.home() / ".cache"
    try:
        return build.fetch(cache / "passerelle")
    except build.BuildError as problem:
        if os.environ.get("REQUIRE_ALL") == "1":
            pytest.fail(str(problem), pytrace=False)
        pytest.skip(str(problem))
