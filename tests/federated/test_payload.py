"""Payloads: what went in comes out, packed; what was damaged or belongs elsewhere is refused."""

import base64
import json
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fedhq_lightning.federated.payload import (
    FORMAT_VERSION,
    Header,
    PayloadError,
    _checksum,
    _write,
    decode,
    encode,
    num_payload_bytes,
    read_metadata,
    tensor_in,
)
from fedhq_lightning.federated.payload_layout import _DTYPES
from fedhq_lightning.federated.update_checks import is_finite
from fedhq_lightning.models import ResNet20, ViT
from fedhq_lightning.quantize import LayerScheme, QuantScheme, pack, quantize_weight
from fedhq_lightning.quantize.grid import round_to_grid
from fedhq_lightning.types import StateDict

from ..small_federation import same_bits

HEADER = Header("weights", 3, "hospital-7")
KEPT = ("format_version", "kind", "round", "client")
GRIDS = {
    "conv.weight": LayerScheme(4, 8, None),
    "linear.weight": LayerScheme(3, None, 8),
    "gone.weight": LayerScheme(2, 2, None),
}


def state() -> StateDict:
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(6, 2, 3, 3),
        "linear.weight": torch.randn(5, 16),
        "linear.bias": torch.tensor([0.0, -0.0, 1e-45, 3e38, -1.5]),
        "half": torch.randn(3, dtype=torch.bfloat16),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "scalar": torch.tensor(7.25),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor(2**40),
        "mask": torch.tensor([True, False]),
    }


def rounded(values: StateDict) -> StateDict:
    return {name: round_to_grid(value, GRIDS[name]) if name in GRIDS else value for name, value in values.items()}


def forged(change: Callable[[StateDict], None], **metadata: str) -> bytes:
    """A payload with other entries, but with a valid checksum: what a broken or hostile client might send."""
    entries: StateDict = {}
    for name, value in state().items():
        if name in GRIDS:
            integers, scales = quantize_weight(value, GRIDS[name])
            entries[f"{name}|integers"] = pack(integers, GRIDS[name].weight_bits)
            entries[f"{name}|scales"] = scales
        else:
            entries[name] = value
    change(entries)
    whole = {name: value for name, value in read_metadata(encode(state(), GRIDS, HEADER)).items() if name in KEPT}
    return _with_metadata(_write(entries, whole), **metadata)


def _with_metadata(payload: bytes, **metadata: str) -> bytes:
    """The payload with other metadata, and a checksum over what it then says."""
    start = 8 + int.from_bytes(payload[:8], "little")
    head = json.loads(payload[8:start])
    head["__metadata__"] |= metadata
    head["__metadata__"]["checksum"] = _checksum(head["__metadata__"]["layout"], [memoryview(payload)[start:]])
    written = json.dumps(head, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written + payload[start:]


def test_round_trip_without_grids_is_bitwise() -> None:
    assert same_bits(decode(encode(state(), {}, HEADER), state(), {}, HEADER), state())


def test_round_trip_with_grids_rounds_to_them() -> None:
    assert same_bits(decode(encode(state(), GRIDS, HEADER), state(), GRIDS, HEADER), rounded(state()))


@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_are_packed(bits: int) -> None:
    weight = {"w": torch.randn(64, 128)}
    payload = encode(weight, {"w": LayerScheme(bits, 8, None)}, HEADER)
    packed, scales = 64 * 128 * bits // 8, 64 * 4
    assert packed + scales < len(payload) < packed + scales + 500
    grouped = encode(weight, {"w": LayerScheme(bits, 8, 32)}, HEADER)
    assert len(grouped) - len(payload) == pytest.approx(64 * 4 * 3, abs=16)


@pytest.mark.parametrize(("scheme", "share"), [("w4a8", 0.14), ("w8a8", 0.26)])
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: ViT(patch_size=4, width=384, depth=6, num_heads=6), id="vit-384"),
        pytest.param(lambda: ResNet20(in_channels=3, width=16), id="resnet20-16"),
        pytest.param(lambda: ResNet20(in_channels=3, width=64), id="resnet20-64"),
    ],
)
def test_share_of_the_float_bytes(build: Callable[[], torch.nn.Module], scheme: str, share: float) -> None:
    """Header, scales and all that stays in float included."""
    module = build()
    grids = {f"{name}.weight": grid for name, grid in QuantScheme(scheme).for_layers(module).items()}
    values = module.state_dict()
    float_bytes = sum(value.nbytes for value in values.values())
    payload = encode(values, grids, HEADER)
    assert len(payload) <= share * float_bytes
    assert len(encode(values, {}, HEADER)) > float_bytes
    got = decode(payload, values, grids, HEADER)
    name = next(reversed(grids))
    assert torch.equal(got[name], round_to_grid(values[name], grids[name]))


def test_same_state_same_bytes() -> None:
    assert len({encode(state(), GRIDS, HEADER) for _ in range(5)}) == 1


def test_the_sender_is_not_changed() -> None:
    mine = {"w": torch.nn.Parameter(torch.randn(4, 4).t()), "view": torch.arange(6.0)[::2]}
    before = {name: value.detach().clone() for name, value in mine.items()}
    payload = encode(mine, {"w": LayerScheme(4, None, None)}, HEADER)
    assert same_bits({name: value.detach() for name, value in mine.items()}, before)
    assert decode(payload, mine, {"w": LayerScheme(4, None, None)}, HEADER)["view"].tolist() == [0.0, 2.0, 4.0]


def test_is_plain_safetensors() -> None:
    payload = encode(state(), GRIDS, HEADER)
    bundles = safetensors.torch.load(payload)
    assert bundles.keys() == {"uint8", "float32", "bfloat16", "float64", "int64", "bool"}
    assert all(str(bundle.dtype) == f"torch.{name}" and bundle.dim() == 1 for name, bundle in bundles.items())
    metadata = read_metadata(payload)
    assert metadata["format_version"] == FORMAT_VERSION
    assert (metadata["kind"], metadata["round"], json.loads(metadata["client"])) == ("weights", "3", "hospital-7")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(HEADER, round=4), "round is '3', expected '4'"),
        (replace(HEADER, kind="delta"), "kind is 'weights', expected 'delta'"),
        (replace(HEADER, client="hospital-8"), "client is"),
    ],
)
def test_refuses_another_sender(other: Header, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        decode(encode(state(), GRIDS, HEADER), state(), GRIDS, other)


def test_client_7_is_not_client_named_7() -> None:
    payload = encode(state(), {}, replace(HEADER, client=7))
    with pytest.raises(PayloadError, match="client is"):
        decode(payload, state(), {}, replace(HEADER, client="7"))


def test_refuses_another_format() -> None:
    with pytest.raises(PayloadError, match="format_version is '99', expected '3'"):
        decode(forged(lambda entries: None, format_version="99"), state(), GRIDS, HEADER)


def test_checksum_covers_every_byte_of_data() -> None:
    payload = bytearray(encode(state(), GRIDS, HEADER))
    start = 8 + int.from_bytes(payload[:8], "little")
    for position in range(start, len(payload)):
        damaged = payload.copy()
        damaged[position] ^= 0x10
        with pytest.raises(PayloadError, match="checksum"):
            decode(bytes(damaged), state(), GRIDS, HEADER)


@pytest.mark.parametrize("seed", range(4))
def test_damage_of_any_kind_is_a_payload_error(seed: int) -> None:
    generator, whole = random.Random(seed), encode(state(), GRIDS, HEADER)
    for _ in range(150):
        damaged = bytearray(whole)
        kind = generator.randrange(4)
        if kind == 0:
            del damaged[generator.randrange(len(damaged)) :]
        elif kind == 1:
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        elif kind == 2:
            damaged += generator.randbytes(generator.randint(1, 9))
        else:
            damaged[generator.randrange(len(damaged) // 2)] = generator.randrange(256)
        if damaged == whole:
            continue
        try:
            got = decode(bytes(damaged), state(), GRIDS, HEADER)
        except PayloadError:
            continue
        raise AssertionError(f"a damaged payload was read: {got}")


@pytest.mark.parametrize(
    "header",
    [b"[]", b"3", b"{}", b"null", b'{"__metadata__": 3}', b'{"__metadata__": null}', b"\xff\xfe", b"{", b"[" * 100_000],
)
def test_strange_headers_are_payload_errors(header: bytes) -> None:
    for payload in (len(header).to_bytes(8, "little") + header, header, b""):
        with pytest.raises(PayloadError):
            decode(payload, state(), GRIDS, HEADER)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.pop("linear.bias"), "'linear.bias' is missing"),
        (lambda entries: entries.pop("conv.weight|scales"), r"'conv.weight\|scales' is missing"),
        (lambda entries: entries.update(extra=torch.ones(2)), "unknown tensors: extra"),
        (
            lambda entries: entries.update(scalar=torch.ones(2)),
            r"scalar: float32 of shape \(2,\), expected float32 of \(\)",
        ),
        (
            lambda entries: entries.update(double=torch.ones(4).double()),
            r"double: .* of shape \(4,\), expected .* of \(2, 2\)",
        ),
        (lambda entries: entries.update(count=torch.tensor(2.5)), "count: float32 of .* expected int64"),
        (
            lambda entries: entries.update({"linear.bias": torch.ones(5, dtype=torch.float64)}),
            "linear.bias: float64",
        ),
        (lambda entries: entries.update({"conv.weight|scales": torch.ones(1, 1)}), r"conv.weight\|scales: "),
        (lambda entries: entries.update({"conv.weight|scales": torch.ones(6, 2)}), r"conv.weight\|scales: "),
        (lambda entries: entries.update({"linear.weight|scales": torch.ones(5, 1)}), r"linear.weight\|scales: "),
        (lambda entries: entries.update({"conv.weight|scales": torch.ones(6, 1).long()}), r"conv.weight\|scales: "),
        (
            lambda entries: entries.update({"conv.weight|integers": torch.zeros(5, dtype=torch.uint8)}),
            r"conv.weight\|integers: ",
        ),
        (lambda entries: entries.update({"conv.weight|integers": torch.zeros(54)}), r"conv.weight\|integers: "),
    ],
)
def test_refuses_a_state_of_another_model(change: Callable[[StateDict], None], message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        decode(forged(change), state(), GRIDS, HEADER)


def test_refuses_tensors_that_are_not_as_the_layout_says() -> None:
    layout = read_metadata(encode(state(), GRIDS, HEADER))["layout"]
    for entries in ({"w": torch.zeros(1)}, {"w": torch.zeros(2, 2).byte()}, {}):
        with pytest.raises(PayloadError, match=r"\d+ bytes, expected \d+"):
            decode(_with_metadata(_write(entries, HEADER.metadata()), layout=layout), state(), GRIDS, HEADER)


def test_a_header_of_ours_has_one_spelling() -> None:
    payload = bytearray(encode(state(), GRIDS, HEADER))
    start = 8 + int.from_bytes(payload[:8], "little")
    assert payload[start - 1 : start] == b" ", "padding, which says nothing"
    payload[start - 1 : start] = b"\t"
    with pytest.raises(PayloadError, match="not spelled as one of ours"):
        decode(bytes(payload), state(), GRIDS, HEADER)


@pytest.mark.parametrize("header", [HEADER, Header("delta", 12345, 7), Header("fixed", 0, "server")])
@pytest.mark.parametrize("grids", [GRIDS, {}])
def test_the_length_is_known_beforehand(header: Header, grids: dict[str, LayerScheme]) -> None:
    assert num_payload_bytes(state(), grids, header) == len(encode(state(), grids, header))


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        (lambda payload: (2**63).to_bytes(8, "little") + payload[8:], "a header of"),
        (lambda payload: (2**40).to_bytes(8, "little") + payload[8:], "a header of"),
        (lambda payload: _with_metadata(payload, kind="A" * 50_000_000), "a header of"),
        (lambda payload: _with_metadata(payload, layout=_layout(b" " * 2**30)), "a header of"),
        (lambda payload: _with_metadata(payload, layout=_layout(b" " * 2**20)), "no readable layout"),
        (lambda payload: payload + bytes(2**28), "bytes, expected"),
    ],
    ids=["2**63", "2**40", "long kind", "1 GB of layout", "1 MB of layout", "too long"],
)
def test_what_is_refused_costs_nothing(attack: Callable[[bytes], bytes], reason: str) -> None:
    payload = attack(encode(state(), GRIDS, HEADER))
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(PayloadError, match=reason):
        decode(payload, state(), GRIDS, HEADER)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert time.process_time() - began < 1


def _layout(written: bytes) -> str:
    return base64.b85encode(zlib.compress(written, level=9)).decode()


@pytest.mark.parametrize("written", [b"", b"{", b"[]", b'{"w": 3}', b'{"w": ["float32", 3]}', b"[" * 100_000])
def test_strange_layouts_are_payload_errors(written: bytes) -> None:
    for layout in (_layout(written), written.decode(), '"', "\u00e9"):
        with pytest.raises(PayloadError, match=r"layout|a header of \d+"):
            decode(forged(lambda entries: None, layout=layout), state(), GRIDS, HEADER)


def test_what_needs_no_decoding_is_not_copied() -> None:
    payload = encode(state(), GRIDS, HEADER)
    got = decode(payload, state(), GRIDS, HEADER)
    first = tensor_in(payload, 0, torch.uint8, (len(payload),)).data_ptr()
    within = {name for name, value in got.items() if first <= value.data_ptr() < first + len(payload)}
    assert within == got.keys() - GRIDS.keys() - {"empty"}
    assert all(value.data_ptr() % value.element_size() == 0 for value in got.values())


@pytest.mark.parametrize("dtype", list(_DTYPES))
def test_every_dtype_travels(dtype: str) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype))
    payload = encode({"w": value, "byte": torch.ones(3, dtype=torch.uint8)}, {}, HEADER)
    assert safetensors.torch.load(payload)[dtype].dtype == value.dtype
    got = decode(payload, {"w": value, "byte": torch.ones(3, dtype=torch.uint8)}, {}, HEADER)["w"]
    assert got.view(torch.uint8).equal(value.view(torch.uint8))


def test_forging_changes_nothing_else() -> None:
    assert same_bits(decode(forged(lambda entries: None), state(), GRIDS, HEADER), rounded(state()))


def test_integers_outside_the_grid_cannot_be_sent() -> None:
    integers, scales = quantize_weight(torch.randn(6, 2, 3, 3), GRIDS["conv.weight"])
    assert integers.min() >= -8
    assert integers.max() <= 7
    assert scales.shape == (6, 1)
    assert pack(integers, 4).numel() == 54


def test_is_finite() -> None:
    good = {"w": torch.ones(2), "count": torch.tensor(3)}
    assert is_finite(good)
    for value in (float("nan"), float("inf"), -float("inf")):
        assert not is_finite(good | {"bad": torch.tensor([0.0, value])})
