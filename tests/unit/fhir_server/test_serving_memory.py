"""What serving does about Python's search for unreachable cycles."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from fhir_server.commands.serving import settled

class Node:
    def __init__(self):
        self.itself = self

settled()
print(gc.get_freeze_count() > 10_000, gc.get_count()[0] < 700, gc.isenabled())
left = weakref.ref(Node())
kept = [[] for _ in range(25_000)]
print(left() is None)
"""


def test_what_is_loaded_is_passed_by_and_new_cycles_are_still_found() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", "True", "True"]
