"""YAML of anybody's: plain values, within limits."""

import json
import math
import tracemalloc

import pytest

from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.support import yaml_text
from fedhq_lightning.support.yaml_text import check_texts, parse_yaml, read_yaml

LEVELS = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]", *(f"a{n}: &a{n} [{','.join(9 * [f'*a{n - 1}'])}]" for n in range(1, 12))]
BOMB = "\n".join(LEVELS)
MERGES = "\n".join(
    ["m0: &m0 {a: 1, b: 2}", *(f"m{n}: &m{n} {{<<: [{','.join(20 * [f'*m{n - 1}'])}]}}" for n in range(1, 9))]
)


@pytest.mark.parametrize(
    ("text", "value"),
    {
        "": None,
        "a: [1, 2.5, .inf, true, null, text]": {"a": [1, 2.5, math.inf, True, None, "text"]},
        "- &a [1]\n- *a\n- <<: {b: 2}": [[1], [1], {"b": 2}],
        "\ufeffa: 1": {"a": 1},
        "day: 2024-13-45": {"day": "2024-13-45"},
        "day: 2024-01-05": {"day": "2024-01-05"},
        "!!str 12": "12",
        "=": "=",
        f"sha: {'1f' * 64}": {"sha": "1f" * 64},
        "[" * 49 + "]" * 49: eval("[" * 49 + "]" * 49),
    }.items(),
)
def test_plain_values(text: str, value: object) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    {
        BOMB: "line 6: stands for more than 100,000 values",
        MERGES: "line 5: stands for more than 100,000 values",
        "[" * 10**6: "line 1: nested more than 50 deep",
        "- " * 10**5: "line 1: nested more than 50 deep",
        "a: &a [*a]": "line 1: *a holds itself",
        "a: *b": "line 1: found undefined alias",
        "\n!!python/name:os.system ''": "line 2: tag '!!python/name:os.system' is none of text, numbers, true, false, "
        "null, lists and mappings",
        "!!binary aGFsbG8=": "line 1: tag '!!binary' is none of text, numbers, true, false, null, lists and mappings",
        "!!int x": "line 1: 'x' is no number",
        "!!float ''": "line 1: '' is no number",
        "!!bool x": "'x' is neither true nor false",
        "a: 0x_": "line 1: '0x_' is no number",
        "a: " + "1:" * 10**5 + "1": "line 1: a number of too many digits",
        "a: " + "1" * 5000: "line 1: a number of too many digits",
        "? [a]\n: b": "line 1: found unhashable key",
        "---\na\n---\nb": "line 3: but found another document",
        "#" * 2**20 + "#": "1,048,577 characters; 1,048,576 is the most",
    }.items(),
)
def test_refused_in_a_sentence_and_a_moment(text: str, problem: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError) as refused:
            parse_yaml(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(refused.value) in (f"not readable as YAML, {problem}", f"not readable as YAML: {problem}")
    assert peak < 20e6


@pytest.mark.parametrize("text", ["a\0b", "a: \x1b[2J", '"\\ud800"', "\ud800", "a: [", "%YAML 9.9\n---\na"])
def test_what_is_no_yaml_is_said_in_one_line(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\Anot readable as YAML(, line \d+)?: .+\Z"):
        parse_yaml(text)


def test_a_file_is_named(tmp_path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"a: [")
    with pytest.raises(ConfigurationError, match=r"a\.yaml: not readable as YAML, line 2: "):
        read_yaml(tmp_path / "a.yaml")


def test_the_most_that_is_read_takes_under_a_second() -> None:
    text = "[" + ",".join(["x"] * (yaml_text.MOST_VALUES - 10)) + "]"
    assert len(parse_yaml(text)) == yaml_text.MOST_VALUES - 10


@pytest.mark.parametrize("bomb", [BOMB, "[" * 10**4, "- " * 10**4, "1:" * 10**4 + "1"])
def test_texts_that_are_yaml_once_more(bomb: str) -> None:
    for content in (bomb, {"a": [bomb]}, {bomb: 1}, [f"- {json.dumps(bomb)}"]):
        with pytest.raises(ConfigurationError, match="not readable as YAML"):
            check_texts(content)


def test_texts_within_texts() -> None:
    with pytest.raises(ConfigurationError, match="YAML within YAML, over and over; 50 times"):
        check_texts({"clients_per_round" + ":" * 900: None})
    check_texts({"clients_per_round" + ":" * 120: None})


@pytest.mark.parametrize("text", ["a long text " * 50, "[1, 2, 3]" * 20, "'" + "x" * 200 + "'", "\ud800" * 200])
def test_other_texts_are_left_alone(text: str) -> None:
    check_texts({"a": [text]})
