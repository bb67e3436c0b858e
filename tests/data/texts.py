"""Four clients' texts, for runs of a fraction of a second."""

from collections.abc import Mapping

from typing_extensions import override

from fedhq_lightning.data import CharacterDataModule

TEXTS = {
    "vowels": "the aeiou of it; a, e, i, o, u. " * 20,
    "consonants": "BCDFG hjklm NPQRS tvwxz! " * 30,
    "digits": "0 1 2 3 4 5 6 7 8 9\n" * 12,
    "words": "to be or not to be\n" * 25,
}


class SmallTexts(CharacterDataModule):
    """Each client repeats a line of its own."""

    def __init__(self, length: int = 8, batch_size: int = 8, client_holdout: float | None = None) -> None:
        super().__init__(length, batch_size, client_holdout)

    @override
    def texts(self) -> Mapping[str, str]:
        return TEXTS
