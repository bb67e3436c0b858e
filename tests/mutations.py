"""Bytes damaged as disks, networks and attackers damage them, and what may happen to somebody who reads them."""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fedhq_lightning.errors import ConfigurationError

MOST_SECONDS = 1.0
"""Of computing, not of the clock: other processes may be at work too."""

_MEGABYTE = 2**20
_TELLING = [0, 1, 2, 4, 7, 8, 16, 32, 64, 100, 127, 128, 255, 256, 1000, 1024, 4096, 65535, 65536]
_TELLING += [2**power + step for power in (24, 31, 32, 40, 48, 53, 62, 63, 64) for step in (-1, 0, 1)]
_ODD = [
    b"\0",
    b"\xff",
    b"\x80",
    b"\x1b[2J",
    b"\r",
    b"\n",
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
    b"'",
    b'"',
]
_ODD += [
    b"{",
    b"}",
    b"[",
    b"]",
    b"&a ",
    b"*a",
    b"!!",
    b"!!python/name:os.system",
    b": ",
    b",",
    b"nan",
    b"inf",
    b"-1",
    b"1e999",
    b"null",
]
_ODD += [b"../", b"%s", b"{}", b"<b>", b"\xff" * 8, b"\0" * 64]


def mutated(data: bytes, seed: int) -> bytes:
    """The bytes with one to four damages: the same ones for the same seed, and never none.

    Bits flipped, bytes replaced, zeroed, cut off, cut out, doubled, many times repeated, swapped, odd ones put between,
    and lengths blown up: those in binary, 1 to 8 bytes wide in either order, and those written in digits.
    """
    chance = random.Random(seed)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        chance.choice(_DAMAGES)(changed, chance)
    return bytes(changed) if changed != data else data + b"\0"


def attacked(
    read: Callable[[bytes], object],
    samples: Sequence[bytes],
    seeds: Iterable[int],
    *,
    errors: tuple[type[Exception], ...] = (ConfigurationError,),
    most_megabytes: float = 256,
    most_seconds: float = MOST_SECONDS,
) -> Counter[str]:
    """Have mutations of samples read, in turn.

    Args:
        read: Of one input; called once with every sample as it is before, so that its imports do not count.
        samples: Sound inputs.
        seeds: One input each.
        errors: What it may raise.
        most_megabytes: That the process may grow by during one input, beyond what it holds.
        most_seconds: That one input may take.

    Returns:
        How many were "read" and how many "refused".

    Raises:
        AssertionError: Another error, or too long, or too much memory: with the seed.
    """
    for sample in samples:
        read(sample)
    tally: Counter[str] = Counter()
    for seed in seeds:
        data = mutated(samples[seed % len(samples)], seed)
        before, began = _reset_peak(), time.process_time()
        try:
            read(data)
            tally["read"] += 1
        except errors:
            tally["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__} from {data[:200]!r}") from error
        seconds, megabytes = time.process_time() - began, (_peak() - before) / _MEGABYTE
        assert seconds < most_seconds, f"seed {seed}: {seconds:.2f} s for {len(data)} bytes"
        assert megabytes < most_megabytes, f"seed {seed}: {megabytes:.0f} MB for {len(data)} bytes"
    gc.collect()
    return tally


def _place(data: bytearray, chance: random.Random) -> int:
    """A position; the beginning, where formats have their headers, as often as all the rest."""
    return chance.randrange(min(len(data), chance.choice((64, len(data)))) or 1) if data else 0


def _span(data: bytearray, chance: random.Random) -> slice:
    start = _place(data, chance)
    return slice(start, start + 1 + int(chance.expovariate(1 / chance.choice((4, 64, len(data) / 4 + 1)))))


def _flip(data: bytearray, chance: random.Random) -> None:
    if data:
        data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _replace(data: bytearray, chance: random.Random) -> None:
    span = _span(data, chance)
    data[span] = chance.randbytes(len(data[span]))


def _zero(data: bytearray, chance: random.Random) -> None:
    span = _span(data, chance)
    data[span] = bytes(len(data[span]))


def _cut_off(data: bytearray, chance: random.Random) -> None:
    del data[_place(data, chance) :]


def _cut_out(data: bytearray, chance: random.Random) -> None:
    del data[_span(data, chance)]


def _double(data: bytearray, chance: random.Random) -> None:
    span = _span(data, chance)
    data[span.start : span.start] = data[span]


def _repeat(data: bytearray, chance: random.Random) -> None:
    span = _span(data, chance)
    part = data[span][:16]
    data[span.start : span.start] = part * chance.choice((10, 100, 1000))


def _swap(data: bytearray, chance: random.Random) -> None:
    span = _span(data, chance)
    part = data[span]
    del data[span]
    place = _place(data, chance)
    data[place:place] = part


def _put_odd(data: bytearray, chance: random.Random) -> None:
    place, odd = _place(data, chance), chance.choice(_ODD)
    data[place : place + chance.choice((0, len(odd)))] = odd


def _blow_up_binary(data: bytearray, chance: random.Random) -> None:
    place, width = _place(data, chance), chance.choice((1, 2, 4, 8))
    value = chance.choice(_TELLING) % 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))


def _blow_up_digits(data: bytearray, chance: random.Random) -> None:
    places = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return _blow_up_binary(data, chance)
    start = end = chance.choice(places)
    while end < len(data) and chr(data[end]).isdigit():
        end += 1
    data[start:end] = chance.choice((b"", b"-", b"1e")) + str(chance.choice(_TELLING)).encode()


_DAMAGES = [
    _flip,
    _replace,
    _zero,
    _cut_off,
    _cut_out,
    _double,
    _repeat,
    _swap,
    _put_odd,
    _blow_up_binary,
    _blow_up_digits,
]


def _reset_peak() -> int:
    """Bytes of memory that the process has; its peak counts from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text("ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
