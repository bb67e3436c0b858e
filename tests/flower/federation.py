"""A Flower federation on the loopback, as users start one: a SuperLink, SuperNodes, and TLS between them."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

_PROGRAMS = Path(sys.executable).parent
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def write_certificates(folder: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key`, which it signed, for 127.0.0.1."""
    folder.mkdir()
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)

    def certificate(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=2))
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
        for extension in (*extensions, identifier, x509.SubjectKeyIdentifier.from_public_key(key.public_key())):
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority, hashes.SHA256())

    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    written = {
        "ca.pem": certificate(name, authority, x509.BasicConstraints(ca=True, path_length=0)).public_bytes(
            Encoding.PEM
        ),
        "server.pem": certificate(server_name, server, here).public_bytes(Encoding.PEM),
        "server.key": server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    for file, content in written.items():
        (folder / file).write_bytes(content)


def wait_for(what: str, is_so: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


class Federation:
    """A SuperLink and its SuperNodes, each in a process group of its own, with TLS.

    Args:
        folder: Gets certificates, logs and Flower's homes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = f"127.0.0.1:{free_port()}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        write_certificates(folder / "tls")
        ca, server, key = (str(folder / "tls" / name) for name in ("ca.pem", "server.pem", "server.key"))
        tls = ("--ssl-ca-certfile", ca, "--ssl-certfile", server, "--ssl-keyfile", key)
        port = self._address.partition(":")[2]
        self._start("link", "flower-superlink", *tls, "--port", port, "--disable-runtime-dependency-installation")
        wait_for("SuperLink listens", self._is_listening, 120)

    def start_node(self, place: int) -> None:
        given = ("--superlink", self._address, "--root-certificates", str(self._folder / "tls" / "ca.pem"))
        own = ("--port", str(free_port()), "--node-config", f"partition-id={place}")
        self._start(f"node-{place}", "flower-supernode", *given, *own)

    def run(self, app: Path, *config: str) -> subprocess.Popen[bytes]:
        """`flwr run` with values of the app's configuration; its output goes to `run.log`."""
        home = self._folder / "home-run"
        home.mkdir(exist_ok=True)
        ca = self._folder / "tls" / "ca.pem"
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n'
            f'[superlink.here]\naddress = "{self._address}"\nroot-certificates = "{ca}"\n'
        )
        given = [word for each in config for word in ("--run-config", each)]
        return self._start("run", "flwr", "run", str(app), "here", "--stream", *given)

    def stop_run(self) -> None:
        """`flwr stop` of the run that was started last."""
        (number,) = re.findall(r"Successfully started run (\d+)", self.log("run"))
        home = {"FLWR_HOME": str(self._folder / "home-run")}
        subprocess.run([_PROGRAMS / "flwr", "stop", number, "here"], env={**os.environ, **_QUIET, **home}, check=True)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        killed = self._processes.pop(name)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()

    def close(self) -> None:
        for name, process in list(self._processes.items()):
            if process.poll() is None:
                self.kill(name)

    def _is_listening(self) -> bool:
        host, _, port = self._address.partition(":")
        with socket.socket() as asking:
            return asking.connect_ex((host, int(port))) == 0

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        home = self._folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        path = f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [str(_PROGRAMS / program), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_QUIET, "PATH": path, "FLWR_HOME": str(home)},
                start_new_session=True,
            )
        return self._processes[name]
