"""Texts, one a client, for predicting each next character."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from fedhq_lightning.data.client_holdout import check_holdout
from fedhq_lightning.data.federated import FederatedDataModule
from fedhq_lightning.errors import ConfigurationError
from fedhq_lightning.types import ClientId

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""The 96 characters that are told apart: a line's end, and ASCII from the space to `~`. Any other is read as `?`."""

_PLACES = np.full(128, ALPHABET.index("?"))
_PLACES[[ord(character) for character in ALPHABET]] = range(len(ALPHABET))
_TRAINED, _CHOOSING = 0.8, 0.9
_EVAL_BATCH_SIZE = 100


class CharacterDataModule(FederatedDataModule):
    """A text for each client, cut into windows; each character of a window is to be told from those before it.

    Batches are (characters, next characters), both (batch, length) int64 places in `ALPHABET`. Of each text the first
    80 % are trained on; the next 10 % of all clients, put together, choose the best round, the last 10 % test. What
    makes no whole window is left out.

    Subclasses give `texts()`, which is asked once.

    Args:
        length: Characters in a window, >= 1.
        batch_size: Windows in a training batch, >= 1.
        client_holdout: Share of what a client would train on that it holds back in place of it, the end of that text,
            to evaluate models on, such as 0.2. None for none.

    Raises:
        ConfigurationError: A number outside these bounds. On `setup`: no text is long enough for a window of each kind.

    Source: for the split, LEAF's and McMahan et al. 2017's Shakespeare: each speaker's first 80 % train.
    """

    def __init__(self, length: int = 64, batch_size: int = 16, client_holdout: float | None = None) -> None:
        super().__init__()
        check_holdout(client_holdout)
        for name, value in (("length", length), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigurationError(f"{name} {value}: must be 1 or more")
        self.length = length
        self.batch_size = batch_size
        self.client_holdout = client_holdout
        self._training: dict[ClientId, TensorDataset] = {}
        self._held_back: dict[ClientId, TensorDataset] = {}
        self._held_out: list[ConcatDataset[Any]] = []

    @abstractmethod
    def texts(self) -> Mapping[str, str]:
        """Each client's text by its id; those that are too short for a window take no part."""

    @property
    def client_ids(self) -> Sequence[ClientId]:
        """In the order of `texts`."""
        self.setup("fit")
        return list(self._training)

    def setup(self, stage: str) -> None:
        """Read the texts, once."""
        if not self._training:
            self._read()

    def num_examples(self, client_id: ClientId) -> int:
        """Training windows of one client."""
        return len(self._windows_of(client_id))

    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:  # type: ignore[override]  # of one client
        """Shuffled training batches of one client; the order comes from torch's global random numbers."""
        return DataLoader(self._windows_of(client_id), self.batch_size, shuffle=True)

    def client_val_dataloader(self, client_id: ClientId) -> DataLoader[Any] | None:
        """What the client holds back; None for none."""
        self._windows_of(client_id)
        held_back = self._held_back[client_id]
        return _in_order(held_back) if len(held_back) else None

    def val_dataloader(self) -> DataLoader[Any]:
        """Windows of all clients that choose the best round."""
        self.setup("validate")
        return _in_order(self._held_out[0])

    def test_dataloader(self) -> DataLoader[Any]:
        """Windows of all clients that choose nothing."""
        self.setup("test")
        return _in_order(self._held_out[1])

    def model_inputs(self) -> dict[str, Any]:
        """The characters in their order: a model's inputs and classes are places in it."""
        return {"characters": ALPHABET, "length": self.length}

    def _windows_of(self, client_id: ClientId) -> TensorDataset:
        self.setup("fit")
        if client_id not in self._training:
            raise KeyError(f"client {client_id!r}: none of the {len(self._training)} clients")
        return self._training[client_id]

    def _read(self) -> None:
        training, held_back = dict[ClientId, TensorDataset](), dict[ClientId, TensorDataset]()
        choosing, testing = list[TensorDataset](), list[TensorDataset]()
        for client_id, text in self.texts().items():
            trained, ends = int(_TRAINED * len(text)), int(_CHOOSING * len(text))
            kept = trained - round((self.client_holdout or 0.0) * trained)
            own = self._windows(text[:kept])
            if len(own):
                training[client_id] = own
                held_back[client_id] = self._windows(text[kept:trained])
                choosing.append(self._windows(text[trained:ends]))
                testing.append(self._windows(text[ends:]))
        if not any(map(len, choosing)) or not any(map(len, testing)):
            raise ConfigurationError(
                f"length {self.length}: no client has a text of ten such windows, by which rounds are chosen and "
                "tested; take a shorter length, or longer texts"
            )
        self._held_out = [ConcatDataset(choosing), ConcatDataset(testing)]
        self._training, self._held_back = training, held_back

    def _windows(self, text: str) -> TensorDataset:
        """One after another, without overlap: views of one tensor."""
        places = encode(text)
        count = max(len(places) - 1, 0) // self.length
        inputs = places[: count * self.length].view(count, self.length)
        return TensorDataset(inputs, places[1 : count * self.length + 1].view(count, self.length))


def encode(text: str) -> Tensor:
    """A text as places in `ALPHABET`, (characters,) int64."""
    return torch.from_numpy(_PLACES[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)])


def decode(places: Tensor) -> str:
    """The text that places in `ALPHABET` stand for; (characters,) of whole numbers."""
    return "".join(ALPHABET[place] for place in places.tolist())


def _in_order(windows: Any) -> DataLoader[Any]:
    # A loader without its own generator draws from torch's global random numbers even where it does not shuffle.
    return DataLoader(windows, _EVAL_BATCH_SIZE, generator=torch.Generator())
