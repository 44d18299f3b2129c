"""Fixtures of the stories: the mail operators, and houses on either database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from databases import empty_postgres, postgres_url  # noqa: F401 - fixtures
from house import House, Mail, demo_site, sandbox

from fhir_server.demo.play import free_ports


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Makes houses and closes them: `build(database_url, mail, site=..., settings=...)`."""
    houses: list[House] = []

    def make(database_url: str = "", mail: Mail | None = None, **more: Any) -> House:
        folder = tmp_path / f"house-{len(houses)}"
        folder.mkdir()
        mail = mail or sandbox(folder)
        names = ("http", "mllp", "dicom", "dpi", "pfi")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        house = House(folder, database_url, mail, ports, more.pop("site", None) or demo_site(mail.domain), **more)
        houses.append(house)
        return house

    yield make
    for house in houses:
        house.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def story_database(request: pytest.FixtureRequest) -> str:
    """'' for SQLite in the data folder, or a migrated PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    from fhir_server.store.schema import upgrade

    url: str = request.getfixturevalue("empty_postgres")
    upgrade(url)
    return url
