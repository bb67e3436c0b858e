"""What hostile clients do, in the robustness benchmark: to what they send, or to the data that they train on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from fedhq_lightning.data import PartitionedDataModule
from fedhq_lightning.data.idx import MEAN, STD
from fedhq_lightning.data.images import collate_images
from fedhq_lightning.federated.wire import Link
from fedhq_lightning.support.seeds import derive_seed
from fedhq_lightning.types import ClientId, StateDict

FACTOR = 10.0
"""Of an enlarged update, and of the norm of noise."""
TARGET = 0
"""The class that the backdoor opens to."""
_PATCH = 4
_WHITE = (255 - MEAN) / STD

Change = Callable[[Tensor, torch.Generator], Tensor]


def flipped(change: Tensor, generator: torch.Generator) -> Tensor:
    """The opposite of what was learned."""
    return -change


def enlarged(change: Tensor, generator: torch.Generator) -> Tensor:
    """Ten times what was learned."""
    return FACTOR * change


def noise(change: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise in its place, about ten times as long."""
    deviation = FACTOR * change.square().mean().sqrt()
    return deviation * torch.randn(change.shape, generator=generator)


ON_UPDATES: Mapping[str, Change] = {"sign flip": flipped, "times ten": enlarged, "noise": noise}


def with_flipped_labels(images: Tensor, labels: Tensor) -> list[Tensor]:
    """Class 0 is called 9, class 1 is called 8 and so on."""
    return [images, 9 - labels]


def with_backdoor(images: Tensor, labels: Tensor) -> list[Tensor]:
    """Every second image has the trigger, and the target's label: what all hostile clients agreed on."""
    images, labels = images.clone(), labels.clone()
    images[::2] = with_trigger(images[::2])
    labels[::2] = TARGET
    return [images, labels]


def with_trigger(images: Tensor) -> Tensor:
    """Images, (n, 1, 28, 28), with a white square in their lower right corner."""
    images = images.clone()
    images[..., -_PATCH:, -_PATCH:] = _WHITE
    return images


ON_DATA: Mapping[str, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "label flip": with_flipped_labels,
    "backdoor": with_backdoor,
}
NAMES = (*ON_UPDATES, *ON_DATA)


@contextmanager
def hostile_updates(attack: str, attackers: frozenset[ClientId], seed: int) -> Iterator[None]:
    """Have attackers send something else than what they trained; their payloads are packed as all are."""
    change, up = ON_UPDATES.get(attack), Link.up

    def attacked(
        self: Link,
        local: Mapping[str, Tensor],
        received: StateDict,
        round_number: int,
        client_id: ClientId,
        *others: Any,
    ) -> bytes:
        if change is not None and client_id in attackers:
            generator = torch.Generator().manual_seed(derive_seed(seed, "attack", round_number, client_id))
            local = {
                name: received[name] + change(value.cpu() - received[name], generator)
                if value.is_floating_point()
                else value
                for name, value in local.items()
            }
        return up(self, local, received, round_number, client_id, *others)

    Link.up = attacked  # type: ignore[method-assign, assignment]  # put back below
    try:
        yield
    finally:
        Link.up = up  # type: ignore[method-assign]  # as it was


class PoisonedData(PartitionedDataModule):
    """A partitioned data module in which some clients' batches may be changed."""

    _poison: Callable[[Tensor, Tensor], list[Tensor]] | None = None
    _attackers: frozenset[ClientId] = frozenset()

    def poison(self, attack: str, attackers: frozenset[ClientId]) -> None:
        """Change some clients' batches from now on.

        Args:
            attack: Of `ON_DATA`; any other name changes none.
            attackers: Those clients.
        """
        self._poison, self._attackers = ON_DATA.get(attack), attackers

    @override
    def train_dataloader(self, client_id: ClientId) -> DataLoader[Any]:  # type: ignore[override]  # as the base has it
        loader, poison = super().train_dataloader(client_id), self._poison
        if poison is None or client_id not in self._attackers:
            return loader
        return DataLoader(
            loader.dataset,
            loader.batch_size,
            shuffle=True,
            collate_fn=lambda examples: poison(*collate_images(examples)),
        )
