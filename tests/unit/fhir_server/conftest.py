"""Fixtures that several test files of the server share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from corrected import received
from hubs import asked, directory, hub_on

from fhir_server.changes import Hub
from fhir_server.store.engine import Store


@pytest.fixture
def new_hub(open_url: Callable[..., Store], sqlite_url: str) -> Callable[..., Hub]:
    """Makes a hub with the demo's people: `new_hub(site=..., clock=..., settings...)`."""
    return lambda **more: directory(hub_on(open_url(sqlite_url), **more))


@pytest.fixture
def hub(open_url: Callable[..., Store], sqlite_url: str) -> Hub:
    """The demo's people on SQLite; a file whose tests want another one has its own."""
    return directory(hub_on(open_url(sqlite_url)))


@pytest.fixture
def signed(hub: Hub) -> Hub:
    """The case `r` with a report that everybody received."""
    asked(hub, state="completed")
    received(hub)
    return hub
