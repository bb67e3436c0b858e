from collections.abc import Mapping
from typing import Any

import pytest
import torch
from typing_extensions import override

from fedhq_lightning.data import CharacterDataModule, characters
from fedhq_lightning.data.characters import ALPHABET
from fedhq_lightning.errors import ConfigurationError

from .texts import TEXTS, SmallTexts


class Counting(CharacterDataModule):
    """One text in which no two characters follow each other twice, another that is too short."""

    @override
    def texts(self) -> Mapping[str, str]:
        return {"long": ALPHABET, "short": "abc"}


def read(windows: Any) -> list[tuple[str, str]]:
    return [tuple(characters.decode(part) for part in pair) for pair in windows]


def test_the_alphabet() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 96
    assert characters.decode(characters.encode(ALPHABET)) == ALPHABET
    assert characters.decode(characters.encode("né—\t")) == "n???"
    assert characters.encode("").shape == (0,)


def test_windows_follow_each_other_and_targets_are_one_ahead() -> None:
    data = Counting(length=4)
    windows = read(data.train_dataloader("long").dataset)
    # 76 of 96 characters are trained on: 18 windows of 4, and the next character of the last.
    assert [inputs for inputs, _ in windows] == [ALPHABET[4 * at : 4 * at + 4] for at in range(18)]
    assert [targets for _, targets in windows] == [ALPHABET[4 * at + 1 : 4 * at + 5] for at in range(18)]
    assert read(data.val_dataloader().dataset) == [
        (ALPHABET[at : at + 4], ALPHABET[at + 1 : at + 5]) for at in (76, 80)
    ]
    assert read(data.test_dataloader().dataset) == [
        (ALPHABET[at : at + 4], ALPHABET[at + 1 : at + 5]) for at in (86, 90)
    ]


def test_what_is_too_short_takes_no_part() -> None:
    assert Counting(length=4).client_ids == ["long"]
    with pytest.raises(KeyError, match="'short'"):
        Counting(length=4).num_examples("short")


def test_the_end_of_what_is_trained_on_is_held_back() -> None:
    data = Counting(length=4, client_holdout=0.25)
    trained = [inputs for inputs, _ in read(data.train_dataloader("long").dataset)]
    held_back = [inputs for inputs, _ in read(data.client_val_dataloader("long").dataset)]
    assert trained == [ALPHABET[at : at + 4] for at in range(0, 56, 4)]
    assert held_back == [ALPHABET[at : at + 4] for at in range(57, 73, 4)]
    assert Counting(length=4).client_val_dataloader("long") is None


def test_a_batch() -> None:
    data = SmallTexts()
    inputs, targets = next(iter(data.train_dataloader("vowels")))
    assert inputs.shape == targets.shape == (8, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert set(characters.decode(inputs.flatten())) <= set(TEXTS["vowels"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length 0: must be 1 or more"),
        ({"batch_size": 0}, "batch_size 0: must be 1 or more"),
        ({"client_holdout": 1.0}, "client_holdout 1.0: must be a share"),
        ({"length": 90}, "length 90: no client has a text of ten such windows"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Counting(**settings).setup("fit")
