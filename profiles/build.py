"""Builds `profiles/data/r4.zip`, the R4 4.0.1 definitions this package works from.

    python -m profiles.build [--package FILE.tgz] [--out FILE.zip]

Hides where the definitions come from and how the file is laid out. The source is the npm package
`hl7.fhir.r4.examples@4.0.1` (HL7's own content, CC0-1.0), fetched with the `npm` client and accepted only when its
bytes have the hash pinned below. The package is read in memory; nothing of it is unpacked on disk.
The output is the same, byte for byte, for the same source and zlib.

Normative: https://hl7.org/fhir/R4/structuredefinition.html, https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiles import build_structures as structures
from profiles import build_terminology as terminology

PACKAGE = "hl7.fhir.r4.examples@4.0.1"
INTEGRITY = "sha512-DXBdIZOeQaSKIgCU7w6HOC7sw/6BzylmipLkBW4f//pT+Bc94x+8LImwTdvaNThPJoOzpBzvxAzNqjeu3X/zLw=="
DATA = Path(__file__).parent / "data" / "r4.zip"

# Definitions come one file each, except the code lists, which exist only in one Bundle.
SEPARATE = (
    "StructureDefinition",
    "SearchParameter",
    "ValueSet",
    "CodeSystem",
    "OperationDefinition",
    "CompartmentDefinition",
)
EXPANSIONS = "Bundle-valueset-expansions"
SEARCH_PARAMETERS = "Bundle-searchParams"

Json = dict[str, Any]


class BuildError(Exception):
    """The definitions could not be built; the message says what to do."""


def fetch(cache: Path) -> Path:
    """The package file in `cache`, fetched with `npm pack` when it is not there yet.

    Raises BuildError when npm is missing or fails, or when the bytes are not the pinned ones.
    """
    target = cache / "hl7.fhir.r4.examples-4.0.1.tgz"
    if not target.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise BuildError(f"npm is not installed: install it, or give a downloaded {PACKAGE} with --package")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", work]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            packed = sorted(Path(work).glob("*.tgz"))
            if done.returncode or not packed:
                raise BuildError(f"npm pack {PACKAGE} failed: {done.stderr.strip() or done.stdout.strip()}")
            packed[0].replace(target)
    verify(target)
    return target


def verify(package: Path) -> None:
    """Refuse a package whose SHA-512 is not the pinned one."""
    with package.open("rb") as source:
        digest = hashlib.file_digest(source, "sha512").digest()
    found = "sha512-" + base64.b64encode(digest).decode("ascii")
    if found != INTEGRITY:
        raise BuildError(f"{package} is not {PACKAGE}: expected {INTEGRITY}, found {found}; fetch it again")


def files(package: Path) -> Iterator[tuple[str, bytes]]:
    """Every JSON resource of the package as (file name without suffix, bytes), in the archive's order."""
    with tarfile.open(package, "r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None and name.endswith(".json") and name != "package.json":
                yield name.removesuffix(".json"), stream.read()


@dataclass(slots=True)
class Source:
    """The definitions of the package, by resource type and canonical URL."""

    by_type: dict[str, dict[str, Json]] = field(default_factory=lambda: {name: {} for name in SEPARATE})
    expanded: dict[str, Json] = field(default_factory=dict)
    standard_parameters: set[str] = field(default_factory=set)

    def core(self, *kinds: str) -> list[Json]:
        """HL7's base types of these kinds (no constraint profile), by name."""
        found = [
            item
            for item in self.by_type["StructureDefinition"].values()
            if item["kind"] in kinds and item.get("derivation") != "constraint"
        ]
        return sorted(found, key=lambda item: str(item["type"]))


def read(package: Path) -> Source:
    """Read the definitions out of the package."""
    source = Source()
    for name, data in files(package):
        if name in (EXPANSIONS, SEARCH_PARAMETERS):
            resources = [entry["resource"] for entry in json.loads(data)["entry"]]
            if name == EXPANSIONS:
                source.expanded = {item["url"]: item for item in resources}
            else:
                source.standard_parameters = {item["url"] for item in resources}
        elif name.startswith(SEPARATE):
            resource = json.loads(data)
            if resource["resourceType"] in SEPARATE:
                source.by_type[resource["resourceType"]][resource["url"]] = resource
    return source


def members(source: Source) -> dict[str, Any]:
    """The file's members: name -> JSON-able value."""
    content: dict[str, Any] = {"index.json": _index(source)}
    for definition in source.core("resource", "complex-type", "primitive-type"):
        name = definition["type"]
        content[f"type/{name}.json"] = structures.element_rows(definition)
        rules = structures.invariant_rows(definition)
        if rules:
            content[f"rules/{name}.json"] = rules
    content["search.json"] = _search(source)
    descriptions = source.by_type["SearchParameter"]
    content["search_text.json"] = {url: descriptions[url]["description"] for url in sorted(descriptions)}
    content["codes.json"] = _required_codes(source)
    content |= _profiles(source)
    operations = source.by_type["OperationDefinition"]
    content["operations.json"] = [structures.operation(operations[url]) for url in sorted(operations)]
    compartments = source.by_type["CompartmentDefinition"]
    standard = [compartments[url] for url in sorted(compartments) if not url.endswith("/example")]
    content["compartments.json"] = dict(structures.compartment(item) for item in standard)
    content |= _terminology(source)
    return content


def _index(source: Source) -> Json:
    types = {
        item["type"]: [item["kind"], bool(item["abstract"]), structures.tail(item.get("baseDefinition", ""))]
        for item in source.core("resource", "complex-type", "primitive-type")
    }
    primitives = [structures.primitive_row(item) for item in source.core("primitive-type")]
    source_of = {"package": PACKAGE, "integrity": INTEGRITY, "licence": "CC0-1.0"}
    return source_of | {"types": types, "primitives": primitives}


def _search(source: Source) -> list[Any]:
    parameters = source.by_type["SearchParameter"]
    rows = []
    for url in sorted(parameters):
        item = parameters[url]
        # Some files are examples of SearchParameters, or belong to example guides; `_filter` alone is missed out
        # of the official Bundle though it is part of the standard.
        standard = url in source.standard_parameters or item["code"] == "_filter"
        rows.append(structures.search_parameter(item, standard))
    return rows


def _required_codes(source: Source) -> Json:
    bound = {
        structures.canonical(element["binding"]["valueSet"])
        for item in source.core("resource", "complex-type")
        for element in item["snapshot"]["element"]
        if element.get("binding", {}).get("strength") == "required" and "valueSet" in element["binding"]
    }
    codes = {url: terminology.expansion(source.expanded[url]) for url in sorted(bound) if url in source.expanded}
    return {url: value for url, value in codes.items() if value is not None}


def _profiles(source: Source) -> Json:
    extensions: list[Any] = []
    content: Json = {}
    names: dict[str, str] = {}
    for url, item in sorted(source.by_type["StructureDefinition"].items()):
        if item.get("derivation") != "constraint":
            continue
        if item["type"] == "Extension":
            extensions.append(structures.extension_definition(item))
        else:
            names[url] = f"profile/{item['id']}.json"
            content[names[url]] = structures.profile_document(item)
    return content | {"extensions.json": extensions, "profiles.json": names}


def _terminology(source: Source) -> Json:
    systems = {url: terminology.code_system(item) for url, item in source.by_type["CodeSystem"].items()}
    sets = {url: terminology.value_set(item) for url, item in source.by_type["ValueSet"].items()}
    content: Json = {}
    for folder, documents in (("systems", systems), ("sets", sets)):
        for number, part in terminology.buckets(documents).items():
            content[f"{folder}/{number:02d}.json"] = part
    return content


def write(content: Mapping[str, Any], out: Path) -> None:
    """Write the members as a zip with fixed dates and order."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(content):
            text = json.dumps(content[name], ensure_ascii=False, separators=(",", ":"))
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text.encode("utf-8"), compresslevel=9)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when written, 1 with a sentence on stderr when not."""
    parser = argparse.ArgumentParser(prog="python -m profiles.build", description="build the R4 definitions")
    parser.add_argument("--package", type=Path, help=f"a downloaded {PACKAGE}; fetched with npm when absent")
    parser.add_argument("--out", type=Path, default=DATA, help="where to write (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as work:
            package: Path = options.package or fetch(Path(work))
            verify(package)
            write(members(read(package)), options.out)
    except (BuildError, OSError) as problem:
        print(f"profiles.build: {problem}", file=sys.stderr)
        return 1
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
