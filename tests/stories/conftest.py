"""Fixtures of the stories: the mail operators, and houses on either database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from databases import fresh_postgres
from house import House, Mail, demo_site, sandbox

from fhir_server.demo.play import free_ports


@contextmanager
def builder(place: Path) -> Iterator[Callable[..., House]]:
    """Makes houses in a folder, and closes them: `build(database_url, mail, site=..., settings=...)`."""
    houses: list[House] = []

    def make(database_url: str = "", mail: Mail | None = None, **more: Any) -> House:
        folder = place / f"house-{len(houses)}"
        folder.mkdir()
        mail = mail or sandbox(folder)
        names = ("http", "mllp", "dicom", "dpi", "pfi")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        house = House(folder, database_url, mail, ports, more.pop("site", None) or demo_site(mail.domain), **more)
        houses.append(house)
        return house

    try:
        yield make
    finally:
        for house in houses:
            house.close()


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Makes houses for one test."""
    with builder(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def lasting_house(
    request: pytest.FixtureRequest, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A house on PostgreSQL for all tests of a module, not started; the module's SETTINGS are its settings."""
    from fhir_server.store.schema import upgrade

    with fresh_postgres(postgres_url) as url, builder(tmp_path_factory.mktemp("lasting")) as make:
        upgrade(url)
        yield make(url, settings=request.module.SETTINGS)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def story_database(request: pytest.FixtureRequest) -> str:
    """'' for SQLite in the data folder, or a migrated PostgreSQL database."""
    if request.param == "sqlite":
        return ""
    from fhir_server.store.schema import upgrade

    url: str = request.getfixturevalue("empty_postgres")
    upgrade(url)
    return url
