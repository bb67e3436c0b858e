"""Our texts and payloads in Flower's records. Needs flwr."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

_WORDS, _MODEL, _PLACE = "fedhq.words", "fedhq.payload", "fedhq.place"


def of(text: str, payload: bytes) -> RecordDict:
    """A text, and a payload as one array, which Flower sends in chunks and keeps once however many nodes get it."""
    content = RecordDict({_WORDS: ConfigRecord({"text": text})})
    if payload:
        content[_MODEL] = ArrayRecord({_MODEL: Array("uint8", (len(payload),), _MODEL, payload)})
    return content


def opened(content: Any) -> tuple[str, bytes]:
    """What `of` was given, of anything that may have come.

    Raises:
        ValueError: It is something else.
    """
    words = content.config_records.get(_WORDS, {})
    text, arrays = words.get("text"), content.array_records.get(_MODEL, {})
    payload = b"" if _MODEL not in arrays else arrays[_MODEL].data
    if not isinstance(text, str) or not isinstance(payload, bytes):
        raise ValueError("a message of another kind than this package's")
    return text, payload


def of_place(place: int) -> RecordDict:
    """What a node says that is asked which client it is."""
    return RecordDict({_PLACE: ConfigRecord({"place": place})})


def place_in(content: Any) -> int | None:
    """The client's place; None where the node says something else."""
    place = content.config_records.get(_PLACE, {}).get("place")
    return place if isinstance(place, int) else None
