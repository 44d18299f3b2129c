"""The UCUM table that is shipped: unchanged, with its notice, and built the same way twice."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from profiles import build_ucum
from profiles.ucum import table

ESSENCE = Path("ucum") / "ucum-essence.xml"


def shipped() -> bytes:
    with zipfile.ZipFile(table.DATA) as archive:
        return archive.read(table.MEMBER)


def test_the_table_is_shipped_byte_for_byte_as_published() -> None:
    assert hashlib.sha256(shipped()).hexdigest() == build_ucum.SHA256
    assert table.table().version == build_ucum.VERSION


def test_the_notice_travels_inside_the_file_and_beside_it() -> None:
    with zipfile.ZipFile(table.DATA) as archive:
        inside = archive.read(build_ucum.NOTICE_MEMBER).decode()
    beside = table.DATA.with_suffix(".txt").read_text(encoding="utf-8")
    assert inside == beside == build_ucum.NOTICE
    assert "Copyright 1999-2024 Regenstrief Institute, Inc. All rights reserved." in beside
    assert "https://unitsofmeasure.org/license" in beside


def test_the_build_makes_the_same_file_twice_with_the_same_members(tmp_path: Path) -> None:
    count = build_ucum.build(shipped(), tmp_path / "a.zip")
    build_ucum.build(shipped(), tmp_path / "b.zip")
    assert count == len(table.table().atoms)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as made, zipfile.ZipFile(table.DATA) as kept:
        assert made.namelist() == kept.namelist()
        assert [made.read(name) for name in made.namelist()] == [kept.read(name) for name in kept.namelist()]


def test_a_table_that_was_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "ucum-essence.xml"
    changed.write_bytes(shipped() + b"\n")
    assert build_ucum.main([str(changed), "--out", str(tmp_path / "ucum.zip")]) == 1
    assert "is not ucum-essence.xml version 2.2" in capsys.readouterr().err
    assert not (tmp_path / "ucum.zip").exists()


def test_the_command_builds_and_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "ucum-essence.xml"
    source.write_bytes(shipped())
    assert build_ucum.main([str(source), "--out", str(tmp_path / "ucum.zip")]) == 0
    assert "312 units" in capsys.readouterr().out
    assert build_ucum.main([str(tmp_path / "absent.xml")]) == 1


def test_importing_reads_no_file() -> None:
    program = (
        "import sys; from profiles.ucum import units, table; assert not table.table.cache_info().currsize; "
        "assert 'zipfile' not in sys.modules; units.parse('m'); assert table.table.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_the_table_says_of_units_and_prefixes_is_read() -> None:
    atoms, prefixes = table.table().atoms, table.table().prefixes
    assert (len(atoms), len(prefixes)) == (312, 24)
    assert atoms["[ft_i]"].value == "12" and atoms["[ft_i]"].unit == "[in_i]"
    assert atoms["A"].name == "amp\u00e8re"
    assert atoms["gon"].name == "gon"
    assert atoms["m"].base and atoms["m"].metric and not atoms["[ft_i]"].metric
    assert atoms["Cel"].special and atoms["Cel"].unit == "cel(1 K)"
    assert atoms["[iU]"].arbitrary
    assert (prefixes["u"].name, prefixes["u"].value) == ("micro", "1e-6")


@pytest.mark.needs("shared")
def test_the_shipped_table_is_the_one_in_the_shared_data(shared: Path) -> None:
    assert (shared / ESSENCE).read_bytes() == shipped()
