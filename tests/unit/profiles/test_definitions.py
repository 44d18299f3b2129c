"""The R4 definitions: what the shipped file says, how it loads, how it is built."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import r4_package

from profiles import build, definitions
from profiles.definitions import children, members, structure


def test_importing_the_module_opens_nothing() -> None:
    code = "import sys, profiles.definitions as d; print('zipfile' in sys.modules, d._archive.cache_info().currsize)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout.split() == ["False", "0"]


def test_the_data_file_is_small_and_says_where_it_comes_from() -> None:
    assert definitions.DATA.stat().st_size < 3_000_000
    with zipfile.ZipFile(definitions.DATA) as archive:
        index = json.loads(archive.read("index.json"))
        assert {item.date_time for item in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())
    assert (index["package"], index["integrity"], index["licence"]) == (build.PACKAGE, build.INTEGRITY, "CC0-1.0")


def test_all_concrete_r4_types_are_there() -> None:
    names = definitions.resource_types()
    assert len(names) == 146
    assert {"Patient", "Bundle", "Binary", "Parameters", "ServiceRequest", "EffectEvidenceSynthesis"} <= names
    assert names.isdisjoint({"Resource", "DomainResource", "HumanName", "MetadataResource", "Citation"})
    assert len(definitions.primitives()) == 20
    assert {"Element", "BackboneElement", "Quantity", "Age", "Dosage", "Extension"} <= definitions.data_types()


@pytest.mark.parametrize("name", sorted(definitions.resource_types() | definitions.data_types()))
def test_every_place_of_every_type_leads_somewhere(name: str) -> None:
    elements = structure(name).elements
    assert [element.order for element in elements.values()] == list(range(len(elements)))
    places = [name]
    seen: set[str] = set()
    while places:
        place = places.pop()
        for prop, child in children(place).items():
            assert not prop.endswith("[x]")
            assert definitions.base_of(child.type) or child.type in ("Resource", "Element")
            if child.place not in seen and child.place.startswith(f"{name}."):
                seen.add(child.place)
                places.append(child.place)


def test_an_unknown_type_or_place_is_a_key_error() -> None:
    for place in ("Nothing", "Patient.nothing", "../index", "Observation.value[x]"):
        with pytest.raises(KeyError):
            children(place)
    with pytest.raises(KeyError):
        structure("FiveWs")


def test_the_type_hierarchy_is_known() -> None:
    assert definitions.base_of("Patient") == "DomainResource"
    assert definitions.base_of("Bundle") == "Resource"
    assert definitions.base_of("Age") == "Quantity"
    assert definitions.base_of("code") == "string"
    assert definitions.base_of("Resource") == definitions.base_of("Element") == ""
    assert definitions.ancestry("positiveInt") == ("positiveInt", "integer", "Element")
    assert definitions.is_a("Duration", "Quantity")
    assert definitions.is_a("Patient", "Resource")
    assert not definitions.is_a("Quantity", "Duration")


def test_an_element_says_what_r4_says_of_it() -> None:
    gender = structure("Patient").elements["Patient.gender"]
    assert (gender.min, gender.max, gender.types, gender.is_summary) == (0, 1, ("code",), True)
    assert gender.binding_strength == "required"
    assert gender.binding_value_set == "http://hl7.org/fhir/ValueSet/administrative-gender"
    assert structure("Patient").elements["Patient.active"].is_modifier
    subject = structure("Observation").elements["Observation.subject"]
    assert subject.targets == ("Patient", "Group", "Device", "Location")
    assert structure("Patient").elements["Patient.link"].many
    assert structure("Observation").elements["Observation.value[x]"].choice
    assert structure("Patient").elements["Patient.id"].types == ("id",)
    assert structure("Element").elements["Element.id"].types == ("string",)
    assert structure("Extension").elements["Extension.url"].xml_attribute
    canonical = structure("MeasureReport").elements["MeasureReport.measure"]
    assert canonical.canonicals == ("Measure",)
    language = structure("Patient").elements["Patient.language"]
    assert language.binding_max_value_set == "http://hl7.org/fhir/ValueSet/all-languages"


def test_a_property_names_the_type_of_a_choice() -> None:
    found = children("Observation")
    assert found["valueQuantity"].type == "Quantity"
    assert found["valueDateTime"].type == "dateTime"
    assert found["valueQuantity"].element is found["valueDateTime"].element
    assert found["valueQuantity"].element.name == "value"
    assert "value" not in found
    assert len(members("Observation", "value")) == 11
    assert [child.type for child in members("Patient", "deceased")] == ["boolean", "dateTime"]
    assert members("Patient", "deceasedBoolean") == ()
    element, type_name = found["code"]
    assert (element.path, type_name) == ("Observation.code", "CodeableConcept")


def test_properties_come_in_xml_order() -> None:
    assert list(children("HumanName")) == [
        "id",
        "extension",
        "use",
        "text",
        "family",
        "given",
        "prefix",
        "suffix",
        "period",
    ]
    assert list(children("Patient"))[:10] == [
        "id",
        "meta",
        "implicitRules",
        "language",
        "text",
        "contained",
        "extension",
        "modifierExtension",
        "identifier",
        "active",
    ]


@pytest.mark.parametrize(
    ("place", "name", "leads_to"),
    [
        ("Bundle.entry", "link", "Bundle.link"),
        ("Questionnaire.item", "item", "Questionnaire.item"),
        ("Parameters.parameter", "part", "Parameters.parameter"),
        ("Observation.component", "referenceRange", "Observation.referenceRange"),
        ("ValueSet.compose", "exclude", "ValueSet.compose.include"),
        ("Patient", "contact", "Patient.contact"),
        ("Patient.contact", "name", "HumanName"),
        ("Timing", "repeat", "Timing.repeat"),
        ("Bundle.entry", "resource", "Resource"),
    ],
)
def test_going_deeper_follows_content_references(place: str, name: str, leads_to: str) -> None:
    child = children(place)[name]
    assert child.place == leads_to
    assert children(f"{place}.{name}") == children(leads_to)


def test_a_primitive_has_id_and_extension_but_no_value_property() -> None:
    assert list(children("string")) == ["id", "extension"]
    assert list(children("xhtml")) == ["id"]


def test_primitives_know_their_regex_and_system_type() -> None:
    known = definitions.primitives()
    assert known["positiveInt"].system == "Integer"
    assert known["instant"].system == "DateTime"
    assert known["code"].base == "string"
    assert re.fullmatch(known["date"].regex, "2024-02-29")
    assert all(item.regex for name, item in known.items() if name != "xhtml")


def test_every_search_parameter_is_known_and_examples_are_kept_apart() -> None:
    everything = definitions.all_search_parameters()
    assert len(everything) == 1400
    assert sum(item.standard for item in everything) == 1376
    codes = [item.code for item in definitions.search_parameters("Patient")]
    assert codes.count("_id") == 1
    assert {"birthdate", "_text", "_lastUpdated", "_filter"} <= set(codes)
    assert "age" not in codes
    assert [item.code for item in definitions.search_parameters("Condition")].count("subject") == 1
    for name in definitions.resource_types():
        codes = [item.code for item in definitions.search_parameters(name)]
        assert len(codes) == len(set(codes))
    assert "_text" not in {item.code for item in definitions.search_parameters("Bundle")}


def test_a_search_parameter_says_what_r4_says_of_it() -> None:
    url = "http://hl7.org/fhir/SearchParameter/Observation-code-value-quantity"
    found = definitions.search_parameter(f"{url}|4.0.1")
    assert found is not None
    assert (found.code, found.type, found.bases) == ("code-value-quantity", "composite", ("Observation",))
    assert [part.expression for part in found.components] == ["code", "value.as(Quantity)"]
    assert all(definitions.search_parameter(part.definition) for part in found.components)
    assert definitions.search_parameter_text(url).startswith("Code and quantity")
    assert definitions.search_parameter("http://example.org/none") is None
    assert definitions.search_parameter_text("http://example.org/none") == ""


def test_required_bindings_have_their_codes() -> None:
    system = "http://hl7.org/fhir/administrative-gender"
    codes = definitions.value_set_codes("http://hl7.org/fhir/ValueSet/administrative-gender|4.0.1")
    assert codes == {(system, "male"), (system, "female"), (system, "other"), (system, "unknown")}
    assert definitions.value_set_codes("http://hl7.org/fhir/ValueSet/mimetypes") is None
    assert definitions.value_set_codes("http://example.org/none") is None
    bound = {
        element.binding_value_set
        for name in definitions.resource_types() | definitions.data_types()
        for element in structure(name).elements.values()
        if element.binding_strength == "required"
    }
    open_ended = {url.rpartition("/")[2] for url in bound if definitions.value_set_codes(url) is None}
    assert open_ended == {"mimetypes", "ucum-units", "LL379-9"}
    units = definitions.value_set_displays("http://hl7.org/fhir/ValueSet/units-of-time")
    assert units["http://unitsofmeasure.org"]["s"] == "second"


def test_code_systems_and_value_sets_are_found_by_url() -> None:
    roles = definitions.code_system("http://terminology.hl7.org/CodeSystem/v3-RoleCode")
    assert roles is not None
    assert roles.concepts["MTH"].parents == ("PRN",)
    assert roles.content == "complete"
    assert definitions.code_system("http://example.org/none") is None
    gender = definitions.value_set("http://hl7.org/fhir/ValueSet/administrative-gender")
    assert gender is not None
    assert gender["include"] == [{"system": "http://hl7.org/fhir/administrative-gender"}]
    assert definitions.value_set("http://example.org/none") is None


def test_no_list_of_snomed_ct_concepts_is_shipped() -> None:
    with zipfile.ZipFile(definitions.DATA) as archive:
        parts = [json.loads(archive.read(name)) for name in archive.namelist() if name.startswith("sets/")]
    includes = [
        include
        for part in parts
        for item in part.values()
        for include in item.get("include", [])
        if "system" in include
    ]
    snomed = [item for item in includes if item["system"] == "http://snomed.info/sct"]
    assert len(snomed) > 50
    assert not any("concept" in item for item in snomed)


def test_extensions_are_condensed_with_their_parts() -> None:
    found = definitions.extension("http://hl7.org/fhir/StructureDefinition/patient-nationality")
    assert found is not None
    assert found.contexts == (("element", "Patient"),)
    assert [(part.url, part.types) for part in found.root.parts] == [
        ("code", ("CodeableConcept",)),
        ("period", ("Period",)),
    ]
    assert found.root.max is None
    plain = definitions.extension("http://hl7.org/fhir/StructureDefinition/data-absent-reason")
    assert plain is not None
    assert (plain.root.types, plain.root.binding_strength) == (("code",), "required")
    assert definitions.extension("http://example.org/none") is None


def test_operations_compartments_rules_and_profiles_are_there() -> None:
    assert len(definitions.operations()) == 47
    match = next(item for item in definitions.operations() if item["code"] == "match")
    assert [item["name"] for item in match["parameter"]] == ["resource", "onlyCertainMatches", "count", "return"]
    assert set(definitions.compartments()) == {"Device", "Encounter", "Patient", "Practitioner", "RelatedPerson"}
    assert definitions.compartments()["Patient"]["Observation"] == ("subject", "performer")
    keys = {(rule.path, rule.key) for rule in definitions.invariants("Patient")}
    assert ("Patient.contact", "pat-1") in keys
    assert ("Patient", "dom-2") in keys
    assert "ext-1" in {rule.key for rule in definitions.invariants("Extension")}
    pressure = definitions.profile("http://hl7.org/fhir/StructureDefinition/bp")
    assert pressure is not None
    assert pressure["type"] == "Observation"
    assert definitions.profile("http://example.org/none") is None


def test_a_package_with_other_bytes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    false = tmp_path / "package.tgz"
    false.write_bytes(b"not the package")
    out = tmp_path / "r4.zip"
    assert build.main(["--package", str(false), "--out", str(out)]) == 1
    assert "sha512-" in capsys.readouterr().err
    assert not out.exists()


def test_fetching_without_npm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="--package"):
        build.fetch(tmp_path / "cache")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_shipped_file_is_what_the_package_gives(tmp_path: Path) -> None:
    package = r4_package.located()
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    assert build.main(["--package", str(package), "--out", str(first)]) == 0
    assert build.main(["--package", str(package), "--out", str(second)]) == 0
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as made, zipfile.ZipFile(definitions.DATA) as shipped:
        assert made.namelist() == shipped.namelist()
        for name in made.namelist():
            assert made.read(name) == shipped.read(name), name
