"""Keys, sealed shares and masks of a secure round. All ciphers are those of the package cryptography.

Key agreement is X25519 (RFC 7748). A key is derived from what was agreed with HKDF-SHA256 (RFC 5869) and words that say
what it is for: its purpose, the round, who takes part with which public keys, and the two clients. Shares travel in
ChaCha20-Poly1305 (RFC 8439); masks are the key stream of AES-256 in counter mode. Each key seals one message or makes
one mask, so that nonces can be zero.

Imported where a secure round begins: the package cryptography is an extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhq_lightning.federated.secure.messages import NUM_KEY_BYTES, Integers, ProtocolError

_CHUNK_BYTES = 2**18
"""Of every mask in turn, so that sum and key stream stay in the processor's cache."""
_NONCE = bytes(12)


class Mask(NamedTuple):
    """A mask that is added to a vector, or taken off it.

    Attributes:
        key: Of its key stream.
        is_added: Or subtracted.
    """

    key: bytes
    is_added: bool


class KeyPair:
    """A private key of 32 random bytes, and its public one.

    Args:
        secret: The bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._private = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._private.public_key().public_bytes_raw()

    def agree(self, public: bytes, words: bytes) -> bytes:
        """A key of 32 bytes that both clients find, each from its own private and the other's public key.

        Args:
            public: The other's.
            words: What the key is for.

        Raises:
            ProtocolError: The other's key is none.
        """
        try:
            agreed = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise ProtocolError("a public key with which nothing can be agreed on") from None
        return bytes(HKDF(SHA256(), NUM_KEY_BYTES, None, words).derive(agreed))


def words_for(purpose: str, transcript: bytes, first: int, second: int) -> bytes:
    """What a key of two clients is for.

    Args:
        purpose: In a word.
        transcript: Digest of the round's terms and of the public keys of all who take part.
        first: Place in the cohort: of who sends, or the lower one.
        second: Of the other.
    """
    places = first.to_bytes(4, "little") + second.to_bytes(4, "little")
    return b"fedhq_lightning secure aggregation 1 " + purpose.encode() + b"\0" + transcript + places


def seal(key: bytes, data: bytes, words: bytes) -> bytes:
    """Encrypt and authenticate what is sent once under this key; `NUM_TAG_BYTES` longer than the data."""
    return bytes(ChaCha20Poly1305(key).encrypt(_NONCE, data, words))


def unseal(key: bytes, sealed: bytes, words: bytes) -> bytes:
    """What was sealed.

    Raises:
        ProtocolError: It was not sealed with this key and these words, or changed since.
    """
    try:
        return bytes(ChaCha20Poly1305(key).decrypt(_NONCE, sealed, words))
    except InvalidTag:
        raise ProtocolError("shares that were not sealed for this client and round, or were damaged") from None


def apply_masks(values: Integers, masks: Sequence[Mask]) -> None:
    """Add masks to a vector and take others off it, in place, modulo 2**bits.

    Args:
        values: (n,) contiguous.
        masks: Any number.
    """
    mode = CTR(bytes(16))
    streams = [(Cipher(AES(each.key), mode).encryptor(), each.is_added) for each in masks]
    size = _CHUNK_BYTES // values.itemsize
    zeros, room = memoryview(bytes(_CHUNK_BYTES)), bytearray(_CHUNK_BYTES + 16)
    little_endian = values.dtype.newbyteorder("<")
    for begin in range(0, len(values), size):
        part = values[begin : begin + size]
        mask = np.frombuffer(room, little_endian, len(part))
        for stream, is_added in streams:
            stream.update_into(zeros[: part.nbytes], room)
            (np.add if is_added else np.subtract)(part, mask, out=part)
