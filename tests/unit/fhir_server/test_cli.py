"""The `passerelle` command: its exit codes, its JSON, and the same answers from a running and a stopped server."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import hubs
import pytest
from aiosmtpd.controller import Controller
from hubs import put
from servers import quiet

from dicom_node import sample
from dicom_node.header import Identifier
from fhir_server import cli
from fhir_server.app import Ports, Server
from fhir_server.context import SYSTEM
from fhir_server.delivery import intake
from fhir_server.demo import story
from fhir_server.store.engine import open_store
from hl7v2.message import parse

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file or environment of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs one command: (exit code, standard output, standard error)."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(words)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which an admission, a broken message and a finished case were taken in."""
    folder = tmp_path_factory.mktemp("filled")
    store = open_store(f"sqlite:///{folder / 'passerelle.db'}", folder)
    hub = hubs.directory(hubs.hub_on(store))
    for raw in (story.admission(), story.admission("KO").replace(b"|VALI", b"|NONSENSE")):
        intake.on_message(hub, raw, "192.0.2.1:1")
    hubs.asked(hub, state="in_progress")
    put(hub, hubs.EXPERT, hubs.opinion(hub))
    store.close()
    return folder


@pytest.fixture
def data(filled: Path, tmp_path: Path) -> str:
    """A copy of that folder of one's own."""
    shutil.copytree(filled, tmp_path / "data")
    return str(tmp_path / "data")


@contextlib.contextmanager
def serving(data: str) -> Iterator[Ports]:
    # A mail operator nobody can reach: what is made again is made for the roads there are.
    server = Server(quiet(data, retry_first_seconds=600.0, smtp="127.0.0.1:9"))
    try:
        yield server.start()
    finally:
        server.close()


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("inbox",), ("outbox",), ("send",), ("config",), ("db",), ("studies",)])
def test_a_group_without_a_command_shows_what_there_is(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words)
    assert (code, "usage: passerelle" in out) == (2, True)


@pytest.mark.parametrize(
    "words", [("nonsense",), ("inbox", "show"), ("outbox", "retry"), ("trace",), ("inbox", "list", "--limit", "many")]
)
def test_a_wrong_call_is_a_usage_error(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "usage" in err


def test_help_is_not_an_error(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in ("serve", "demo", "config", "inbox", "outbox", "studies", "trace", "send", "echo", "readyz"):
        assert name in out


def test_an_unknown_setting_is_a_usage_error_with_the_nearest_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSERELLE_MLLP_PROT", "1")
    code, _, err = run("config", "show")
    assert code == 2 and "did you mean `mllp_port`" in err
    assert run("config", "show", "--config", "nowhere.toml")[0] == 2


def test_a_server_that_may_not_start_says_why(run: Run) -> None:
    code, _, err = run("serve")
    assert code == 2 and err.startswith("passerelle: ") and "PASSERELLE_AUTH=none" in err
    code, _, err = run("serve", "--auth", "none", "--bind", "0.0.0.0")
    assert code == 2 and "loopback" in err


# --- settings --------------------------------------------------------------------------------------------------------


def test_config_show_tells_each_value_and_its_origin_and_no_secret(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSERELLE_MAIL_PASSWORD", "s3cret")
    monkeypatch.setenv("PASSERELLE_DATABASE_URL", "postgresql://me:s3cret@host/db")
    code, out, _ = run("config", "show", "--http-port", "8181")
    assert code == 0 and "s3cret" not in out
    assert any("http_port" in line and "8181" in line and "flag" in line for line in out.splitlines())
    code, out, _ = run("config", "show", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert "s3cret" not in out
    assert rows["mail_password"]["value"] == "********"
    assert rows["mail_password"]["origin"] == "PASSERELLE_MAIL_PASSWORD"
    assert rows["database_url"]["value"] == "postgresql://me:********@host/db"


def test_config_init_writes_a_file_that_can_be_used_and_is_never_overwritten(run: Run) -> None:
    assert run("config", "init")[0] == 0
    code, out, _ = run("config", "show", "--json")
    assert (
        code == 0
        and {"name": "sites", "value": "ch-demo"}.items()
        <= next(row for row in json.loads(out) if row["name"] == "sites").items()
    )
    code, _, err = run("config", "init")
    assert code == 1 and "exists" in err


def test_db_status_and_upgrade(run: Run, tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path / "new"))
    assert run("db", "upgrade", *where)[0] == 0
    code, out, _ = run("db", "status", "--json", *where)
    status = json.loads(out)
    assert code == 0 and status["present"] == status["needed"]
    code, _, err = run("db", "status", "--database-url", "postgresql://127.0.0.1:9/nothing")
    assert code == 1 and "passerelle:" in err


# --- inbox, outbox, trace --------------------------------------------------------------------------------------------


@pytest.fixture(params=["stopped", "running"])
def house(request: pytest.FixtureRequest, data: str) -> Iterator[str]:
    """The data folder, on its own and with a server that serves it."""
    if request.param == "stopped":
        yield data
        return
    with serving(data):
        yield data


def test_the_inbox_lists_and_shows_whether_the_server_runs_or_not(run: Run, house: str) -> None:
    where = ("--data-dir", house)
    code, out, _ = run("inbox", "list", "--json", *where)
    rows = json.loads(out)
    assert code == 0 and [(row["control_id"], row["state"]) for row in rows] == [
        ("KO", "error"),
        ("HISTOIRE0001", "done"),
    ]
    code, out, _ = run("inbox", "list", "--state", "error", *where)
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["id", "received_at", "channel"] and len(lines) == 2 and "KO" in lines[1]
    code, out, _ = run("inbox", "show", rows[0]["id"], *where)
    assert code == 0 and "MSH|" in out and "NONSENSE" in out
    assert json.loads(run("inbox", "show", rows[0]["id"], "--json", *where)[1])["location"]
    code, out, _ = run("inbox", "show", rows[1]["id"], "--sources", *where)
    assert code == 0 and "<- PID-5" in out and "Patient.active = 'true' <- fixed by the mapper" in out
    told = json.loads(run("inbox", "show", rows[1]["id"], "--sources", "--json", *where)[1])
    assert told["sources"]["mapper"] and "Patient.birthDate" in {one["element"] for one in told["sources"]["elements"]}
    code, out, _ = run("inbox", "list", "--key", "nobody", *where)
    assert (code, out) == (0, "(none)\n")


def test_the_outbox_lists_shows_holds_retries_and_cancels(run: Run, house: str) -> None:
    where = ("--data-dir", house)
    rows = json.loads(run("outbox", "list", "--key", "ServiceRequest/r", "--json", *where)[1])
    assert len(rows) == 3
    mail = next(row["id"] for row in rows if row["lane"].startswith("mssante:"))
    deadline = time.monotonic() + 20
    while run("outbox", "hold", mail, "--reason", "attendre", *where)[0] != 0:
        # A running server may be trying it at this very moment.
        assert time.monotonic() < deadline
    shown = json.loads(run("outbox", "show", mail, "--json", *where)[1])
    assert (shown["state"], shown["why"]) == ("held", "held: attendre")
    assert run("outbox", "cancel", mail, *where)[0] == 0
    code, _, err = run("outbox", "retry", mail, *where)
    assert code == 1 and "cancelled" in err
    assert json.loads(run("outbox", "show", mail, "--json", *where)[1])["state"] == "cancelled"


def test_a_delivery_is_let_go_and_sent_again_and_a_destination_ruled(run: Run, house: str) -> None:
    where = ("--data-dir", house)
    rows = json.loads(run("outbox", "list", "--key", "ServiceRequest/r", "--json", *where)[1])
    mail = next(row for row in rows if row["lane"].startswith("mssante:"))
    lane = mail["lane"]
    assert run("lane", "pause", lane, "--reason", "travaux", *where)[0] == 0
    deadline = time.monotonic() + 20
    while run("outbox", "hold", mail["id"], *where)[0] != 0:
        assert time.monotonic() < deadline
    assert run("outbox", "release", mail["id"], *where)[0] == 0
    shown = json.loads(run("outbox", "show", mail["id"], "--json", *where)[1])
    assert (shown["state"], shown["why"]) == ("queued", "its lane is paused: travaux")
    assert run("outbox", "cancel", mail["id"], *where)[0] == 0
    again = json.loads(run("outbox", "resend", mail["id"], "--json", *where)[1])
    assert (again["parent"], again["state"]) == (mail["id"], "queued")
    assert run("outbox", "hold", again["id"], *where)[0] == 0
    code, out, err = run("outbox", "regenerate", again["id"], "--json", *where)
    assert code == 0, err
    made = json.loads(out)
    assert (made["parent"], made["state"]) == (again["id"], "queued") and made["id"] != again["id"]
    shown = json.loads(run("outbox", "show", again["id"], "--json", *where)[1])
    assert shown["state"] == "cancelled" and f"regenerated as {made['id']}" in shown["error"]
    renewed = json.loads(run("outbox", "show", made["id"], "--json", *where)[1])
    assert renewed["lane"] == lane and renewed["sha256"] != shown["sha256"], "rendered anew, not sent again"
    rule = ("--on-stuck", "block", "--on-silence", "hold", "--per-second", "2", "--answer-seconds", "90")
    code, out, err = run("lane", "policy", lane, *rule, "--json", *where)
    told = json.loads(out)
    wanted = {"on_stuck": "block", "on_silence": "hold", "per_second": 2, "answer_seconds": 90}
    assert {name: told[name] for name in wanted} == wanted
    code, _, err = run("lane", "policy", lane, "--keep-open-seconds", "60", *where)
    assert code == 1 and "a mail has a session of its own" in err
    assert run("lane", "resume", lane, *where)[0] == 0


def test_the_trace_tells_the_story_in_order(run: Run, house: str) -> None:
    where = ("--data-dir", house)
    code, out, _ = run("trace", "r", *where)
    lines = out.splitlines()
    assert code == 0 and lines == sorted(lines, key=lambda line: line[:24])
    for word in ("ServiceRequest/r version 1", "DiagnosticReport/r", "delivery "):
        assert word in out
    story_told = json.loads(run("trace", "ServiceRequest/r", "--json", *where)[1])
    assert {"at", "kind", "text", "source"} == set(story_told[0])
    code, _, err = run("trace", "nothing", *where)
    assert code == 1 and "no ServiceRequest nothing" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("inbox", "show", "NOPE"), "`passerelle inbox list` shows them"),
        (("outbox", "show", "NOPE"), "NOPE"),
        (("outbox", "hold", "NOPE"), "NOPE"),
        (("studies", "attach", "1.2.3", "r"), "passerelle studies list"),
    ],
)
def test_what_is_not_there_is_a_failure_with_a_sentence(
    run: Run, house: str, words: tuple[str, ...], told: str
) -> None:
    code, out, err = run(*words, "--data-dir", house)
    assert (code, out) == (1, "") and told in err


def test_without_a_database_the_next_thing_to_try_is_told(run: Run, tmp_path: Path) -> None:
    for words in (("inbox", "list"), ("outbox", "list"), ("trace", "r")):
        code, _, err = run(*words)
        assert code == 1 and "passerelle demo" in err
        code, _, err = run(*words, "--data-dir", str(tmp_path / "empty"))
        assert code == 1 and "passerelle demo" in err


def test_a_data_folder_one_may_not_use_is_told_without_a_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run("db", "upgrade", "--data-dir", str(tmp_path / "file" / "data"))
    assert code == 1 and err.startswith("passerelle: ")


def test_something_else_at_the_servers_address_is_told(run: Run, data: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    from fhir_server.store.folder import DataFolderLock

    other = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=other.serve_forever, args=(0.05,))
    thread.start()
    try:
        with DataFolderLock(Path(data), http_url=f"http://127.0.0.1:{other.server_port}"):
            code, _, err = run("inbox", "list", "--data-dir", data)
            assert code == 1 and "is that a Passerelle" in err
        with DataFolderLock(Path(data), http_url="http://127.0.0.1:9"):
            code, _, err = run("inbox", "list", "--data-dir", data)
            assert code == 1 and "does not answer" in err and "readyz" in err
        with DataFolderLock(Path(data)):
            code, _, err = run("inbox", "list", "--data-dir", data)
            assert code == 1 and "starting" in err
    finally:
        other.shutdown()
        thread.join(10)
        other.server_close()


# --- keeping it sound ------------------------------------------------------------------------------------------------


def test_check_reindex_retention_and_backup_work_whether_the_server_runs_or_not(
    run: Run, house: str, tmp_path: Path
) -> None:
    where = ("--data-dir", house)
    code, out, err = run("check", *where)
    assert code == 0 and "everything agrees" in out, out + err
    code, out, err = run("check", "--deep", "--json", *where)
    assert (code, json.loads(out)["ok"]) == (0, True), err
    code, out, err = run("check", "--repair", *where)
    assert code == 0, out + err
    code, out, err = run("reindex", "--json", *where)
    assert (code, json.loads(out)["changed"], json.loads(out)["done"]) == (0, 0, True), err
    code, out, _ = run("retention", "--keep-days", "30", "--json", *where)
    assert (code, json.loads(out)["messages"]) == (0, 0)
    code, _, err = run("retention", *where)
    assert code == 1 and "keep_days" in err
    code, out, _ = run("backup", str(tmp_path / "copy"), "--json", *where)
    assert code == 0 and json.loads(out)["damaged"] == []
    code, _, err = run("backup", str(tmp_path / "copy"), *where)
    assert code == 1 and "not empty" in err
    code, _, err = run("restore", str(tmp_path / "copy"), *where)
    assert code == 1 and err.startswith("passerelle: ")
    assert run("restore", str(tmp_path / "copy"), "--data-dir", str(tmp_path / "new"))[0] == 0
    lanes = json.loads(run("lane", "list", "--json", "--data-dir", str(tmp_path / "new"))[1])
    assert lanes and all(lane["paused"] for lane in lanes)
    assert run("lane", "resume", lanes[0]["name"], "--data-dir", str(tmp_path / "new"))[0] == 0


def test_what_the_command_line_did_is_in_the_audit_trail(run: Run, house: str, tmp_path: Path) -> None:
    where = ("--data-dir", house)
    run("inbox", "list", *where)
    run("backup", str(tmp_path / "copy"), *where)
    with contextlib.closing(
        open_store(f"sqlite:///{Path(house) / 'passerelle.db'}", Path(house), migrate=False)
    ) as store:
        with store.read(SYSTEM) as snapshot:
            rows = snapshot.audit_rows()
    told = {row.event: row for row in rows if row.event}
    assert {"inbox-list", "backup"} <= set(told) or {"inbox-list", "note"} <= set(told)
    assert all(row.display.endswith("(ligne de commande)") for row in told.values() if row.event == "inbox-list")
    assert any("copy" in row.text for row in rows)


def test_a_disagreement_is_an_exit_1_with_the_remedy(run: Run, data: str) -> None:
    with contextlib.closing(
        open_store(f"sqlite:///{Path(data) / 'passerelle.db'}", Path(data), migrate=False)
    ) as store:
        store.write(SYSTEM, lambda tx: tx.view.db.run("DELETE FROM idx_token"))
    code, out, _ = run("check", "--data-dir", data)
    assert code == 1 and "passerelle check --repair" in out
    assert run("check", "--repair", "--data-dir", data)[0] == 0
    assert run("check", "--data-dir", data)[0] == 0


def test_a_message_that_was_refused_is_processed_once_more(run: Run, house: str) -> None:
    where = ("--data-dir", house)
    (row,) = json.loads(run("inbox", "list", "--state", "error", "--json", *where)[1])
    code, out, err = run("inbox", "replay", row["id"], "--json", *where)
    assert code == 0 and json.loads(out)["state"] == "error" and "MSA|AE" in json.loads(out)["ack"], err
    (done,) = json.loads(run("inbox", "list", "--state", "done", "--json", *where)[1])
    code, _, err = run("inbox", "replay", done["id"], *where)
    assert code == 1 and err


def test_a_schema_of_a_served_folder_is_not_touched(run: Run, house: str) -> None:
    assert run("db", "current", "--data-dir", house)[0] == 0
    assert run("db", "upgrade", "--data-dir", house)[0] == 0
    code, out, _ = run("db", "current", "--data-dir", str(Path(house).parent / "none"))
    assert (code, out) == (1, "(none)\n")


def test_help_lists_every_command_and_the_exit_codes(run: Run) -> None:
    code, out, _ = run("help")
    assert code == 0 and "exit: 0 done" in out
    assert all(command.path in out for command in cli.COMMANDS)
    code, out, _ = run("help", "outbox", "hold")
    assert code == 0 and "--reason" in out


# --- playing a partner -----------------------------------------------------------------------------------------------


def test_messages_and_images_can_be_sent_and_the_server_asked(run: Run, data: str, tmp_path: Path) -> None:
    good, bad, clip = tmp_path / "good.er7", tmp_path / "bad.er7", tmp_path / "clip.dcm"
    good.write_bytes(story.admission("S1", "DEMO0050"))
    bad.write_bytes(story.admission("S2").replace(b"ADT^A01", b"ADT^A99"))
    clip.write_bytes(sample.clip(patient_id=Identifier("X"), patient_name="X"))
    with serving(data) as ports:
        mllp, dicom = f"mllp://127.0.0.1:{ports.mllp}", f"dicom://PASSERELLE@127.0.0.1:{ports.dicom}"
        code, out, _ = run("send", "hl7", str(good), "--to", mllp)
        assert (code, out.strip()) == (0, f"{good}: AA S1")
        code, out, _ = run("send", "hl7", str(good), str(bad), "--to", mllp)
        assert code == 1 and "AE S2" in out and "201" in out
        code, out, _ = run("send", "dicom", str(clip), "--to", dicom)
        assert code == 0 and out.strip().endswith("0x0000")
        assert run("echo", dicom)[0] == 0
        code, out, _ = run("echo", f"http://127.0.0.1:{ports.http}/readyz")
        assert (code, out.split("\n")[:2]) == (0, ["ready", f"HTTP {ports.http}"])
        assert run("readyz", "--http-port", str(ports.http))[:2] == (0, out)
        assert run("echo", mllp)[0] == 0
        resource = tmp_path / "basic.json"
        resource.write_text('{"resourceType": "Basic", "id": "b", "code": {"text": "x"}}')
        base = f"http://127.0.0.1:{ports.http}/fhir"
        assert run("send", "fhir", str(resource), "--to", base)[1].startswith(f"{resource}: 201")
        resource.write_text('{"resourceType": "Basic", "id": "b"}')
        code, out, _ = run("send", "fhir", str(resource), "--to", base)
        assert code == 1 and " 4" in out
        assert run("partners", "list", "--data-dir", data)[0] == 0
        rows = json.loads(run("studies", "list", "--json", "--data-dir", data)[1])
        assert rows[0]["patient_id"] == "X"
        assert run("studies", "attach", rows[0]["study_uid"], "r", "--data-dir", data)[0] == 0


def test_partners_that_are_not_there_are_told(run: Run, tmp_path: Path, free_port: Callable[[], int]) -> None:
    message, clip = tmp_path / "a.er7", tmp_path / "a.dcm"
    message.write_bytes(story.admission())
    message.with_suffix(".json").write_text('{"resourceType": "Basic"}')
    clip.write_bytes(sample.clip(patient_id=Identifier("X"), patient_name="X"))
    port = free_port()
    for words in (
        ("send", "hl7", str(message), "--to", f"mllp://127.0.0.1:{port}"),
        ("send", "dicom", str(clip), "--to", f"dicom://X@127.0.0.1:{port}"),
        ("echo", f"dicom://X@127.0.0.1:{port}"),
        ("echo", f"mllp://127.0.0.1:{port}"),
        ("echo", f"smtp://127.0.0.1:{port}"),
        ("send", "fhir", str(message.with_suffix(".json")), "--to", f"http://127.0.0.1:{port}/fhir"),
        ("echo", f"http://127.0.0.1:{port}/readyz"),
        ("readyz", "--http-port", str(port)),
        ("readyz", "--http-port", str(port), "--wait", "0.2"),
    ):
        code, out, err = run(*words)
        assert (code, out) == (1, "") and str(port) in err, words


@pytest.mark.parametrize(
    "words",
    [
        ("send", "hl7", "x.er7", "--to", "http://127.0.0.1:1"),
        ("send", "hl7", "x.er7", "--to", "mllp://127.0.0.1"),
        ("send", "hl7", "x.er7", "--to", "mllp://127.0.0.1:99999"),
        ("send", "hl7", "x.er7", "--to", "mllp://127.0.0.1:9"),
        ("send", "dicom", "x.dcm", "--to", "dicom://A@127.0.0.1:99999"),
        ("send", "dicom", "x.dcm", "--to", "dicom://A@127.0.0.1:9"),
        ("echo", "gopher://x"),
        ("echo", "dicom://[::1"),
    ],
)
def test_an_address_or_a_file_one_cannot_use_is_a_failure_without_a_traceback(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (1, "")
    assert err.startswith("passerelle: ") and "Traceback" not in err


def test_a_mail_can_be_sent_and_a_mail_server_asked(run: Run, tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    letter = tmp_path / "letter.eml"
    letter.write_text("From: a@x.example\nTo: b@x.example\nSubject: essai\n\nbonjour\n")
    taken: list[bytes] = []

    class Box:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd
            taken.append(envelope.content)
            return "250 OK"

    server = Controller(Box(), hostname="127.0.0.1", port=port)
    server.start()
    try:
        assert run("echo", f"smtp://127.0.0.1:{port}")[0] == 0
        words = ("--to", f"smtp://127.0.0.1:{port}", "--from", "a@x.example", "--recipient", "b@x.example")
        code, out, err = run("send", "mail", str(letter), *words, "--security", "none")
        assert code == 0 and "250" in out, err
    finally:
        server.stop()
    assert b"Subject: essai\r\n" in taken[0]


def test_what_was_sent_by_hand_is_what_the_server_got(run: Run, data: str, tmp_path: Path) -> None:
    raw = tmp_path / "a.er7"
    raw.write_bytes(story.admission("S9"))
    with serving(data) as ports:
        run("send", "hl7", str(raw), "--to", f"mllp://127.0.0.1:{ports.mllp}")
        listed = json.loads(run("inbox", "list", "--json", "--limit", "1", "--data-dir", data)[1])
        shown = json.loads(run("inbox", "show", listed[0]["id"], "--json", "--data-dir", data)[1])
    assert shown["content"].replace("\n", "\r").encode() == raw.read_bytes()
    assert parse(raw.read_bytes()).control_id == shown["control_id"] == "S9"


def test_conformance_is_passed_on(run: Run) -> None:
    code, out, _ = run("conformance", "list")
    assert code == 0 and "fhir." in out
