"""Seals: what a client sealed for this run is opened, and nothing else is."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.algorithms import FedAvg
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.federated.seals import NUM_SEAL_BYTES, Sealer, Seals
from fedhq_lightning.federated.server import Server
from fedhq_lightning.support.collectives import Processes

from ..keys import write_keys
from ..small_federation import same_bits
from .test_server import GLOBAL, LINK, payload, server

RUN = b"run 1"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys", ("a", "b", 7))
    return tmp_path / "keys"


def test_what_was_sealed_comes_back(keys: Path) -> None:
    for client_id in ("a", 7):
        sealed = Sealer(keys / f"{client_id}.key", RUN).seal(b"payload")
        assert len(sealed) == 7 + NUM_SEAL_BYTES
        assert Seals(keys, RUN).open(client_id, sealed) == b"payload"


def test_every_byte_counts(keys: Path) -> None:
    sealed, seals = Sealer(keys / "a.key", RUN).seal(b"payload"), Seals(keys, RUN)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        for given in (bytes(changed), sealed[:place], sealed[place + 1 :]):
            with pytest.raises(PayloadError, match="its seal is not one of client a for this run"):
                seals.open("a", given)


def test_another_client_and_another_run_are_refused(keys: Path) -> None:
    sealed = Sealer(keys / "a.key", RUN).seal(b"payload")
    for client_id, run in (("b", RUN), ("a", b"run 2"), ("a", b"")):
        with pytest.raises(PayloadError, match="not one of client"):
            Seals(keys, run).open(client_id, sealed)


def test_a_server_takes_sealed_updates_alone(keys: Path) -> None:
    sealed = server(unseal=Seals(keys, RUN).open).open_round(1, GLOBAL)
    sealed.receive("a", Sealer(keys / "a.key", RUN).seal(payload("a", 0.5)), 3)
    sealed.receive("b", payload("b", 0.5), 3)
    found = sealed.close()
    plain = Server(LINK, FedAvg(), frozenset({"weight"}), Processes(None)).open_round(1, GLOBAL)
    plain.receive("a", payload("a", 0.5), 3)
    assert same_bits(found.state, plain.close().state)
    assert found.refused == {"b": "its seal is not one of client b for this run"}


@pytest.mark.parametrize("name", ["../keys/a", "/etc/passwd", "", "a/../a"])
def test_an_id_does_not_lead_out_of_the_folder(keys: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be the name of a key file"):
        Seals(keys, RUN).check(name)


def test_keys_that_are_none(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"c\.pub: cannot be read"):
        Seals(keys, RUN).check("c")
    (keys / "d.pub").write_text("no key", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"d\.pub: no public key in PEM"):
        Seals(keys, RUN).check("d")
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (keys / "e.key").write_bytes(other)
    with pytest.raises(ConfigurationError, match=r"e\.key: a key of another kind"):
        Sealer(keys / "e.key", RUN)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_keys(tmp_path: Path) -> None:
    for command in ("genpkey -algorithm ed25519 -out a.key", "pkey -in a.key -pubout -out a.pub"):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True)
    assert Seals(tmp_path, RUN).open("a", Sealer(tmp_path / "a.key", RUN).seal(b"x")) == b"x"


def test_nothing_of_it_is_loaded_unless_asked() -> None:
    imports = "import sys, fedhq_lightning.trainer, fedhq_lightning.callbacks.federated_averaging"
    code = f"{imports}; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
