# Copyright: Tenfold contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests share: running a module, a tiny project to compile, and memcacheds as they are asked for."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import ipaddress
import itertools
import json
import os
import socketserver
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.common import warnings

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch) -> RunModule:
    """A function that runs a module's main() with options and returns its result.

    check and diff set the modes. "failed" is in every result.
    """

    def run(module: ModuleType, options: dict[str, Any], check: bool = False, diff: bool = False) -> dict[str, Any]:
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": diff}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        # ansible-core 2.19 and later also ask how the arguments are serialized.
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        # Warnings are kept for the life of the process, which here is that of many modules.
        monkeypatch.setattr(warnings, "_global_warnings", type(warnings._global_warnings)())
        # Tests of actions import the controller's code, which takes the warnings of modules for its own.
        with contextlib.suppress(ImportError):  # before ansible-core 2.19
            monkeypatch.setattr("ansible.module_utils._internal.is_controller", False, raising=False)
        output = io.StringIO()
        umask = os.umask(0)
        os.umask(umask)
        try:
            with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
                module.main()
        finally:
            os.umask(umask)  # a module's own ends with its process
        result = json.loads(output.getvalue())
        assert (ended.value.code != 0) == result.setdefault("failed", False)
        return result

    return run


# A project such as autotools makes, without a compiler: what it installs tells how it was made.
PROJECT = {
    "configure": """\
#!/bin/sh
for argument; do case $argument in --prefix=*) prefix=${argument#--prefix=} ;; esac; done
printf '%s\\n' "$@" > arguments
printf 'prefix = %s\\n' "$prefix" > config.mk
echo "checking whether all is well... yes"
""",
    "Makefile": """\
include config.mk
to = $(DESTDIR)$(prefix)
all:
\tcp greet.sh greet
install: all
\tmkdir -p $(to)/bin $(to)/share
\tcp greet $(to)/bin/greet
\tln -s greet $(to)/bin/hello
\tcp arguments $(to)/share
""",
    "greet.sh": "#!/bin/sh\necho greetings from @version@\n",
}


def write_tar(path: Path, files: Mapping[str, str | bytes]) -> str:
    """Write files, all of them executable, to an archive and give its sha256."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(data)
            archive.addfile(entry, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def make_source() -> Callable[..., str]:
    """A function that writes the source archive of a tiny project and gives its sha256.

    version is told by its program; files replace or add to those of PROJECT.
    """

    def make(path: Path, version: str = "1", files: Mapping[str, str] | None = None) -> str:
        content = {**PROJECT, **(files or {})}
        content["greet.sh"] = content["greet.sh"].replace("@version@", version)
        return write_tar(path, {f"greet-{version}/{name}": text for name, text in content.items()})

    return make


@pytest.fixture(scope="session")
def make_tar() -> Callable[[Path, Mapping[str, str | bytes]], str]:
    """A function that writes files to an archive and gives its sha256."""
    return write_tar


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key no other test uses: the memcacheds are shared."""
    return f"{request.node.name.split('[')[0]}:{next(_numbers)}"


_numbers = itertools.count()


@pytest.fixture(scope="session")
def memcached(start_memcached: Callable[..., Any]) -> Any:
    """A memcached as it is by default."""
    return start_memcached()


@pytest.fixture(scope="session")
def unix_memcached(start_memcached: Callable[..., Any]) -> Any:
    """A memcached on a Unix socket."""
    return start_memcached(unix=True)


@pytest.fixture(scope="session")
def login_memcached(start_memcached: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A memcached that asks for the login of deploy, password "sesame"."""
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text("other:x\ndeploy:sesame\n")
    return start_memcached("-Y", str(users))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of PEM files: ca, other_ca, cert (for cache.example.test) and key, both of ca.

    The certificate serves as the server's and as a client's; locked_key needs a pass phrase.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    directory = tmp_path_factory.mktemp("certificates")
    today = datetime.datetime(2024, 1, 1)
    pem = serialization.Encoding.PEM

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def write(file: str, content: bytes) -> str:
        (directory / file).write_bytes(content)
        return str(directory / file)

    def build(subject: str, issuer: str, public: Any, signer: Any, is_ca: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(today)
            .not_valid_after(today + datetime.timedelta(days=36500))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(subject), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]),
                critical=False,
            )
        )
        return builder.sign(signer, hashes.SHA256()).public_bytes(pem)

    def private(key: Any, lock: Any) -> bytes:
        return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, lock)

    paths = {}
    unlocked = serialization.NoEncryption()
    for ca in ("other_ca", "ca"):
        ca_key = ec.generate_private_key(ec.SECP256R1())
        paths[ca] = write(ca, build(ca, ca, ca_key.public_key(), ca_key, True))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = build("cache.example.test", "ca", key.public_key(), ca_key, False)
    paths["cert"] = write("cert", certificate)
    paths["key"] = write("key", private(key, unlocked))
    paths["other_key"] = write("other_key", private(ca_key, unlocked))
    locked = serialization.BestAvailableEncryption(b"phrase")
    paths["locked_key"] = write("locked_key", private(key, locked))
    return paths


class ScriptedMemcached(socketserver.ThreadingTCPServer):
    """A server that answers commands by a table, for what a real memcached does not do at will.

    answers gives the answer by a command's beginning; the default is "ERROR", and b"" closes the
    connection. commands are the lines it got.
    """

    daemon_threads = True

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = {"version": b"VERSION 1.5.22\r\n", **answers}
        self.commands: list[str] = []
        super().__init__(("127.0.0.1", 0), _Script)
        self.options = {"port": self.server_address[1]}


class _Script(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, ScriptedMemcached)
        for line in self.rfile:
            command = line.decode().strip()
            server.commands.append(command)
            if command.startswith("set "):
                self.rfile.read(int(command.split()[4]) + 2)
            matching = [start for start in server.answers if command.startswith(start)]
            answer = server.answers[max(matching, key=len)] if matching else b"ERROR\r\n"
            if not answer:
                return
            self.wfile.write(answer)


@pytest.fixture
def scripted() -> Iterator[Callable[[dict[str, bytes]], ScriptedMemcached]]:
    """A function that starts a ScriptedMemcached with a table of answers."""
    servers: list[ScriptedMemcached] = []

    def start(answers: dict[str, bytes]) -> ScriptedMemcached:
        server = ScriptedMemcached(answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
