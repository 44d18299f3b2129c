"""Builds `profiles/data/ucum.zip`, the table of UCUM units this package works from.

    python -m profiles.build_ucum ucum-essence.xml [--out FILE.zip]

Hides how the table is packed. The licence of the table lets it be copied with its notice but not changed, so the file
holds `ucum-essence.xml` byte for byte, accepted only with the hash pinned below, and the notice beside it; whatever
shape the program needs is made in memory when it runs. The notice is also written next to the file, as text.
The table is published at https://github.com/ucum-org/ucum (file `ucum-essence.xml`, version 2.2 of 2024-06-17).
The output is the same, byte for byte, for the same source and zlib.

Licence: https://ucum.org/license (version 1.1, June 2024), section 3.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from profiles.ucum import table, units

VERSION = "2.2"
SHA256 = "dfccea1b5dc284245ebae97edd1dc03c45864da4e87df55bc9851797b4fd0b61"
NOTICE_MEMBER = "NOTICE.txt"
NOTICE = """\
ucum-essence.xml (in ucum.zip) is the table of the Unified Code for Units of Measure (UCUM), version 2.2,
2024-06-17, unmodified, as published at https://github.com/ucum-org/ucum.

Copyright 1999-2024 Regenstrief Institute, Inc. All rights reserved.
Licensed under the UCUM License, Version 1.1 (the "License"); you may not use this file except in compliance
with the License. You may obtain a copy of the License at

    https://unitsofmeasure.org/license

Unless required by applicable law or agreed to in writing, software distributed under the License is distributed
on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for
the specific language governing permissions and limitations under the License (disclaimer of warranties: section 7).

The License allows the table to be used by software and copied, not to be changed, extended or turned into another
code for units (section 3). The licence of the program that reads it does not apply to it.
"""


class BuildError(Exception):
    """The table could not be built; the message says what to do."""


def build(source: bytes, out: Path) -> int:
    """Write the file and the notice beside it; the number of units, each of which has been worked out once.

    Raises BuildError when `source` is not the pinned table.
    """
    if hashlib.sha256(source).hexdigest() != SHA256:
        raise BuildError(f"this is not ucum-essence.xml version {VERSION}: its SHA-256 is not {SHA256}")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in ((NOTICE_MEMBER, NOTICE.encode()), (table.MEMBER, source)):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, compresslevel=9)
    out.with_suffix(".txt").write_text(NOTICE, encoding="utf-8")
    return len(table.read(source).atoms)


def check() -> int:
    """Work out every unit of the installed table; how many there are. Raises UcumError when one cannot be."""
    codes = list(table.table().atoms)
    for code in codes:
        units.parse(code)
    return len(codes)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when written, 1 with a sentence on stderr when not."""
    parser = argparse.ArgumentParser(prog="python -m profiles.build_ucum", description="build the table of UCUM units")
    parser.add_argument("source", type=Path, help=f"ucum-essence.xml, version {VERSION}")
    parser.add_argument("--out", type=Path, default=table.DATA, help="where to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        count = build(options.source.read_bytes(), options.out)
    except (BuildError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.out == table.DATA:
        check()
    print(f"{options.out}: {count} units, {options.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
