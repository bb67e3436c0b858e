"""JSON of anybody's becomes values of a declared type, or a sentence."""

import math
from dataclasses import dataclass

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support.typed_json import parse_json, read_json, typed


@dataclass(frozen=True)
class Pair:
    name: str
    values: dict[str, float]


def test_values_of_a_type() -> None:
    text = '{"name": "\\ud83d\\ude00", "values": {"a": 1, "b": "inf", "c": NaN}, "later": 3}'
    pair = parse_json(text, Pair)
    assert pair.name == "\N{GRINNING FACE}"
    assert pair.values["b"] == math.inf
    assert math.isnan(pair.values["c"])
    assert typed({"name": "x", "values": {}}, Pair) == Pair("x", {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        ("[" * 10**6, "Invalid JSON: recursion limit exceeded at line 1 column 202"),
        ('{"name": "\\ud83d"}', "Invalid JSON: unexpected end of hex escape at line 1 column 17"),
        ("[]", "Input should be an object, not []"),
        ('{"values": {}}', "name: Field required"),
        ('{"name": "x", "values": {"a": "y"}}', "values.a: Input should be a valid number, unable to parse string as a "
         "number, not 'y'"),
    ],
)  # fmt: skip
def test_refused_in_a_sentence(text: str, reason: str, tmp_path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_json(text, Pair)
    assert str(refused.value) == reason
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        read_json(tmp_path / "a.json", Pair, 2**21)
    assert str(refused.value) == f"{tmp_path / 'a.json'} is damaged: {reason}"


def test_what_was_given_is_shown_in_short() -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_json(f'{{"name": {["x" * 10**6] * 3!r}, "values": {{}}}}'.replace("'", '"'), Pair)
    assert len(str(refused.value)) < 200
