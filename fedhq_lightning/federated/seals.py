"""Signatures on payloads, where they cross processes that are not one's own: who sent it, for which run, unchanged.

A sealed payload is the payload and 64 bytes of Ed25519 (RFC 8032) over the run's token and the payload. The payload
itself names round and client, so a seal is worth nothing in another round, for another client or in another run. It
hides nothing: for that, let the bytes travel in TLS.

Keys are PEM files, as OpenSSL writes them::

    openssl genpkey -algorithm ed25519 -out NAME.key && openssl pkey -in NAME.key -pubout -out NAME.pub

Needs the package cryptography, which the extra `secure` brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.federated.payload import PayloadError
from fedhq_lightning.support.extras import check_installed
from fedhq_lightning.types import ClientId

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NUM_SEAL_BYTES = 64
_PURPOSE = b"fedhq_lightning payload 1\0"


class Sealer:
    """Seals payloads with a private key.

    Args:
        key_file: PEM, PKCS 8, Ed25519, without a passphrase.
        run_token: The same for all processes of a run, and of no other run.

    Raises:
        ConfigurationError: No such file, another kind of key, or cryptography is not installed.
    """

    def __init__(self, key_file: Path, run_token: bytes) -> None:
        self._key: Ed25519PrivateKey = _read_key(key_file, is_private=True)
        self._run_token = run_token

    def seal(self, payload: bytes) -> bytes:
        """The payload and its seal."""
        return payload + self._key.sign(_signed(self._run_token, payload))


class Seals:
    """Opens sealed payloads of clients whose public keys lie in a folder.

    Args:
        folder: `CLIENT_ID.pub` of every client; files are read when a client is first heard of.
        run_token: As given to the clients' `Sealer`.
    """

    def __init__(self, folder: Path, run_token: bytes) -> None:
        self._folder = folder
        self._run_token = run_token
        self._keys: dict[str, Ed25519PublicKey] = {}

    def check(self, client_id: ClientId) -> None:
        """See that a client's key is there.

        Raises:
            ConfigurationError: No such file, another kind of key, or cryptography is not installed.
        """
        self._key(str(client_id))

    def open(self, client_id: ClientId, sealed: bytes) -> bytes:
        """A client's payload without its seal.

        Raises:
            PayloadError: Not sealed with this client's key for this run, or changed since; no key of this client.
        """
        from cryptography.exceptions import InvalidSignature

        payload, seal = sealed[:-NUM_SEAL_BYTES], sealed[-NUM_SEAL_BYTES:]
        try:
            self._key(str(client_id)).verify(seal, _signed(self._run_token, payload))
        except InvalidSignature:
            raise PayloadError(f"its seal is not one of client {client_id} for this run") from None
        except ConfigurationError as error:  # of a client that nobody has registered
            raise PayloadError(str(error)) from None
        return payload

    def _key(self, name: str) -> Ed25519PublicKey:
        if name not in self._keys:
            # An id is anybody's text: it must not lead out of the folder.
            if not name or Path(name).name != name:
                raise ConfigurationError(f"{self._folder}: client id {name!r} cannot be the name of a key file")
            self._keys[name] = _read_key(self._folder / f"{name}.pub", is_private=False)
        return self._keys[name]


def _signed(run_token: bytes, payload: bytes) -> bytes:
    return _PURPOSE + len(run_token).to_bytes(8, "little") + run_token + payload


def _read_key(file: Path, is_private: bool) -> Any:
    check_installed("sealing updates", "cryptography")
    from cryptography.hazmat.primitives.asymmetric import ed25519
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    kind = "private" if is_private else "public"
    try:
        data = file.read_bytes()
        key = load_pem_private_key(data, None) if is_private else load_pem_public_key(data)
    except OSError as error:
        raise ConfigurationError(
            f"{file}: cannot be read ({error.strerror or error}); it holds a {kind} key"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{file}: no {kind} key in PEM without a passphrase") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey if is_private else ed25519.Ed25519PublicKey):
        raise ConfigurationError(f"{file}: a key of another kind; make one with openssl genpkey -algorithm ed25519")
    return key
