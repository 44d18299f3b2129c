"""A private Postfix and a private Dovecot on loopback, for tests: one operator made of the programs operators run.

Postfix takes mail by SMTP (STARTTLS offered, DSN on), delivers to a Maildir a user, and reports back; Dovecot shows the
same Maildirs by IMAP. Nothing is installed or started system-wide; `stop` ends both and removes their folder.
They need root, as Postfix does. Their folder stands in the system's temporary folder, because their own users cannot
enter pytest's. Sources: postconf(5), master(5), doc.dovecot.org.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
DOMAIN = "operateur.mssante.fr"
PASSWORD = "essai"
REFUSED = f"refuse@{DOMAIN}"
_OWNER = "nobody"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

_MAIN_CF = """
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
meta_directory = /etc/postfix
shlib_directory = /usr/lib/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = {root}/postfix.log
maillog_file_prefixes = {root}
myhostname = mx.{domain}
mydestination =
local_transport = error:no local users
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
smtputf8_enable = no
biff = no
message_size_limit = 20000000
mailbox_size_limit = 0
virtual_mailbox_limit = 0
virtual_mailbox_domains = {domains}
virtual_mailbox_base = {root}/mail
virtual_mailbox_maps = inline:{{ {users} }}
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_transport = virtual
smtpd_reject_unlisted_recipient = no
smtpd_recipient_restrictions =
  check_recipient_access inline:{{ {{ {refused} = 550 5.1.1 boite fermee }} }},
  permit_mynetworks, reject
smtpd_tls_security_level = may
smtpd_tls_cert_file = {root}/certificate.pem
smtpd_tls_key_file = {root}/key.pem
smtpd_peername_lookup = no
smtpd_client_connection_rate_limit = 0
bounce_queue_lifetime = 1m
default_database_type = hash
"""

_MASTER_CF = """
{host}:{smtp_port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""

_DOVECOT_CONF = """
protocols = imap
listen = {host}
base_dir = {root}/run
state_dir = {root}/state
log_path = {root}/dovecot.log
info_log_path = {root}/dovecot.log
ssl = yes
ssl_cert = <{root}/certificate.pem
ssl_key = <{root}/key.pem
disable_plaintext_auth = no
auth_mechanisms = plain login
first_valid_uid = 1
first_valid_gid = 1
mail_location = maildir:{root}/mail/%u
namespace inbox {{
  inbox = yes
}}
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={root}/mail/%u allow_all_users=yes
}}
service imap-login {{
  inet_listener imap {{
    address = {host}
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"""


@dataclass
class MailServers:
    """The running pair. `users` maps address to password; `certificate` is the authority to trust for `localhost`."""

    root: Path
    smtp_port: int
    imap_port: int
    users: Mapping[str, str]
    certificate: Path
    _running: list[Callable[[], None]] = field(default_factory=list)

    def stop(self) -> None:
        """End both servers and remove what they wrote."""
        for end in reversed(self._running):
            end()
        self._running.clear()
        shutil.rmtree(self.root, ignore_errors=True)

    def log(self) -> str:
        """What both servers logged, for a failing test to show."""
        names = ("postfix.log", "dovecot.log")
        return "\n".join((self.root / name).read_text() for name in names if (self.root / name).exists())


def mail_servers(tmp_path: Path, free_port: Callable[[], int], addresses: tuple[str, ...] = ()) -> MailServers:
    """Start both servers and wait until they answer.

    Mailboxes exist for `addresses` (two of the domain DOMAIN unless told); any other address of their domains bounces,
    and REFUSED is turned away at RCPT. `tmp_path` only receives the servers' logs when they do not start.
    Raises PermissionError when not root.
    """
    if os.geteuid() != 0:
        raise PermissionError("Postfix and Dovecot change users: run these tests as root")
    addresses = addresses or (f"passerelle@{DOMAIN}", f"requerant@{DOMAIN}")
    owner = _owner()
    root = Path(tempfile.mkdtemp(prefix="mailservers-"))
    root.chmod(0o755)
    servers = MailServers(root, free_port(), free_port(), dict.fromkeys(addresses, PASSWORD), root / "certificate.pem")
    values = {
        "root": root, "domain": DOMAIN, "host": HOST, "refused": REFUSED, "password": PASSWORD, "uid": owner[0],
        "gid": owner[1], "smtp_port": servers.smtp_port, "imap_port": servers.imap_port,
        "domains": ", ".join(sorted({DOMAIN, *(address.rpartition("@")[2] for address in addresses)})),
        "users": ", ".join(f"{{ {address} = {address}/ }}" for address in addresses),
    }  # fmt: skip
    try:
        _certificate(root)
        _prepare(root, addresses, owner)
        _start_postfix(servers, values)
        _start_dovecot(servers, values)
        _wait(servers)
    except BaseException:
        (tmp_path / "mail-servers.log").write_text(servers.log())
        servers.stop()
        raise
    return servers


def _owner() -> tuple[int, int]:
    entry = pwd.getpwnam(_OWNER)
    return entry.pw_uid, entry.pw_gid


def _run(*command: str, timeout: float = 60) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=_ENVIRONMENT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")


def _certificate(root: Path) -> None:
    _run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(root / "key.pem"),
        "-out", str(root / "certificate.pem"),
    )  # fmt: skip


def _prepare(root: Path, addresses: tuple[str, ...], owner: tuple[int, int]) -> None:
    for name in ("queue", "data", "etc", "run", "state", "mail"):
        (root / name).mkdir(mode=0o755)
    shutil.chown(root / "data", "postfix", "postfix")
    os.chown(root / "mail", *owner)
    for address in addresses:
        for folder in ("", "cur", "new", "tmp"):
            path = root / "mail" / address / folder
            path.mkdir(mode=0o700)
            os.chown(path, *owner)


def _start_postfix(servers: MailServers, values: Mapping[str, object]) -> None:
    etc = servers.root / "etc"
    (etc / "main.cf").write_text(_MAIN_CF.format(**values))
    (etc / "master.cf").write_text(_MASTER_CF.format(**values))
    _run("postfix", "-c", str(etc), "start")
    servers._running.append(lambda: _run("postfix", "-c", str(etc), "stop"))


def _start_dovecot(servers: MailServers, values: Mapping[str, object]) -> None:
    configuration = servers.root / "etc" / "dovecot.conf"
    configuration.write_text(_DOVECOT_CONF.format(**values))
    with (servers.root / "dovecot.log").open("ab") as log:
        process = subprocess.Popen(
            ["dovecot", "-F", "-c", str(configuration)], env=_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=log
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)

    servers._running.append(end)


def _wait(servers: MailServers, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    for port, greeting in ((servers.smtp_port, b"220"), (servers.imap_port, b"* OK")):
        while not _greets(port, greeting):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no server on port {port}: {servers.log()[-2000:]}")
            threading.Event().wait(0.05)


def _greets(port: int, greeting: bytes) -> bool:
    try:
        with socket.create_connection((HOST, port), 5) as probe:
            probe.settimeout(5)
            return probe.recv(200).startswith(greeting)
    except OSError:
        return False
