"""The PDF: valid PDF/A-1b for two independent validators, complete for a reader, and bounded whatever the texts."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from maven import jar
from pypdf import PdfReader
from report_sources import obstetric

from mappers.fhir_to_pdf import pdf, rendering
from mappers.fhir_to_report import Code, Exchange, Report
from mappers.french import VISIBILITY, VISIBILITY_OID
from mappers.pdfa import ASSETS, PLACEHOLDER

HOSTILE = (
    "\x00\x07\x85\ud800 e\u0301 \u0301x مرحبا بالعالم 你好 😀👩‍⚕️ {nb} \u202eevil \u200b**gras** \\ ( ) %PDF endobj "
    "</rdf:li> & ]]> œ € ’ \t\r\n\u2028\ufffe\U0010ffff"
)


def text_of(data: bytes) -> str:
    """The words of a PDF, blanks folded."""
    return " ".join(" ".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages).split())


def pages_of(data: bytes) -> int:
    return len(PdfReader(io.BytesIO(data)).pages)


def hostile() -> Report:
    made = obstetric()
    patient = replace(
        made.patient, birth_family=HOSTILE * 20, birth_given=HOSTILE, birth_givens="W" * 2000, used_family=HOSTILE,
        birth_city=HOSTILE, local_ids=(("y" * 900, "1.2", ("", "", ""), "PI"),) * 9,
    )  # fmt: skip
    org = replace(made.expert.org, name=HOSTILE * 30, address="y" * 9999, telecom="tel:" + "0" * 500)
    return replace(
        made, title=HOSTILE, reason=HOSTILE, conclusion=HOSTILE, consent=HOSTILE, images=(HOSTILE,) * 100,
        incidents=(HOSTILE,) * 100, patient=patient, expert=replace(made.expert, family="W" * 5000, org=org),
        requester=replace(made.requester, given=HOSTILE, mailbox="z" * 3000), accession="A" * 500,
    )  # fmt: skip


def talk(count: int, text: str) -> tuple[Exchange, ...]:
    start = obstetric().started_at
    return tuple(Exchange(start + timedelta(seconds=n), f"Auteur {n}", f"message {n} {text}") for n in range(count))


LONG = "La conclusion est longue, avec des accents : é à œ. " * 2000
REPORTS: dict[str, Report] = {
    "ordinary": obstetric(),
    "empty": obstetric(
        reason="", conclusion="", consent="", exchange=(), images=(), accession="", test=False,
        patient=replace(obstetric().patient, ins=None, local_ids=(), birth_cog="", birth_city="", used_family="",
                        used_given="", gender="unknown"),
    ),
    "hostile": hostile(),
    "100 kB": obstetric(reason=LONG, conclusion=LONG),
    "500 messages": obstetric(exchange=talk(500, "mot " * 40)),
    "500 huge messages": obstetric(exchange=talk(500, HOSTILE * 200)),
    "lines without end": obstetric(conclusion="a\n" * 50_000, reason="\n" * 100_000, consent=" " * 100_000),
    "words without end": obstetric(conclusion="x" * 100_000, reason="é" * 100_000),
    "replaced": obstetric(version=2, replaces="11111111-2222-4333-8444-555555555555", incidents=("Coupure 3 min",)),
}  # fmt: skip


def test_a_reader_finds_every_fact_the_law_asks_for() -> None:
    text = text_of(pdf(obstetric()))
    for fact in (
        "Compte rendu de téléexpertise", "DOCUMENT DE TEST", "PAT-TROIS", "DOMINIQUE MARIE-LOUISE", "LENŒUVILLE",
        "28 mars 1979", "Féminin", "DOMPREMY (COG 51215)", "279035121518989 (INS de test)", "1.2.250.1.213.1.4.10",
        "IPP0001234", "Mme Anouk FERRANDIER", "Sage-femme", "RPPS 99900000011", "FINESS 510999017",
        "Dr Étienne VASSEUR-KONÉ", "Médecin - Gynécologie-obstétrique", "RPPS 99900000029", "FINESS 510999025",
        "y a consenti le 10 janvier 2025", "Grossesse unique, 22 SA + 3 j.", "coupe des quatre cavités est prise de",
        "Pièce jointe : Réglages échographe.jpg", "Échographie obstétricale T2, cœur fœtal", "artéfact d’incidence",
        "Validé par Dr Étienne VASSEUR-KONÉ, RPPS 99900000029", "15 h 29 (UTC+01:00)", "09 h 12 (UTC+01:00)",
        "R.6316-4", "TE2 · Acte de téléexpertise", "aucun incident signalé", "Page 1 / 2", "Page 2 / 2",
        "0f9d3a52-7b64-4e0c-9c1d-2a3b4c5d6e7f", "TLX2501100001",
    ):  # fmt: skip
        assert fact in text, fact


@pytest.mark.needs("poppler")
def test_another_reader_finds_them_too(tmp_path: Path) -> None:
    file = tmp_path / "report.pdf"
    file.write_bytes(pdf(obstetric()))
    read = subprocess.run(["pdftotext", "-layout", file, "-"], capture_output=True, check=True, timeout=60)
    text = read.stdout.decode()
    assert read.stderr == b""
    for fact in (
        "279035121518989",
        "RPPS 99900000011",
        "RPPS 99900000029",
        "LENŒUVILLE",
        "l’opportunité",
        "Page 2 / 2",
    ):
        assert fact in text, fact
    fonts = subprocess.run(["pdffonts", file], capture_output=True, check=True, timeout=60).stdout.decode()
    rows = fonts.splitlines()[2:]
    assert len(rows) == 2
    assert all(re.search(r"yes\s+yes\s+yes", row) for row in rows), "embedded, a subset, with a Unicode map"


def test_the_same_report_gives_the_same_bytes() -> None:
    assert pdf(obstetric()) == pdf(obstetric())
    assert pdf(obstetric()) != pdf(obstetric(version=2))


def test_another_process_at_another_hour_gives_the_same_bytes() -> None:
    code = (
        "import hashlib, report_sources, mappers.fhir_to_pdf as made;"
        "print(hashlib.sha256(made.pdf(report_sources.obstetric())).hexdigest())"
    )
    here = Path(__file__).resolve()
    paths = os.pathsep.join([str(here.parent), str(here.parents[3])])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7", "TZ": "Pacific/Noumea"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert run.stdout.decode().strip() == hashlib.sha256(pdf(obstetric())).hexdigest()


def test_the_metadata_name_the_document_and_never_the_patient() -> None:
    data = pdf(obstetric())
    reader = PdfReader(io.BytesIO(data))
    xmp = data[data.index(b"<x:xmpmeta") : data.index(b"</x:xmpmeta>")].decode()
    assert data.startswith(b"%PDF-1.4")
    assert reader.trailer["/ID"]
    for fact in ("<pdfaid:part>1<", "<pdfaid:conformance>B<", "uuid:0f9d3a52-7b64-4e0c-9c1d-2a3b4c5d6e7f"):
        assert fact in xmp
    assert "2025-01-10T14:29:00+00:00" in xmp
    assert "VASSEUR-KONÉ" in xmp
    assert "PAT-TROIS" not in xmp
    assert "279035121518989" not in xmp


def test_a_report_of_a_production_site_bears_no_test_mark() -> None:
    assert "DOCUMENT DE TEST" not in text_of(pdf(obstetric(test=False)))


def test_a_report_says_from_whom_it_is_hidden() -> None:
    hidden = tuple(Code(code, VISIBILITY[code], VISIBILITY_OID) for code in ("MASQUE_PS", "INVISIBLE_PATIENT"))
    told = text_of(pdf(obstetric(visibility=hidden)))
    assert "confidentialité : Normal Masqué aux professionnels de santé · Non visible par le patient" in told
    assert "visible par" not in text_of(pdf(obstetric()))


def test_a_replacing_report_says_which_one_it_replaces() -> None:
    text = text_of(pdf(REPORTS["replaced"]))
    assert "Annule et remplace le document 11111111-2222-4333-8444-555555555555" in text
    assert "Coupure 3 min" in text
    assert "version 2" in text


def test_a_correction_says_why_in_a_line() -> None:
    why = "erreur de mesure du fémur"
    text = text_of(pdf(obstetric(version=2, replaces="11111111-2222-4333-8444-555555555555", correction=why)))
    assert f"Motif de la correction : {why}" in text
    for silent in ({"replaces": "11111111-2222-4333-8444-555555555555"}, {"correction": why}):
        assert "Motif de la correction" not in text_of(pdf(obstetric(**silent)))


@pytest.mark.parametrize("length", [2_000, 20_000])
def test_the_reason_of_a_correction_is_printed_whole(length: int) -> None:
    words = [f"motif{number}" for number in range(length // 10)]
    told = rendering(obstetric(version=2, replaces="11111111-2222-4333-8444-555555555555", correction=" ".join(words)))
    text = text_of(told.value).split()
    assert [one for one in text if one.startswith("motif")] == words and told.losses == ()


def test_a_reason_without_end_is_cut_with_a_word_about_it() -> None:
    why = "erreur " * 20_000
    told = rendering(obstetric(version=2, replaces="11111111-2222-4333-8444-555555555555", correction=why))
    assert "Motif de la correction : texte trop long, coupé ici" in " ".join(text_of(told.value).split())
    assert any("Motif de la correction" in one.reason for one in told.losses)


@pytest.mark.parametrize(
    ("zone", "clock"),
    [("Indian/Reunion", "18 h 29 (UTC+04:00)"), ("America/Guadeloupe", "10 h 29 (UTC-04:00)")],
)
def test_the_clock_is_that_of_the_site(zone: str, clock: str) -> None:
    assert clock in text_of(pdf(obstetric(zone=zone)))


def test_without_a_qualified_identity_no_ins_is_shown() -> None:
    text = text_of(pdf(REPORTS["empty"]))
    assert "aucun : identité non qualifiée" in text
    assert "279035121518989" not in text


def test_what_the_font_cannot_print_is_shown_counted_and_reported() -> None:
    made = rendering(obstetric(reason="Ciné 😀 مر", exchange=()))
    text = text_of(made.value)
    assert f"Ciné {PLACEHOLDER} {PLACEHOLDER}{PLACEHOLDER}" in text
    assert "3 caractères que la police de ce document ne sait pas imprimer" in text
    assert "U+1F600" in made.losses[0].reason
    assert rendering(obstetric()).losses == ()


def test_letters_of_european_languages_and_medical_signs_are_printed() -> None:
    words = "Œuvre cœur naïf Ÿ ß Ł ž ğ ő ñ β-hCG μg ≥ 37 °C ± 2 → ↑ ² ‰ Жанна Ελένη"
    made = rendering(obstetric(reason=words))
    assert made.losses == ()
    assert words in text_of(made.value)


def test_decomposed_accents_look_like_composed_ones() -> None:
    assert "échographie" in text_of(pdf(obstetric(reason="e\u0301chographie")))


@pytest.mark.parametrize("name", REPORTS)
def test_pages_and_time_are_bounded(name: str) -> None:
    started = time.monotonic()
    made = rendering(REPORTS[name])
    assert time.monotonic() - started < 60
    assert pages_of(made.value) <= 60
    assert len(made.value) < 400_000


@pytest.mark.parametrize("name", ["100 kB", "500 messages", "lines without end", "words without end"])
def test_a_cut_is_visible_on_the_page_and_reported(name: str) -> None:
    made = rendering(REPORTS[name])
    assert "l’intégralité est dans le dossier de la demande 7c1e2f4a-3b5d-4c6e-8f70-91a2b3c4d5e6" in text_of(made.value)
    assert any("l’intégralité est dans le dossier" in loss.reason for loss in made.losses)


def test_a_conclusion_of_100_kb_is_printed_to_its_end() -> None:
    text = text_of(pdf(obstetric(conclusion=LONG + "FIN DE LA CONCLUSION")))
    assert "FIN DE LA CONCLUSION" in text


def test_no_text_is_read_as_a_command() -> None:
    text = text_of(pdf(obstetric(reason="page {nb} **gras** __souligné__ <b>x</b>")))
    assert "page {nb} **gras** __souligné__ <b>x</b>" in text


def test_the_licence_travels_with_the_font() -> None:
    assert "SIL OPEN FONT LICENSE" in (ASSETS / "SourceSansPro-LICENSE.txt").read_text(encoding="utf-8")


# --- validators ----------------------------------------------------------------------------------------------------

PREFLIGHT = (
    "org.apache.pdfbox", "preflight-app", "3.0.3", "c4ddbeeeb66fc55b11d46422259b8cf8eb1af6370d804123a2c5f89c1e6ccece"
)  # fmt: skip
VERAPDF = (
    "org.verapdf.apps", "greenfield-apps", "1.26.2", "6b3cd7daa39d2364d2e6043cefa168a355fbec12457c35d93cdabbcd7448b599"
)  # fmt: skip


def written(folder: Path) -> list[Path]:
    files = []
    for name, made in REPORTS.items():
        files.append(folder / f"{name.replace(' ', '_')}.pdf")
        files[-1].write_bytes(pdf(made))
    return files


@pytest.mark.needs("java")
@pytest.mark.timeout(300)
def test_pdfbox_preflight_finds_valid_pdf_a_1b(tmp_path: Path) -> None:
    program = jar(*PREFLIGHT)
    for file in written(tmp_path)[:4]:
        run = subprocess.run(["java", "-jar", program, file], capture_output=True, timeout=120, check=False)
        assert "is a valid PDF/A-1b file" in run.stdout.decode(), run.stdout.decode() + run.stderr.decode()


@pytest.mark.needs("java")
@pytest.mark.timeout(300)
def test_verapdf_finds_valid_pdf_a_1b_and_sees_what_is_not(tmp_path: Path) -> None:
    classes = str(jar(*VERAPDF))
    command = ["java", "-cp", classes, "org.verapdf.apps.GreenfieldCliWrapper", "-f", "1b", "--format", "text"]
    files = written(tmp_path)
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(pdf(obstetric()).replace(b"<pdfaid:part>1<", b"<pdfaid:part>2<"))
    run = subprocess.run([*command, *map(str, files), str(broken)], capture_output=True, timeout=200, check=False)
    told = (line.split(maxsplit=1) for line in run.stdout.decode().splitlines() if line.strip())
    verdicts = {file: verdict for verdict, file in told}
    assert verdicts == {str(file): "PASS" for file in files} | {str(broken): "FAIL"}, run.stderr.decode()
